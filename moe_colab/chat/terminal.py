"""The chat in a terminal: one question, or a conversation.

Knows parsed arguments and a ChatSession; knows no widgets.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator

import transformers

from ..errors import MoEColabError
from ..offload.load import load
from .answer import Answer
from .session import ChatSession, sampling

COMMANDS = (
    "/retry answers the last question again, /reset forgets the conversation, /stats shows the "
    "counts, /save FILE.md or FILE.json keeps the conversation, /quit leaves"
)


LOAD_SETTINGS = "slots policy speculate lookahead device dtype revision".split()


def open_chat(args: argparse.Namespace) -> ChatSession:
    transformers.logging.set_verbosity_error()  # else its warnings appear within the answers
    settings = {name: getattr(args, name) for name in LOAD_SETTINGS}
    model, tokenizer = load(args.source, **settings)
    return ChatSession(model, tokenizer, system=args.system)


def generation(args: argparse.Namespace) -> dict:
    return {"seed": args.seed, **sampling(args.temperature, args.top_p, args.max_new_tokens)}


def one_shot(args: argparse.Namespace) -> int:
    """Ask one question. With --json, print only the JSON object."""
    chat = open_chat(args)
    with chat.model.offload as offload:
        for piece in chat.ask(args.prompt, **generation(args)):
            if not args.json:
                print(piece, end="", flush=True)
        if args.json:
            print(json.dumps({"text": chat.turn.text, "stats": offload.stats().as_dict()}))
        else:
            print(f"\n[{chat.turn.line()}]")
    return 0


def converse(args: argparse.Namespace, sample: str) -> int:
    """Talk until /quit or the end of the input. If the input is no terminal and has no question,
    ask `sample`, so that the command always shows an answer."""
    chat = open_chat(args)
    with chat.model.offload as offload:
        print(f"{chat.model.config.model_type}, {offload!r}\n{COMMANDS}")
        asked = False
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
                    stream(chat, chat.retry(**generation(args)))
                elif command.startswith("/"):
                    print(f"unknown command {command}: {COMMANDS}")
                elif text:
                    asked = True
                    stream(chat, chat.start(text, **generation(args)))
        if not asked and not sys.stdin.isatty():
            print(f"> {sample}")
            with errors_printed():
                stream(chat, chat.start(sample, **generation(args)))
        if args.json:
            text = chat.turns[-1].text if chat.turns else ""
            print(json.dumps({"text": text, "stats": offload.stats().as_dict()}))
    return 0


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
