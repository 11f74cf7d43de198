"""A checkpoint becomes a store of fewer bits: `mc.quantize`. Knows sources, recipes and packing;
chooses no scales itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from .devices import pick_device, pick_dtype, usable_dtype
from .errors import MoEColabError
from .loading import open_checkpoint
from .lowbit import Format
from .packing import pack
from .recipe import Recipe
from .store import Summary, inspect
from .store.manifest import NAME


def quantize(
    source: str | os.PathLike[str] | None,
    store: str | os.PathLike[str],
    *,
    expert_bits: int = 2,
    group_size: int = 64,
    axis: int = 1,
    overrides: Mapping[str, Format | None] | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    progress: bool = True,
) -> Summary:
    """Write the folder `store`: the model of `source` with its experts in `expert_bits` bits, by
    HQQ; everything else is kept as it is. `load(store)` runs it.

    source: None for the small model, a checkpoint folder, or "org/name" of the hub at `revision`.
    expert_bits: 2, 3, 4, 8, or 16 to keep. group_size: weights that share a scale and a zero: 16,
    32, 64 or 128; smaller is better and larger on disk. axis: 1 groups neighbours in a row, 0
    strides down a column. overrides: other formats for some matrices, see `Recipe`. device:
    where the scales are searched. dtype: what the model will compute in; "auto" is the
    checkpoint's own, float16 for bfloat16 on a GPU that has none.

    One expert at a time is in memory. Killed and called again with the same options it goes on; a
    folder with a store or half a store of other options, or with anything else, is left alone.
    Raises MoEColabError.
    """
    target, wanted, folder = pick_device(device), pick_dtype(dtype), Path(store).expanduser()
    form = None if expert_bits == 16 else Format(expert_bits, group_size, axis)
    recipe = Recipe(form, dict(overrides or {}))
    checkpoint = open_checkpoint(source, revision, progress)
    usable = usable_dtype(checkpoint.dtype(), wanted, target)
    if (folder / NAME).exists():
        raise MoEColabError(
            f"{folder} is a finished store already: load it, or choose another folder."
        )
    pack(checkpoint, folder, usable, progress, recipe, target, may_clear=False)
    return inspect(folder)
