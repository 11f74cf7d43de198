"""Opening a store: is it whole, what does it hold, where is each expert. Knows files; knows no
slots and no model."""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path

from ..errors import MoEColabError
from ..homes import DiskHome
from .manifest import NAME, FileEntry, LayerEntry, Manifest
from .writer import JOURNAL


def is_store(folder: Path) -> bool:
    """True for a store, finished or not."""
    return (folder / NAME).exists() or (folder / JOURNAL).exists()


def store_folder(store: str | os.PathLike[str]) -> Path:
    """The folder that a user names as a store. Raises MoEColabError where it is none."""
    try:
        folder = Path(store)
    except TypeError as error:
        raise MoEColabError(f"{store!r} names no folder: {error}.") from error
    if not folder.is_dir():
        raise MoEColabError(f"{folder} is not a folder: name a store.")
    return folder


class Store:
    """A finished store. Opening checks the manifest, every file's presence and size, every header,
    and the content of all that is read as a whole; each expert is checked when it is first read.
    Raises MoEColabError otherwise."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        if (self.folder / JOURNAL).exists() and not (self.folder / NAME).exists():
            raise MoEColabError(
                f"{self.folder} is an unfinished store: start the command that makes it again to "
                "go on."
            )
        self.manifest = Manifest.load(self.folder)
        for entry in (self.manifest.dense, *self.manifest.files):
            self._check_file(entry)
        self.homes = [
            self._open_layer(number, entry) for number, entry in enumerate(self.manifest.layers)
        ]

    def _check_file(self, entry: FileEntry) -> None:
        path = self.folder / entry.name
        self._check_size(path, entry.nbytes)
        crc = 0
        with open(path, "rb") as file:
            while chunk := file.read(4 << 20):
                crc = zlib.crc32(chunk, crc)
        if crc != entry.crc32:
            raise MoEColabError(
                f"{path} was altered since the store was made: make the store anew."
            )

    def _check_size(self, path: Path, nbytes: int) -> None:
        if not path.is_file():
            raise MoEColabError(f"{path} is missing: the store is not complete; make it anew.")
        size = path.stat().st_size
        if size != nbytes:
            raise MoEColabError(
                f"{path} has {size:,} bytes instead of {nbytes:,}: make the store anew."
            )

    def _open_layer(self, number: int, entry: LayerEntry) -> list[DiskHome]:
        path = self.folder / entry.file
        self._check_size(path, entry.file_bytes)
        file = open(path, "rb", buffering=0)  # closed with the last home that reads from it
        if hashlib.sha256(file.read(entry.data_offset)).hexdigest() != entry.header_sha256:
            raise MoEColabError(
                f"the header of {path} was altered since the store was made: make the store anew."
            )
        return [
            DiskHome(
                file,
                entry.offset(e),
                entry.layout.nbytes,
                entry.crc32[e],
                f"expert {e} of MoE layer {number}",
            )
            for e in range(entry.experts)
        ]
