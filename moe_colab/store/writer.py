"""The writer of stores: an unfinished store is never taken for a finished one, and a killed writer
goes on later.

Tensors are written to their places in files of full size, in any order, and noted in a journal, one
line each. Any other file is written by files.py. The manifest comes last: without it there is no
store. Knows files and journals; knows no checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
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
from .manifest import NAME, FileEntry, Manifest
from .safetensors import TensorSpec, make_header, read_bytes

JOURNAL = "moe_colab.journal.jsonl"
LOW_BIT = "dense-lowbit.safetensors"
DOWNLOADS = "shards"  # a folder for downloads; a finished store has none
# The files of a store; a folder with any other file is never cleared.
SUFFIXES = {".json", ".jsonl", ".safetensors", ".part", ".jinja", ".txt", ".model", ".tiktoken"}


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
            if not self._resume():
                # Empty files do not count: a kill at the beginning leaves an empty journal.
                contents = [path for path in folder.iterdir() if path.stat().st_size]
                if contents and not may_clear:
                    raise MoEColabError(
                        f"{folder} is not empty, and holds no unfinished store with these options: "
                        "give the same options again as at its start, or choose an empty folder."
                    )
                self._start_over()
            self.journal = open(self.journal_path, "a", encoding="utf-8")

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
        return zlib.crc32(buffer) == record["crc32"]

    def write(self, file: str, part: str, data: memoryview, **remarks: Any) -> None:
        """Write one part. `remarks` go to the journal, so `record` returns them even after a
        kill."""
        with disk_errors(self.folder), open(self.folder / file, "r+b", buffering=0) as out:
            out.seek(self.parts[file][part][0])
            write_all(out, data)
        digests = {"crc32": zlib.crc32(data), "sha256": hashlib.sha256(data).hexdigest()}
        self._note(f"{file}/{part}", **digests, **remarks)

    def record(self, file: str, part: str) -> dict[str, Any]:
        """The digests and remarks of a written part."""
        return self.records[f"{file}/{part}"]

    # ------------------------------------------------------------------ other files
    def has_file(self, name: str) -> bool:
        """Whether an earlier writer finished this file, and it has not changed since."""
        record = self.records.get(name)
        return (
            record is not None
            and self._exists(name)
            and file_entry(self.folder / name).crc32 == record["crc32"]
        )

    def write_file(self, name: str, parts: Iterable[memoryview | bytes]) -> None:
        """Write a whole file from its parts, in order."""
        entry = write_whole(self.folder, name, parts)
        self._note(name, nbytes=entry.nbytes, crc32=entry.crc32, sha256=entry.sha256)

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
        whole = file_entry(self.folder / dense)
        entries = tuple(FileEntry(name, **self.records[name]) for name in files)
        layers = tuple(map(self._with_digests, self.layers))
        low_bit = self.low_bit and self._with_digests(self.low_bit)
        manifest = Manifest(source, family, dtype, whole, entries, layers, low_bit)
        write_whole(self.folder, NAME, [manifest.dump().encode()])
        self.close()
        self.journal_path.unlink()
        return manifest

    def _with_digests(self, entry: BlobFile) -> BlobFile:
        notes = [self.record(entry.file, entry.part(n)) for n in range(len(entry.layouts()))]
        return replace(
            entry,
            crc32=tuple(note["crc32"] for note in notes),
            sha256=tuple(note["sha256"] for note in notes),
        )

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the full disk was reported already
            self.journal.close()

    # ------------------------------------------------------------------ journal
    def _resume(self) -> bool:
        if not self.journal_path.exists():
            return False
        lines = self.journal_path.read_text(encoding="utf-8", errors="replace").splitlines()
        notes = []
        for line in lines:
            # A kill may leave a line unfinished; its part is written again.
            with contextlib.suppress(ValueError):
                notes.append(json.loads(line))
        if not notes or notes[0] != {"identity": self.identity}:
            return False
        self.records = {note.pop("key"): note for note in notes[1:]}
        return True

    def _start_over(self) -> None:
        """Clear what an earlier store or writer left. The journal gets its identity last, so that
        a file that was not cleared is never taken for one of this writer."""
        self._check_ours()
        self.journal_path.write_text("")
        # The manifest goes first: a folder that lacks files must not look like a store.
        (self.folder / NAME).unlink(missing_ok=True)
        shutil.rmtree(self.folder / DOWNLOADS, ignore_errors=True)
        for path in self.folder.iterdir():
            if path != self.journal_path:
                path.unlink()
        self.journal_path.write_text(json.dumps({"identity": self.identity}) + "\n")

    def _check_ours(self) -> None:
        """Raises MoEColabError where the folder holds something that no store or writer has
        left."""
        paths = sorted(self.folder.iterdir())
        foreign = [
            path
            for path in paths
            if path.name != DOWNLOADS and (path.is_dir() or path.suffix not in SUFFIXES)
        ]
        if not self._exists(NAME) and not self.journal_path.exists():
            foreign = paths
        if foreign:
            raise MoEColabError(
                f"{self.folder} holds something else ({foreign[0].name}): choose an empty folder "
                "for the store."
            )

    def _note(self, key: str, **record: Any) -> None:
        self.records[key] = record
        with disk_errors(self.folder):
            # The newline comes first, because the last line may be unfinished.
            self.journal.write("\n" + json.dumps({"key": key, **record}) + "\n")
            self.journal.flush()

    def _exists(self, name: str) -> bool:
        return (self.folder / name).exists()


def update_files(folder: Path, paths: Sequence[Path]) -> bool:
    """Make the side files (configuration, tokenizer) of a finished store equal to `paths`; True if
    that changed any."""
    manifest = Manifest.load(folder)
    before = {entry.name: entry for entry in manifest.files}
    after = tuple(
        before[path.name]
        if file_entry(path) == before.get(path.name)
        else write_whole(folder, path.name, [path.read_bytes()])
        for path in paths
    )
    if after == manifest.files:
        return False
    write_whole(folder, NAME, [replace(manifest, files=after).dump().encode()])
    for name in before.keys() - {entry.name for entry in after}:
        (folder / name).unlink(missing_ok=True)
    return True
