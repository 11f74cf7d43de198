"""The journal of an unfinished store: one line for each part that is written, and the lock of the
process that writes. Knows lines and their digests; knows no parts."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from ..errors import MoEColabError
from ..files import read_file

JOURNAL = "moe_colab.journal.jsonl"
IN_USE = (errno.EWOULDBLOCK, errno.EACCES)  # of a lock that another process holds


def open_journal(path: Path, check: Callable[[], object]) -> TextIO:
    """Open the journal to append to it, locked until it is closed; `check` is called before it is
    created. The system gives the lock back when this process ends. Raises OSError, and
    MoEColabError where another process writes there."""
    while True:
        if not os.path.lexists(path):
            check()
        elif not os.path.isfile(path):
            raise MoEColabError(f"{path} is not a regular file: choose another folder.")
        journal = open(path, "a", encoding="utf-8")
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in IN_USE:  # a file system without locks
                return journal
            journal.close()
            raise MoEColabError(
                f"another process is writing the store {path.parent}: wait until it is done, or "
                "choose another folder."
            ) from error
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(journal.fileno()), os.stat(path)):
                return journal
        journal.close()  # another process has just finished the store


def line_of(note: dict[str, Any]) -> str:
    """The line of a note, which begins with its crc32."""
    text = json.dumps(note)
    # The newline comes first, because the last line may be unfinished.
    return f"\n{zlib.crc32(text.encode()):08x} {text}\n"


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The notes of a journal: "identity", or "key", "crc32", "sha256" and remarks. A kill may leave
    a line unfinished, and a disk may change one: such a line does not count, so that its part is
    written again."""
    lines = read_file(path).decode("utf-8", "replace").splitlines()
    return [note for note in map(_note, lines) if note is not None]


def _note(line: str) -> dict[str, Any] | None:
    crc, _, text = line.partition(" ")
    if crc != f"{zlib.crc32(text.encode()):08x}":
        return None
    try:
        note = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(note, dict):
        return None
    kinds = {"key": str, "crc32": int, "sha256": str}
    whole = all(isinstance(note.get(name), kind) for name, kind in kinds.items())
    return note if whole or "identity" in note else None
