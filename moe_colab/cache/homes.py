"""Homes: where an expert's bytes are, in a file or in host memory. They are read-only.

Knows how to fill a buffer from a home, chunk by chunk, and how to check the bytes. Knows no slots
and no torch.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Protocol

from ..errors import MoEColabError

CHUNK = 4 << 20
"""Bytes that a link moves at once. A demand load waits for at most one chunk of a guess."""
TICK = 2_000_000_000  # nanoseconds; the coarsest clock of a usual file system

Stamp = tuple[int, int, int]
"""Size, and the times of the last change of content and of anything, of a file."""


class Home(Protocol):
    tier: str  # "disk" or "host"
    nbytes: int

    def fill(self, buffer: memoryview) -> Iterator[int]:
        """Write the expert into `buffer` (nbytes long) and yield the bytes of each chunk: CHUNK,
        for the last one the rest. Each chunk takes its own slice of `buffer`. Raises MoEColabError
        where the bytes cannot be read or differ from those that were packed."""


class DiskHome:
    """An expert in a file of the store: `nbytes` at `offset`. Its crc32 is checked the first time
    it is read, and again whenever the file has changed since."""

    tier = "disk"

    def __init__(self, file: FileIO, offset: int, nbytes: int, crc32: int, label: str):
        self.file, self.offset, self.nbytes = file, offset, nbytes
        self.crc32, self.label = crc32, label
        self.checked: Stamp | None = None  # of the file whose bytes were right
        self.settled = False  # whether any later change will show in its stamp

    def fill(self, buffer: memoryview) -> Iterator[int]:
        before, crc, done = self._stamp(), 0, 0
        check = before != self.checked or not self.settled
        while done < self.nbytes:
            part = buffer[done : min(done + CHUNK, self.nbytes)]
            self._read(part, self.offset + done)
            if check:
                crc = zlib.crc32(part, crc)
            done += len(part)
            yield len(part)
        after = self._stamp()
        if after != before and not check:  # changed while it was read
            check, crc = True, zlib.crc32(buffer[: self.nbytes])
        if check and crc != self.crc32:
            folder = Path(self.file.name).parent
            raise MoEColabError(
                f"{self.label} in {self.file.name} is damaged (crc32 {crc:08x}, packed as "
                f"{self.crc32:08x}): its bytes changed since the store was made. Delete {folder} "
                "and make it again: that of a checkpoint is made when it is loaded."
            )
        if check:
            # A change within one tick of the disk's clock leaves the times as they are.
            self.settled = after == before and abs(time.time_ns() - max(after[1:])) > TICK
            self.checked = after

    def _stamp(self) -> Stamp:
        try:
            status = os.fstat(self.file.fileno())
        except OSError as error:
            raise MoEColabError(
                f"reading {self.label} from {self.file.name} failed: {error.strerror}."
            ) from error
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def _read(self, part: memoryview, offset: int) -> None:
        while len(part):  # one read may bring less than it is asked for
            try:
                got = os.preadv(self.file.fileno(), [part], offset)
            except OSError as error:
                raise MoEColabError(
                    f"reading {self.label} from {self.file.name} failed: {error.strerror}."
                ) from error
            if got == 0:
                raise MoEColabError(
                    f"{self.file.name} ends before {self.label}: the file was cut short. Delete "
                    "the store and make it again."
                )
            part, offset = part[got:], offset + got

    def forget(self) -> None:
        """Let the kernel drop its cached pages of this expert, because host memory has a copy."""
        os.posix_fadvise(self.file.fileno(), self.offset, self.nbytes, os.POSIX_FADV_DONTNEED)


class HostHome:
    """An expert kept in host memory for the session. `tensor` is the same memory as a torch tensor,
    for a CUDA copy."""

    tier = "host"

    def __init__(self, memory: memoryview, tensor=None):
        self.memory, self.tensor, self.nbytes = memory, tensor, len(memory)

    def fill(self, buffer: memoryview) -> Iterator[int]:
        for start in range(0, self.nbytes, CHUNK):
            part = self.memory[start : start + CHUNK]
            buffer[start : start + len(part)] = part
            yield len(part)
