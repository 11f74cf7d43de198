"""Verification of a store: compares every byte with the manifest. Knows files and digests; knows no
tensors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import MoEColabError
from ..files import open_file, read_errors, read_exactly
from .blobs import BlobFile
from .files import file_entry
from .reader import Store, store_folder


@dataclass(frozen=True)
class VerifyReport:
    """A store without any damage: how much of it was read."""

    store: str
    files: int
    experts: int
    nbytes: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify(store: str | os.PathLike[str]) -> VerifyReport:
    """Read the whole store and compare every sha256. Raises MoEColabError, which names what is
    damaged, missing, or there without being listed."""
    folder = store_folder(store)
    manifest = Store(folder).manifest
    damaged = [
        entry.name
        for entry in (manifest.dense, *manifest.files)
        if file_entry(folder, entry.name) != entry
    ]
    for entry in manifest.blob_files():
        damaged += [f"{entry.label(n)} in {entry.file}" for n in _damaged_blobs(folder, entry)]
    if damaged:
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        raise MoEColabError(
            f"{folder} is damaged: {', '.join(damaged[:5])}{more}; make the store again."
        )
    files = len(manifest.file_names())
    experts = sum(layer.experts for layer in manifest.layers)
    with read_errors(folder):
        nbytes = sum(os.stat(folder / name).st_size for name in manifest.file_names())
    return VerifyReport(str(folder), files, experts, nbytes)


def _damaged_blobs(folder: Path, entry: BlobFile) -> Iterator[int]:
    path = folder / entry.file
    with read_errors(path), open_file(path) as file:
        file.seek(entry.data_offset)
        for number, layout in enumerate(entry.layouts()):
            blob = read_exactly(file, layout.nbytes)
            if hashlib.sha256(blob).hexdigest() != entry.sha256[number]:
                yield number
