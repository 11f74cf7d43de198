"""Files: opened for reading, read and written as a whole, with the disk's errors in one sentence.

Knows paths and the system's errors; knows nothing of what a file holds.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from .errors import MoEColabError

MOST = 256 << 20  # bytes of a file that is read as a whole

Named = str | os.PathLike[str]


@contextlib.contextmanager
def read_errors(path: Named, missing: str | None = None) -> Iterator[None]:
    """Turns errors of reading `path` into MoEColabErrors. missing: what is said where there is no
    such file."""
    try:
        yield
    except FileNotFoundError as error:
        raise MoEColabError(missing or f"{path} does not exist.") from error
    except OSError as error:
        raise MoEColabError(f"{path} cannot be read: {reason(error)}.") from error


def reason(error: OSError) -> str:
    """What the system says of an error, without the path."""
    return error.strerror or str(error)


class ReadFile(FileIO):
    """Is closed when nothing refers to it any more: experts may be read until then."""

    def __del__(self) -> None:
        self.close()


def open_file(path: Named) -> FileIO:
    """Open a regular file for reading, unbuffered. Raises OSError, also for a folder, a pipe, a
    socket or a device, for which another program would wait."""

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)

    try:
        file = ReadFile(path, "rb", opener=without_waiting)
    except ValueError as error:  # a NUL, or what the system cannot encode
        raise OSError(errno.EINVAL, "no file can have this name") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file")
    return file


def read_exactly(file: FileIO, nbytes: int) -> bytes:
    """The next `nbytes` of an unbuffered file, less only at its end: one read may bring less than
    it is asked for."""
    parts = []
    while nbytes and (part := file.read(nbytes)):
        parts.append(part)
        nbytes -= len(part)
    return b"".join(parts)


def read_file(path: Named, missing: str | None = None, most: int = MOST) -> bytes:
    """The content of a file. Raises MoEColabError where it cannot be read, or has more than `most`
    bytes."""
    with read_errors(path, missing), open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise MoEColabError(
                f"{path} has {size:,} bytes, where at most {most:,} make sense: it is not the file "
                "that its name says."
            )
        return file.readall()


def read_json(path: Named, what: str, missing: str | None = None) -> Any:
    """The content of a JSON file. Raises MoEColabError where it is not `what` ("an index")."""
    return parse_json(read_file(path, missing), f"{path} is not {what}")


def parse_json(text: bytes | str, complaint: str) -> Any:
    """The value of a JSON text. Raises MoEColabError, which begins with `complaint`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:
        raise MoEColabError(f"{complaint}: {one_line(error)}.") from error


def one_line(error: BaseException) -> str:
    """The message of an error in one line of at most 200 characters; its type where it has no
    message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"


def write_file(path: Named, content: bytes | memoryview) -> Path:
    """Write a whole file, and return its path: first under another name beside it, so that a full
    disk or a kill leaves what was there before. Raises MoEColabError."""
    path = Path(path)
    try:
        target = Path(os.path.realpath(path))  # of a symbolic link, the file that it names
        if target.exists() and not target.is_file():  # a device, such as /dev/stdout
            target.write_bytes(content)
            return path
        part = target.with_name(f".{secrets.token_hex(6)}.part")
        try:
            with open(part, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                os.chmod(part, stat.S_IMODE(target.stat().st_mode))
            os.replace(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise MoEColabError(f"{path} cannot be written: {reason(error)}.") from error
    except ValueError as error:  # a NUL in its name
        raise MoEColabError(f"{str(path)!r} cannot be the name of a file.") from error
    return path
