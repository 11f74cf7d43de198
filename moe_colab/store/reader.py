"""The reader of stores: opens one, checks that it is whole, and finds every expert in it. Knows
files and digests; knows no slots and no model."""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path

from ..cache.homes import DiskHome
from ..errors import MoEColabError
from .blobs import BlobFile
from .manifest import NAME, FileEntry, Manifest
from .writer import JOURNAL


def is_store(folder: Path) -> bool:
    """Whether the folder is a store, finished or not."""
    return (folder / NAME).exists() or (folder / JOURNAL).exists()


def store_folder(store: str | os.PathLike[str]) -> Path:
    """The folder that a user names as a store. Raises MoEColabError where it is not a folder."""
    try:
        folder = Path(store)
    except TypeError as error:
        kind = type(store).__name__
        raise MoEColabError(f"a {kind} is not a path: give the path of a store.") from error
    if not folder.is_dir():
        raise MoEColabError(f"{folder} is not a folder: name a store.")
    return folder


class Store:
    """A finished store. `homes`: where the experts are read, by layer; `dense_homes`: the same for
    low-bit matrices outside them. Opening checks the manifest, the presence and size of every
    file, every header, and the content of files without blobs; a blob is checked when it is first
    read. Raises MoEColabError where something is missing or differs."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        if (self.folder / JOURNAL).exists() and not (self.folder / NAME).exists():
            raise MoEColabError(
                f"{self.folder} is an unfinished store: run the command that makes it once more "
                "to go on."
            )
        self.manifest = Manifest.load(self.folder)
        for entry in (self.manifest.dense, *self.manifest.files):
            self._check_file(entry)
        self.homes = [
            self._open_blobs(entry, f" of MoE layer {number}")
            for number, entry in enumerate(self.manifest.layers)
        ]
        low_bit = self.manifest.low_bit
        self.dense_homes = [] if low_bit is None else self._open_blobs(low_bit)

    def _check_file(self, entry: FileEntry) -> None:
        path = self.folder / entry.name
        self._check_size(path, entry.nbytes)
        crc = 0
        with open(path, "rb") as file:
            while chunk := file.read(4 << 20):
                crc = zlib.crc32(chunk, crc)
        if crc != entry.crc32:
            raise MoEColabError(
                f"{path} was altered since the store was made: make the store again."
            )

    def _check_size(self, path: Path, nbytes: int) -> None:
        if not path.is_file():
            raise MoEColabError(f"{path} is missing, the store is not complete: make it again.")
        size = path.stat().st_size
        if size != nbytes:
            raise MoEColabError(
                f"{path} has {size:,} bytes instead of {nbytes:,}: make the store again."
            )

    def _open_blobs(self, entry: BlobFile, of: str = "") -> list[DiskHome]:
        path = self.folder / entry.file
        self._check_size(path, entry.file_bytes)
        file = open(path, "rb", buffering=0)  # closed with the last home that reads from it
        if hashlib.sha256(file.read(entry.data_offset)).hexdigest() != entry.header_sha256:
            raise MoEColabError(
                f"the header of {path} was altered since the store was made: make the store again."
            )
        return [
            DiskHome(file, entry.offset(n), layout.nbytes, entry.crc32[n], f"{entry.label(n)}{of}")
            for n, layout in enumerate(entry.layouts())
        ]
