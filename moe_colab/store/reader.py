"""The reader of stores: opens one, checks that it is whole, and finds every expert in it. Knows
files and digests; knows no slots and no model."""

from __future__ import annotations

import hashlib
import os
import zlib
from io import FileIO
from pathlib import Path

from ..cache.homes import DiskHome
from ..errors import MoEColabError
from ..files import open_file, read_errors, read_exactly
from .blobs import BlobFile
from .journal import JOURNAL
from .manifest import NAME, FileEntry, Manifest
from .side_files import unlisted_files


def is_store(folder: Path) -> bool:
    """Whether the folder is a store, finished or not."""
    return os.path.exists(folder / NAME) or os.path.exists(folder / JOURNAL)


def store_folder(store: str | os.PathLike[str]) -> Path:
    """The folder that a user names as a store. Raises MoEColabError where it is not a folder."""
    try:
        folder = Path(store)
    except TypeError as error:
        kind = type(store).__name__
        raise MoEColabError(f"a {kind} is not a path: give the path of a store.") from error
    if not os.path.isdir(folder):
        raise MoEColabError(f"{folder} is not a folder: name a store.")
    return folder


class Store:
    """A finished store. `homes`: where the experts are read, by layer; `dense_homes`: the same for
    low-bit matrices outside them. Opening checks the manifest, the presence and size of every
    file, every header, the content of files without blobs, and that no other file is there which
    transformers would read; a blob is checked when it is first read. Raises MoEColabError where
    something is missing or differs."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        if is_store(self.folder) and not os.path.exists(self.folder / NAME):
            raise MoEColabError(
                f"{self.folder} is an unfinished store: run the command that makes it once more "
                "to go on."
            )
        self.manifest = Manifest.load(self.folder)
        self.manifest.check_blobs(self.folder)
        for entry in (self.manifest.dense, *self.manifest.files):
            self._check_file(entry)
        check_unlisted(self.folder, self.manifest)
        self.homes = [
            self._open_blobs(entry, f" of MoE layer {number}")
            for number, entry in enumerate(self.manifest.layers)
        ]
        low_bit = self.manifest.low_bit
        self.dense_homes = [] if low_bit is None else self._open_blobs(low_bit)

    def _check_file(self, entry: FileEntry) -> None:
        path = self.folder / entry.name
        crc = 0
        with self._open(path, entry.nbytes) as file, read_errors(path):
            while chunk := file.read(4 << 20):
                crc = zlib.crc32(chunk, crc)
        if crc != entry.crc32:
            raise MoEColabError(
                f"{path} was altered since the store was made: make the store again."
            )

    def _open(self, path: Path, nbytes: int) -> FileIO:
        """The file, which must have so many bytes."""
        missing = f"{path} is missing, the store is not complete: make it again."
        with read_errors(path, missing):
            file = open_file(path)
            size = os.fstat(file.fileno()).st_size
        if size != nbytes:
            file.close()
            raise MoEColabError(
                f"{path} has {size:,} bytes instead of {nbytes:,}: make the store again."
            )
        return file

    def _open_blobs(self, entry: BlobFile, of: str = "") -> list[DiskHome]:
        path = self.folder / entry.file
        file = self._open(path, entry.file_bytes)  # closed with the last home that reads from it
        with read_errors(path):
            header = read_exactly(file, entry.data_offset)
        if hashlib.sha256(header).hexdigest() != entry.header_sha256:
            raise MoEColabError(
                f"the header of {path} was altered since the store was made: make the store again."
            )
        return [
            DiskHome(file, entry.offset(n), layout.nbytes, entry.crc32[n], f"{entry.label(n)}{of}")
            for n, layout in enumerate(entry.layouts())
        ]


def check_unlisted(folder: Path, manifest: Manifest) -> None:
    """Raises MoEColabError where the folder holds a file that the manifest does not list, and that
    transformers would read."""
    unlisted = unlisted_files(folder, manifest)
    if unlisted:
        raise MoEColabError(
            f"{folder} holds {unlisted[0]}, which was not there when the store was made, and may "
            "change the model: delete it, or make the store again."
        )
