"""Every byte of a store against its manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import MoEColabError
from .manifest import FileEntry, LayerEntry
from .reader import Store, store_folder


@dataclass(frozen=True)
class VerifyReport:
    """A store whose every byte is as it was packed."""

    store: str
    files: int
    experts: int
    nbytes: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify(store: str | os.PathLike[str]) -> VerifyReport:
    """Read the whole store and compare every sha256. Returns what was read; raises MoEColabError
    naming what differs."""
    folder = store_folder(store)
    manifest = Store(folder).manifest
    damaged = [
        entry.name
        for entry in (manifest.dense, *manifest.files)
        if _sha256_of(folder, entry) != entry.sha256
    ]
    for layer in manifest.layers:
        damaged += [f"expert {e} in {layer.file}" for e in _damaged_experts(folder, layer)]
    if damaged:
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        raise MoEColabError(
            f"{folder} is damaged: {', '.join(damaged[:5])}{more}; make the store anew."
        )
    files = 2 + len(manifest.files) + len(manifest.layers)
    experts = sum(layer.experts for layer in manifest.layers)
    nbytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return VerifyReport(str(folder), files, experts, nbytes)


def _sha256_of(folder: Path, entry: FileEntry) -> str:
    with open(folder / entry.name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged_experts(folder: Path, layer: LayerEntry) -> Iterator[int]:
    with open(folder / layer.file, "rb") as file:
        file.seek(layer.data_offset)
        for expert in range(layer.experts):
            if hashlib.sha256(file.read(layer.layout.nbytes)).hexdigest() != layer.sha256[expert]:
                yield expert
