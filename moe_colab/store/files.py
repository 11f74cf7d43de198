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
from ..files import open_file, read_errors, reason
from .manifest import FileEntry


def write_whole(folder: Path, name: str, parts: Iterable[memoryview | bytes]) -> FileEntry:
    """Write one file under a temporary name, sync it, and give it its name."""
    with disk_errors(folder):
        target = inside(folder, name)
        target.parent.mkdir(exist_ok=True)
        temporary = target.with_name(f"{target.name}.part")
        with open(temporary, "wb") as out:
            for part in parts:
                out.write(part)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, target)
    return file_entry(folder, name)


def remove(folder: Path, name: str) -> None:
    """Delete a file of the store, if it is there, and its folder if that is then empty."""
    with disk_errors(folder):
        path = inside(folder, name)
        path.unlink(missing_ok=True)
        if path.parent != folder:
            with contextlib.suppress(OSError):  # it holds something else
                path.parent.rmdir()


def inside(folder: Path, name: str) -> Path:
    """The path of a file in the store. Raises MoEColabError where it would be outside, through a
    symbolic link to another folder for example."""
    path = folder / name
    place = os.path.join(os.path.realpath(folder), os.path.dirname(name))
    if os.path.realpath(path.parent) != os.path.normpath(place):
        raise MoEColabError(f"{path} is outside the store: it is neither written nor deleted.")
    return path


def file_entry(folder: Path, name: str) -> FileEntry:
    """Size and digests of a whole file. Raises MoEColabError where it cannot be read."""
    crc, sha, size = 0, hashlib.sha256(), 0
    with read_errors(folder / name), open_file(folder / name) as file:
        while chunk := file.read(4 << 20):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
            sha.update(chunk)
    return FileEntry(name, size, crc, sha.hexdigest())


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
        raise MoEColabError(f"cannot write the store in {folder}: {reason(error)}.") from error
