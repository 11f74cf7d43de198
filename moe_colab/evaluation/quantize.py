"""Quantizing a checkpoint into a store of fewer bits, and a check of what it says then:
`mc.quantize`, and `mc.quantized`, which keeps the store in the cache folder. Knows sources, recipes
and packing; knows no scales."""

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

from ..checkpoint.source import open_checkpoint
from ..errors import MoEColabError
from ..machine.folders import cache_folder, store_name
from ..quantization.devices import pick_device, pick_dtype, usable_dtype
from ..quantization.format import Format
from ..quantization.pack import alone, pack
from ..quantization.recipe import Recipe, check_overrides
from ..store import Summary, inspect
from ..store.manifest import NAME
from .check import check_store

KEEP = 16
EMBEDDING_BITS = (KEEP, 8, 4)


def quantize(
    source: str | os.PathLike[str] | None,
    store: str | os.PathLike[str],
    *,
    attention_bits: int = 4,
    expert_bits: int = 4,
    embedding_bits: int = 16,
    group_size: int | None = None,
    axis: int = 1,
    overrides: Mapping[str, Format | None] | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    check: bool = True,
    progress: bool = True,
) -> Summary:
    """Write the model of `source` in fewer bits into the folder `store`; `load(store)` runs it.

    source: None or "shipped" for the small model, a checkpoint folder, or "org/name" of the hub at
    `revision`.
    Bits are 2, 3, 4 or 8, or 16 for weights that stay as they are. expert_bits: of the routed
    experts. attention_bits: of all other linear layers in the decoder's blocks, shared experts and
    dense layers among them. Routers, gates, norms and biases always stay, and so do matrices that
    no group fits or that the checkpoint stores in another form than the model uses: the report's
    frame shows them. embedding_bits: 16, 8 or 4, of the input embedding and the output head, always
    along axis 1. group_size: how many weights share a scale and a zero, 16, 32, 64 or 128; a
    smaller group is more exact and takes more bytes; None: for each matrix the largest of 64, 32
    and 16 that fits it. axis: 1 groups neighbours in a row, 0 groups weights of a column.
    overrides: other formats for some matrices, see `Recipe`. device: where scales are computed.
    dtype: the model will compute in it; "auto" is the checkpoint's own, but float16 instead of
    bfloat16 on a GPU without bfloat16. check: let the result read a short text, for 60 seconds at
    most, and warn if it predicts only noise, as many models do in 2 bits; the report says what was
    found.

    Only one expert or other matrix is in memory at a time. If it is killed, call it again with the
    same options to go on. A folder that holds a store, part of a store with other options, or
    anything else is not touched. Raises MoEColabError.

        overrides = {"experts.0.*": mc.Format(4), "*.self_attn.*": mc.Format(8, 64)}
        report = mc.quantize("shipped", "my-store", expert_bits=2, overrides=overrides)
        print(report.text())
    """
    target, wanted, folder = pick_device(device), pick_dtype(dtype), Path(store).expanduser()
    if embedding_bits not in EMBEDDING_BITS:
        raise MoEColabError(
            f"embedding_bits must be one of {EMBEDDING_BITS}, not {embedding_bits}."
        )
    check_overrides(overrides or {})
    recipe = Recipe(
        experts=format_of_bits(expert_bits, group_size, axis),
        dense=format_of_bits(attention_bits, group_size, axis),
        embeddings=format_of_bits(embedding_bits, group_size, 1),
        overrides=dict(overrides or {}),
    )
    checkpoint = open_checkpoint(source, revision, progress)
    usable = usable_dtype(checkpoint.dtype(), wanted, target)
    if os.path.exists(folder / NAME):
        raise MoEColabError(
            f"{folder} is a finished store already: load it, or choose another folder."
        )
    start = time.monotonic()
    pack(checkpoint, folder, usable, progress, recipe, target, may_clear=False)
    summary = inspect(folder)
    if check and recipe != Recipe():
        summary = replace(summary, check=check_store(summary, target))
    return replace(summary, seconds=time.monotonic() - start)


def format_of_bits(bits: int, group_size: int | None, axis: int) -> Format | None:
    """The format of so many bits, None for 16. Raises MoEColabError where there is no such
    format."""
    if bits == KEEP:
        return None
    fmt = Format(bits, group_size, axis)
    fmt.check_choice()
    return fmt


def quantized(
    source: str | os.PathLike[str] | None = None, *, progress: bool = True, **settings: Any
) -> Summary:
    """The report of a store of `source` in the cache folder, quantized with these keywords of
    `mc.quantize` at the first call. A changed checkpoint gets another store. Raises
    MoEColabError."""
    checkpoint = open_checkpoint(source, settings.get("revision"), progress)
    options = {"of": checkpoint.fingerprint(), **settings}
    key = hashlib.sha256(json.dumps(options, sort_keys=True, default=repr).encode()).hexdigest()
    folder = cache_folder() / "quantized" / f"{store_name(checkpoint.name)}-{key[:12]}"
    with alone(folder, f"quantizing {checkpoint.name}", progress):
        if os.path.exists(folder / NAME):  # written last: the store is whole
            return inspect(folder)
        return quantize(source, folder, progress=progress, **settings)
