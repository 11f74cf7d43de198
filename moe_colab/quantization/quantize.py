"""A checkpoint becomes a store of fewer bits: `mc.quantize`. Knows sources, recipes and packing;
chooses no scales itself."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from ..checkpoint.source import open_checkpoint
from ..errors import MoEColabError
from ..machine.folders import cache_folder, store_name
from ..store import Summary, inspect
from ..store.manifest import NAME
from .devices import pick_device, pick_dtype, usable_dtype
from .format import Format
from .pack import pack
from .recipe import Recipe

KEEP = 16
EMBEDDING_BITS = (KEEP, 8, 4)


def quantize(
    source: str | os.PathLike[str] | None,
    store: str | os.PathLike[str],
    *,
    attention_bits: int = 4,
    expert_bits: int = 2,
    embedding_bits: int = 16,
    group_size: int | None = None,
    axis: int = 1,
    overrides: Mapping[str, Format | None] | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    progress: bool = True,
) -> Summary:
    """Write the folder `store`: the model of `source` in fewer bits, by HQQ. `load(store)` runs it.

    source: None or "shipped" for the small model, a checkpoint folder, or "org/name" of the hub at
    `revision`.
    Each of the bits: 2, 3, 4, 8, or 16 to keep. expert_bits: of the routed experts.
    attention_bits: of all other linear layers in the decoder's blocks, so of shared experts and
    dense layers too; routers, gates, norms and biases stay as they are, and so does what the
    checkpoint stores otherwise than the model uses it, or what no group fits: the report's frame
    shows it. embedding_bits: 16, 8 or 4, of the input embedding and the output head, always along
    axis 1. group_size: weights that share a scale and a zero: 16, 32, 64 or 128; smaller is better
    and larger on disk; None: for each matrix the largest of 64, 32 and 16 that fits it. axis: 1
    groups neighbours in a row, 0 strides down a column. overrides: other formats for some
    matrices, see `Recipe`. device: where the scales are searched. dtype: what the model will
    compute in; "auto" is the checkpoint's own, float16 for bfloat16 on a GPU that has none.

    One expert or other matrix at a time is in memory. Killed and called again with the same options
    it goes on; a folder with a store or half a store of other options, or with anything else, is
    left alone. Raises MoEColabError.
    """
    target, wanted, folder = pick_device(device), pick_dtype(dtype), Path(store).expanduser()
    if embedding_bits not in EMBEDDING_BITS:
        raise MoEColabError(
            f"embedding_bits must be one of {EMBEDDING_BITS}, not {embedding_bits}."
        )
    recipe = Recipe(
        experts=format_of_bits(expert_bits, group_size, axis),
        dense=format_of_bits(attention_bits, group_size, axis),
        embeddings=format_of_bits(embedding_bits, group_size, 1),
        overrides=dict(overrides or {}),
    )
    checkpoint = open_checkpoint(source, revision, progress)
    usable = usable_dtype(checkpoint.dtype(), wanted, target)
    if (folder / NAME).exists():
        raise MoEColabError(
            f"{folder} is a finished store already: load it, or choose another folder."
        )
    start = time.monotonic()
    pack(checkpoint, folder, usable, progress, recipe, target, may_clear=False)
    return replace(inspect(folder), seconds=time.monotonic() - start)


def format_of_bits(bits: int, group_size: int | None, axis: int) -> Format | None:
    """None for 16, which keeps. Raises MoEColabError where there is no such format."""
    if bits == KEEP:
        return None
    form = Format(bits, group_size, axis)
    form.check_choice()
    return form


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
