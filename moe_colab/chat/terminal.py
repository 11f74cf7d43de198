"""The chat in a terminal: one question, or a conversation.

Knows a ChatSession; knows no arguments of the command line and no widgets.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import transformers

from ..errors import MoEColabError
from ..offload.load import load
from .answer import Answer
from .session import ChatSession

COMMANDS = (
    "/retry answers the last question again, /reset forgets the conversation, /stats shows the "
    "counts, /save FILE.md or FILE.json keeps the conversation, /quit leaves"
)


@contextlib.contextmanager
def open_chat(system: str | None, **settings: Any) -> Iterator[ChatSession]:
    """A chat with the model that `load` makes with these settings, closed at the end."""
    transformers.logging.set_verbosity_error()  # else its warnings appear within the answers
    model, tokenizer = load(**settings)
    with model.offload:
        yield ChatSession(model, tokenizer, system=system)


def answer_once(chat: ChatSession, prompt: str, generation: dict[str, Any], as_json: bool) -> None:
    """Answer one question. as_json: print only the JSON object."""
    for piece in chat.ask(prompt, **generation):
        if not as_json:
            print(piece, end="", flush=True)
    if as_json:
        print_json(chat)
    else:
        print(f"\n[{chat.turn.line()}]")


def converse(chat: ChatSession, sample: str, generation: dict[str, Any], as_json: bool) -> None:
    """Talk until /quit or the end of the input. If the input is not a terminal and has no text,
    ask `sample`, so that the command always shows an answer."""
    offload, answered = chat.model.offload, False
    print(f"{chat.model.config.model_type}, {offload!r}\n{COMMANDS}")
    for text in questions():
        command, _, rest = text.partition(" ")
        if command == "/quit":
            break
        with errors_printed():
            if command == "/reset":
                chat.reset()
                print("(the conversation is forgotten)")
            elif command == "/stats":
                print(table(offload.stats().as_dict()))
            elif command == "/save":
                print(f"(saved as {chat.export(rest.strip())})")
            elif command == "/retry":
                stream(chat, chat.retry(**generation))
            elif command.startswith("/"):
                print(f"unknown command {command}: {COMMANDS}")
            elif text:
                answered = True
                stream(chat, chat.start(text, **generation))
    if not answered and not sys.stdin.isatty():
        print(f"> {sample}")
        with errors_printed():
            stream(chat, chat.start(sample, **generation))
    if as_json:
        print_json(chat)


def print_json(chat: ChatSession) -> None:
    """The latest answer and the counts, as one JSON object."""
    text = chat.turns[-1].text if chat.turns else ""
    print(json.dumps({"text": text, "stats": chat.model.offload.stats().as_dict()}))


def questions() -> Iterator[str]:
    """The lines of the input. Ctrl-C drops the line, Ctrl-D ends the input."""
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "").strip()
        except KeyboardInterrupt:
            print()
        except EOFError:
            if sys.stdin.isatty():
                print()
            return


@contextlib.contextmanager
def errors_printed() -> Iterator[None]:
    """Print a MoEColabError instead of raising it, so that the conversation goes on."""
    try:
        yield
    except MoEColabError as error:
        print(f"\nmoe_colab: {error}", file=sys.stderr)


def stream(chat: ChatSession, answer: Answer) -> None:
    """Print an answer as it comes; Ctrl-C ends the answer, not the program."""
    try:
        for piece in answer:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" (stopped)", end="")
    finally:
        answer.end()
    if answer.error is None:
        print(f"\n[{chat.turn.line()}]")


def table(stats: dict) -> str:
    """The counters as text, one per line: total, prompt and decode."""
    rows = [f"{'':18}{'total':>12}{'prompt':>12}{'decode':>12}"]
    for name, value in stats["prompt"].items():
        cells = [stats[name], value, stats["decode"][name]]
        shown = [f"{cell:,.3f}" if isinstance(cell, float) else f"{cell:,}" for cell in cells]
        rows.append(f"{name.replace('_', ' '):18}" + "".join(f"{cell:>12}" for cell in shown))
    return "\n".join(rows)
