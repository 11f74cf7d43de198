"""Quantized stores that are made once and found again, by what they were made of and how.

Knows the cache folder and what a store depends on; quantizes nothing itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from filelock import FileLock

from .loading import open_checkpoint
from .places import cache_folder, store_name
from .quantization import quantize
from .store import Summary, inspect
from .store.manifest import NAME


def quantized(
    source: str | os.PathLike[str] | None = None, *, progress: bool = True, **settings: Any
) -> Summary:
    """The report of a store of `source` in the cache folder, made with these keywords of
    `mc.quantize` if it is not there yet. A checkpoint that has changed gets a store of its own.
    Raises MoEColabError."""
    checkpoint = open_checkpoint(source, settings.get("revision"), progress)
    made_of = {"of": checkpoint.fingerprint(), **settings}
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True, default=repr).encode()).hexdigest()
    folder = cache_folder() / "quantized" / f"{store_name(checkpoint.name)}-{key[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / NAME).exists():  # written last: the store is whole
            return inspect(folder)
        return quantize(source, folder, progress=progress, **settings)
