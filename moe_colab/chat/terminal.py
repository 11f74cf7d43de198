"""The chat in a terminal: one question, or a conversation.

Knows a ChatSession, and what each command does; knows no arguments of the command line and no
widgets.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator
from typing import Any

import transformers

from ..errors import MoEColabError
from ..offload.load import load
from .answer import Answer
from .commands import help_text
from .markup import left_out_note
from .prompt import PROMPT, questions
from .session import ChatSession
from .suggestions import Suggestions, suggestions
from .thinking import ANSWER

WIDTH = 88  # of a paragraph, at most


@contextlib.contextmanager
def open_chat(system: str | None, **settings: Any) -> Iterator[ChatSession]:
    """A chat with the model that `load` makes with these settings, closed at the end."""
    transformers.logging.set_verbosity_error()  # else its warnings appear within the answers
    warnings.filterwarnings("ignore", module="transformers")
    for stream in (sys.stdin, sys.stdout, sys.stderr):  # a terminal may lack a character
        with contextlib.suppress(AttributeError, ValueError):  # not a file, or read from already
            stream.reconfigure(errors="replace")
    model, tokenizer = load(**settings)
    with model.offload:
        chat = ChatSession(model, tokenizer, system=system)
        try:
            yield chat
        finally:
            chat.close()


def answer_once(
    chat: ChatSession, prompt: str, generation: dict[str, Any], stats: bool, as_json: bool
) -> None:
    """Answer one question. stats: print what it cost too. as_json: print only the JSON object."""
    for piece in chat.ask(prompt, **generation):
        if not as_json:
            print(piece, end="", flush=True)
    if as_json:
        print_json(chat)
    else:
        print(f"\n[{chat.turn.line()}]" if stats else "")


def converse(chat: ChatSession, generation: dict[str, Any], stats: bool, as_json: bool) -> None:
    """Talk until /quit or the end of the input. If the input is not a terminal and has no question,
    ask a suggested one, so that the command always shows an answer. stats: print below each answer
    what it cost."""
    suggested = suggestions(chat)
    print(greeting(suggested))
    answered = False
    for text in questions():
        name, _, rest = text.partition(" ")
        if name == "/quit":
            break
        with errors_printed(chat):
            if text.startswith("/") and "\n" not in text:
                run_command(chat, name, rest.strip(), generation, stats)
            elif text:
                answered = True
                stream(chat, chat.start(text, **generation), stats)
    if not answered and not sys.stdin.isatty():
        question = suggested.questions[0]
        print(f"{PROMPT}{question}")
        with errors_printed(chat):
            stream(chat, chat.start(question, **generation), stats)
    if as_json:
        print_json(chat)


def run_command(
    chat: ChatSession, name: str, rest: str, generation: dict[str, Any], stats: bool
) -> None:
    """Do what one of COMMANDS says, but /quit; name an unknown command."""
    if name == "/help":
        print(help_text())
    elif name == "/retry":
        stream(chat, chat.retry(**generation), stats)
    elif name == "/reset":
        chat.reset()
        print("(the conversation is forgotten)")
    elif name == "/thinking":
        thinking = chat.turns[-1].thinking if chat.turns else ""
        print(thinking or "(the model marked no thinking)")
    elif name == "/stats":
        offload = chat.model.offload
        latest = [f"last answer: {chat.turn.line()}"] if chat.turn else []
        print("\n".join([repr(offload), *latest, table(offload.stats().as_dict())]))
    elif name == "/save":
        print(f"(saved as {chat.export(rest)})")
    else:
        print(f"unknown command {name}: /help shows the commands")


def greeting(suggested: Suggestions) -> str:
    """What the model is, three questions to try, and how to go on."""
    width = min(WIDTH, shutil.get_terminal_size().columns)
    about = textwrap.fill(f"{suggested.name} is {suggested.about}", width)
    tries = "\n".join(f"  {question}" for question in suggested.questions)
    return f"{about}\nTry:\n{tries}\n/help shows the commands, Ctrl-D leaves.\n"


def print_json(chat: ChatSession) -> None:
    """The latest answer and the counts, as one JSON object."""
    text = chat.turns[-1].text if chat.turns else ""
    print(json.dumps({"text": text, "stats": chat.model.offload.stats().as_dict()}))


@contextlib.contextmanager
def errors_printed(chat: ChatSession) -> Iterator[None]:
    """Print a MoEColabError instead of raising it, so that the conversation goes on; Ctrl-C ends
    what was asked for, not the program."""
    try:
        yield
    except MoEColabError as error:
        print(f"\nmoe_colab: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("(stopped)")
        if chat.busy:
            chat.answer.end()


def stream(chat: ChatSession, answer: Answer, stats: bool) -> None:
    """Print an answer as it comes; Ctrl-C ends the answer, not the program. What the model thinks
    is one line, which says that it thinks."""
    if answer.left_out:
        print(f"({left_out_note(answer.left_out)})")
    thinks = False
    try:
        for kind, piece in answer.parts():
            if kind == ANSWER:
                print(piece, end="", flush=True)
            elif not thinks:
                thinks = True
                print(dimmed("(it thinks before it answers: /thinking shows what)"), flush=True)
    except KeyboardInterrupt:
        print(" (stopped)", end="")
    except MoEColabError:
        print()  # the error is another line
        raise
    finally:
        answer.end()
    if answer.error is None:
        print(f"\n[{chat.turn.line()}]\n" if stats else "\n")


def dimmed(text: str) -> str:
    """The text in a paler colour, where the output is a terminal."""
    return f"\x1b[2m{text}\x1b[0m" if sys.stdout.isatty() else text


def table(stats: dict) -> str:
    """The counters as text, one per line: total, prompt and decode."""
    rows = [f"{'':18}{'total':>12}{'prompt':>12}{'decode':>12}"]
    for name, value in stats["prompt"].items():
        cells = [stats[name], value, stats["decode"][name]]
        shown = [f"{cell:,.3f}" if isinstance(cell, float) else f"{cell:,}" for cell in cells]
        rows.append(f"{name.replace('_', ' '):18}" + "".join(f"{cell:>12}" for cell in shown))
    return "\n".join(rows)
