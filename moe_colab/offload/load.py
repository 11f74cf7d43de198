"""A source becomes an ordinary transformers model whose experts are offloaded.

Knows where sources lie and in which order a model is put together; each step is another room's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer

from ..cache.policies import PolicySpec
from ..cache.settings import SPECULATE, PrefetchSettings
from ..checkpoint.hub import is_repo_id
from ..checkpoint.source import find_source, open_checkpoint
from ..checkpoint.tensors import TORCH_DTYPES
from ..errors import MoEColabError
from ..planner.catalogue import source_of
from ..quantization.devices import check_device_dtype, pick_device, pick_dtype, usable_dtype
from ..quantization.pack import cached_store
from ..store import Store, is_store
from .dense import load_dense
from .handle import Offload
from .settings import Settings

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tokenizer_config.json",
)


def load(
    source: str | os.PathLike[str] | None = None,
    *,
    slots: int | Sequence[int] | str = "auto",
    policy: PolicySpec = "lru",
    speculate: int = SPECULATE,
    lookahead: int = 1,
    guess_from: str = "router_input",
    guess_threshold: float = 0.0,
    stand_aside: bool = True,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    vram: int | str = "auto",
    ram: int | str = "auto",
    resident: Mapping[int, Sequence[int]] | None = None,
    whole_layer: bool = False,
    kernels: str = "auto",
    revision: str | None = None,
    progress: bool = True,
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase | None]:
    """Load a Mixture-of-Experts model with its experts offloaded; (model, tokenizer), tokenizer
    None if there is none.

    source: None or "shipped" for the small model of moe_colab, a store, a checkpoint folder (packed
    into a store in the cache folder the first time), or "org/name" of the hub at `revision`
    (downloaded file by file, each deleted when it is packed). slots: experts of each layer that the
    device holds at once, a number or one per layer; "auto" fills `vram`, or is half the experts on
    a CPU. policy: who leaves when the slots are full: "lru", "lfu", "fifo", "random", "none", or a
    class (see moe_colab.cache.Policy). speculate: experts of each later layer that are guessed and
    loaded ahead of time, 0 for none; lookahead: how many layers ahead, 1 or 2; guess_from: the
    "router_input", which leaves more time, or the "layer_output", which is right more often;
    guess_threshold: how probable a guess must be; stand_aside: guess less, or not at all, where it
    does not pay. device: "auto", "cpu", "cuda", "cuda:1". dtype: "auto" is the checkpoint's own,
    with float16 for bfloat16 on a GPU that has none. vram: bytes (or "15GB") that "auto" slots may
    fill with everything else of the model. ram: bytes of host memory to keep experts in; "auto"
    takes what is free on a CUDA machine and nothing on a CPU, where the page cache serves.
    resident: experts by layer that stay on the device for good, beside the slots. whole_layer: move
    every expert of a layer each time, the paper's naive baseline (section 4.3), and guess nothing.
    kernels: "auto" multiplies with low-bit weights by the kernel that passed its self-test on this
    machine (see `moe_colab.quantization.kernels.report()`), "plain" by torch alone, the same on all
    machines.

    `model` is an ordinary transformers model in eval mode; `model.offload` is the handle to
    settings and statistics. `num_parameters` and `get_memory_footprint` count the dense part only.
    Raises MoEColabError.
    """
    target, wanted = pick_device(device), pick_dtype(dtype)
    prefetch = PrefetchSettings(speculate, lookahead, guess_from, guess_threshold, stand_aside)
    settings = Settings(slots, policy, vram, ram, resident, whole_layer, kernels, prefetch)
    store = open_store(source, revision, settings, target, wanted, progress)
    own = TORCH_DTYPES[store.manifest.dtype]
    if wanted not in (None, own):
        raise MoEColabError(
            f"{store.folder} holds {own} experts, and dtype={dtype!r} was asked for: leave dtype "
            "out, or load the original checkpoint with that dtype."
        )
    check_device_dtype(target, own)
    model = load_dense(store, own, target, settings.kernels)
    model.offload = Offload(model, store, settings, target, own)
    return model, load_tokenizer(store.folder)


# ---------------------------------------------------------------------- the source
def open_store(
    source: str | os.PathLike[str] | None,
    revision: str | None,
    settings: Settings,
    device: torch.device,
    dtype: torch.dtype | None,
    progress: bool,
) -> Store:
    """The store that `source` names, or that of the checkpoint it names. A wrong setting is found
    before the packing, which takes its time."""
    source = source_of(source)
    if not is_repo_id(source) or os.path.exists(source):
        folder = find_source(source)
        if is_store(folder):
            return Store(folder)
    checkpoint = open_checkpoint(source, revision, progress)
    settings.checked([module.num_experts for _, module in checkpoint.layers])
    usable = usable_dtype(checkpoint.dtype(), dtype, device)
    return cached_store(checkpoint, usable, progress)


def load_tokenizer(folder: Path) -> transformers.PreTrainedTokenizerBase | None:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise MoEColabError(f"the tokenizer in {folder} cannot be loaded: {error}") from error
