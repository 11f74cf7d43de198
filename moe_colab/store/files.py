"""Files of a store: written so that a killed process or a full disk leaves no half file.

Knows paths, digests and the disk's errors; knows nothing of what a file holds.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path

from ..errors import MoEColabError
from .manifest import FileEntry


def write_whole(folder: Path, name: str, parts: Iterable[memoryview | bytes]) -> FileEntry:
    """Write one file under a temporary name, sync it, and give it its name."""
    temporary = folder / f"{name}.part"
    with disk_errors(folder):
        with open(temporary, "wb") as out:
            for part in parts:
                out.write(part)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, folder / name)
    return file_entry(folder / name)


def file_entry(path: Path) -> FileEntry:
    """Size and digests of a whole file."""
    crc, sha, size = 0, hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(4 << 20):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
            sha.update(chunk)
    return FileEntry(path.name, size, crc, sha.hexdigest())


def write_all(out: FileIO, data: memoryview) -> None:
    """Write all of `data` to an unbuffered file, whose own `write` may write a part."""
    done = 0
    while done < len(data):
        done += out.write(data[done:])


def allocate(fd: int, size: int) -> None:
    """Reserve the space on the disk now, so that a full disk fails before the work."""
    os.ftruncate(fd, size)
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns errors of writing to `folder` into MoEColabErrors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise MoEColabError(
                f"the disk of {folder} is full: make room and start again; it goes on from here."
            ) from error
        raise MoEColabError(
            f"cannot write the store in {folder}: {error.strerror or error}."
        ) from error
