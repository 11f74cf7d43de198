"""Digests of files: what the hub says of them, and what tells that a folder's weights have changed.
Knows files; knows no tensors."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from ..errors import MoEColabError
from ..files import open_file, read_errors, read_exactly

READ = 4 << 20  # bytes of one read
SAMPLES, SAMPLE = 16, 4096  # places of a file that its stamp reads, and bytes of each
SHA256 = re.compile("[0-9a-f]{64}")


def check_cached(path: Path) -> None:
    """Raises MoEColabError where a large file in the hub's cache folder, which is named after its
    sha256, has other bytes. Any other file passes."""
    blob = Path(os.path.realpath(path))
    if blob.parent.name == "blobs" and SHA256.fullmatch(blob.name):
        check_digest(path, blob.name)


def check_digest(path: Path, sha256: str | None) -> None:
    """Raises MoEColabError where a file has not this sha256, if there is one."""
    if sha256 is None:
        return
    digest = hashlib.sha256()
    with read_errors(path), open_file(path) as file:
        while chunk := file.read(READ):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        raise MoEColabError(
            f"{path} is damaged: its sha256 is not the one that the hub has. Delete "
            f"{os.path.realpath(path)} and download it again."
        )


def stamp(path: Path) -> str:
    """Size and times of a file, and a digest of pages all over it: a tool may keep the size and the
    time of the last change, and an image of a disk all times."""
    missing = f"{path} is missing: the checkpoint is not complete."
    with read_errors(path, missing), open_file(path) as file:
        status, digest = os.fstat(file.fileno()), hashlib.sha256()
        for number in range(SAMPLES):
            file.seek(max(0, status.st_size - SAMPLE) * number // (SAMPLES - 1))
            digest.update(read_exactly(file, SAMPLE))
    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
    return f"{status.st_size} {times} {digest.hexdigest()}"
