"""Reading questions: a line editor in a terminal, plain lines elsewhere. Knows no model and no
commands but their names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.shortcuts import CompleteStyle

from .commands import COMMANDS

PROMPT = "> "


def questions() -> Iterator[str]:
    """The messages of the input, one after the other; a paste of several lines is one message.
    Ctrl-C drops the message, Ctrl-D ends the input."""
    read = reader()
    while True:
        try:
            yield read().strip()
        except KeyboardInterrupt:
            print("(Ctrl-D leaves)")
        except UnicodeDecodeError:
            print("(this line is not UTF-8: write it again)")
        except EOFError:
            return


def reader() -> Callable[[], str]:
    """What reads one message. In a terminal it has line editing, a history in memory, completion of
    commands, and bracketed paste; through pipes it reads lines."""
    if not sys.stdin.isatty():
        return input
    if not sys.stdout.isatty():
        return lambda: input(PROMPT)
    session = PromptSession(
        PROMPT,
        history=InMemoryHistory(),
        completer=WordCompleter(list(COMMANDS), sentence=True),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,  # a menu would reserve lines on the screen
        enable_suspend=True,
    )
    return session.prompt
