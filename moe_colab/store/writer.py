"""The writer of stores: an unfinished store is never taken for a finished one, and a killed writer
goes on later.

Tensors are written to their places in files of full size, in any order, and noted in a journal, one
line each. Any other file is written by files.py. The manifest comes last: without it there is no
store. Knows files and journals; knows no checkpoint.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import MoEColabError
from .blobs import BlobFile, BlobLayout, DenseEntry, DenseMatrix, LayerEntry
from .files import allocate, disk_errors, file_entry, write_all, write_whole
from .journal import JOURNAL, line_of, open_journal, read_journal
from .manifest import NAME, Manifest
from .safetensors import TensorSpec, make_header, read_bytes
from .side_files import PATTERNS, TEMPLATES

LOW_BIT = "dense-lowbit.safetensors"
DOWNLOADS = "shards"  # a folder for downloads; a finished store has none
# The files of a store; a folder with any other file is never cleared.
SUFFIXES = {".jsonl", ".safetensors", ".part", *(pattern[1:] for pattern in PATTERNS)}
FOLDERS = (DOWNLOADS, TEMPLATES)


class StoreWriter:
    """Writes into `folder`; goes on where an earlier writer with the same `identity` was stopped.
    What another writer has left is cleared, or is an error unless `may_clear`."""

    def __init__(self, folder: Path, identity: dict[str, Any], may_clear: bool = True):
        self.folder, self.identity = folder, identity
        self.records: dict[str, dict[str, Any]] = {}
        self.parts: dict[str, dict[str, tuple[int, int]]] = {}  # by file and part: start, bytes
        self.layers: list[LayerEntry] = []
        self.low_bit: DenseEntry | None = None
        self.journal_path = folder / JOURNAL
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.journal = open_journal(self.journal_path, lambda: self._check_clearing(may_clear))
            try:
                if not self._resume():
                    self._check_clearing(may_clear)
                    self._start_over()
            except BaseException:
                self.close()
                raise

    # ------------------------------------------------------------------ files written part by part
    def add_file(self, name: str, parts: Sequence[TensorSpec]) -> bytes:
        """Allocate a file of these tensors, which `write` then fills in any order. Returns its
        header."""
        header, places = make_header(parts), {}
        end = len(header)
        for part, _, _, nbytes in parts:
            places[part] = (end, nbytes)
            end += nbytes
        with (
            disk_errors(self.folder),
            open(self.folder / name, "r+b" if self._exists(name) else "w+b") as out,
        ):
            allocate(out.fileno(), end)
            out.write(header)
        self.parts[name] = places
        return header

    def add_layer(self, module: str, experts: int, layout: BlobLayout) -> LayerEntry:
        """Allocate the file of a layer's experts."""
        name = f"experts-{len(self.layers):05}.safetensors"
        entry = LayerEntry(name, 0, "", (), (), module, experts, layout)
        self.layers.append(self._add_blobs(entry))
        return self.layers[-1]

    def add_low_bit(self, matrices: Sequence[DenseMatrix]) -> DenseEntry:
        """Allocate the file of the low-bit matrices outside the experts."""
        self.low_bit = self._add_blobs(DenseEntry(LOW_BIT, 0, "", (), (), tuple(matrices)))
        return self.low_bit

    def _add_blobs(self, entry: BlobFile) -> BlobFile:
        header = self.add_file(
            entry.file,
            [
                (entry.part(n), "U8", (layout.nbytes,), layout.nbytes)
                for n, layout in enumerate(entry.layouts())
            ],
        )
        digest = hashlib.sha256(header).hexdigest()
        return replace(entry, data_offset=len(header), header_sha256=digest)

    def has(self, file: str, part: str) -> bool:
        """Whether an earlier writer finished this part, and its bytes have not changed since."""
        record, (start, nbytes) = self.records.get(f"{file}/{part}"), self.parts[file][part]
        if record is None:
            return False
        buffer = memoryview(bytearray(nbytes))
        read_bytes(self.folder / file, start, buffer)
        return all(record[name] == digest for name, digest in digests(buffer).items())

    def write(self, file: str, part: str, data: memoryview, **remarks: Any) -> None:
        """Write one part. `remarks` go to the journal, so `record` returns them even after a
        kill."""
        with disk_errors(self.folder), open(self.folder / file, "r+b", buffering=0) as out:
            out.seek(self.parts[file][part][0])
            write_all(out, data)
        self._note(f"{file}/{part}", **digests(data), **remarks)

    def record(self, file: str, part: str) -> dict[str, Any]:
        """The digests and remarks of a written part."""
        return self.records[f"{file}/{part}"]

    # ------------------------------------------------------------------ other files
    def write_file(self, name: str, parts: Iterable[memoryview | bytes]) -> None:
        """Write a whole file from its parts, in order."""
        write_whole(self.folder, name, parts)

    # ------------------------------------------------------------------ the end
    def finish(
        self, source: dict[str, Any], family: str, dtype: str, dense: str, files: Iterable[str]
    ) -> Manifest:
        """Sync everything and write the manifest, which makes the folder a store. `dense`: the file
        of all tensors outside the experts that are stored as they are."""
        with disk_errors(self.folder):
            for name in self.parts:
                with open(self.folder / name, "rb") as file:
                    os.fsync(file.fileno())
        whole = file_entry(self.folder, dense)
        entries = tuple(file_entry(self.folder, name) for name in files)
        layers = tuple(map(self._with_digests, self.layers))
        low_bit = self.low_bit and self._with_digests(self.low_bit)
        manifest = Manifest(source, family, dtype, whole, entries, layers, low_bit)
        write_whole(self.folder, NAME, [manifest.dump().encode()])
        with disk_errors(self.folder):
            self.journal_path.unlink()  # while it is locked
        self.close()
        return manifest

    def _with_digests(self, entry: BlobFile) -> BlobFile:
        notes = [self.record(entry.file, entry.part(n)) for n in range(len(entry.layouts()))]
        return replace(
            entry,
            crc32=tuple(note["crc32"] for note in notes),
            sha256=tuple(note["sha256"] for note in notes),
        )

    def close(self) -> None:
        """Let another process write here."""
        with contextlib.suppress(OSError, ValueError):  # reported already, or closed
            fcntl.flock(self.journal, fcntl.LOCK_UN)  # a fork of this process may have the file too
            self.journal.close()

    # ------------------------------------------------------------------ journal
    def _resume(self) -> bool:
        """Take over what an earlier writer with the same identity has noted."""
        notes = read_journal(self.journal_path)
        if not notes or notes[0] != {"identity": self.identity}:
            return False
        self.records = {note.pop("key"): note for note in notes[1:] if "key" in note}
        return True

    def _check_clearing(self, may_clear: bool) -> None:
        """Raises MoEColabError where the folder may not be cleared."""
        # Empty files do not count: a kill at the beginning leaves an empty journal.
        contents = [path for path in self.folder.iterdir() if path.stat().st_size]
        if contents and not may_clear:
            raise MoEColabError(
                f"{self.folder} is not empty, and holds no unfinished store with these options: "
                "give the same options again as at its start, or choose an empty folder."
            )
        self._check_ours()

    def _start_over(self) -> None:
        """Clear what an earlier store or writer left. The journal gets its identity last, so that
        a file that was not cleared is never taken for one of this writer."""
        self.journal.truncate(0)
        # The manifest goes first: a folder that lacks files must not look like a store.
        (self.folder / NAME).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path != self.journal_path:
                path.unlink()
        self.journal.write(line_of({"identity": self.identity}))
        self.journal.flush()

    def _check_ours(self) -> None:
        """Raises MoEColabError where the folder holds something that no store or writer has
        left."""
        paths = sorted(self.folder.iterdir())
        foreign = [
            path
            for path in paths
            if (path.name not in FOLDERS if path.is_dir() else path.suffix not in SUFFIXES)
        ]
        if not self._exists(NAME) and not os.path.lexists(self.journal_path):
            foreign = paths
        if foreign:
            raise MoEColabError(
                f"{self.folder} holds something else ({foreign[0].name}): choose an empty folder "
                "for the store."
            )

    def _note(self, key: str, **record: Any) -> None:
        self.records[key] = record
        with disk_errors(self.folder):
            self.journal.write(line_of({"key": key, **record}))
            self.journal.flush()

    def _exists(self, name: str) -> bool:
        return os.path.exists(self.folder / name)


def digests(data: memoryview) -> dict[str, Any]:
    """The digests of a part."""
    return {"crc32": zlib.crc32(data), "sha256": hashlib.sha256(data).hexdigest()}
