"""Loading: a source becomes an ordinary transformers model whose experts are offloaded.

Knows in which order a model is put together; every step is another module's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..cache.policies import PolicySpec
from ..cache.settings import SPECULATE, PrefetchSettings
from ..checkpoint.source import find_source, is_on_hub, open_checkpoint
from ..checkpoint.tensors import TORCH_DTYPES
from ..errors import MoEColabError
from ..planner.sizes import store_sizes
from ..planner.sources import named
from ..quantization.devices import check_device_dtype, pick_device, pick_dtype, usable_dtype
from ..quantization.pack import cached_store
from ..store import Store, is_store
from .dense import load_dense
from .handle import Offload
from .placement import check_before_loading
from .settings import Settings
from .tokenizer import choose_tokenizer


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
    attn_implementation: str | None = None,
    revision: str | None = None,
    tokenizer: Any = None,
    progress: bool = True,
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase | None]:
    """Load a Mixture-of-Experts model with its experts offloaded: (model, tokenizer), tokenizer
    None where the source has none.

    source: None or "shipped" for the small model that comes with moe_colab; the folder of a store;
        the folder of a checkpoint, which is packed into a store in the cache folder the first time;
        or "org/name" of the hub (also the address of its page), of which each file is deleted once
        it is packed.
    slots: experts of each layer that the device holds at once (paper, section 3.1): a number, one
        per layer, or "auto", which fills `vram`, or takes half the experts on a CPU.
    policy: which expert is evicted when the slots are full: "lru", "lfu", "fifo", "random", "none",
        or a class (see moe_colab.cache.Policy).
    speculate: experts of each later layer that are guessed and prefetched (section 3.2), 0 for
        none.
    lookahead: how many layers ahead, 1 or 2.
    guess_from: "router_input", which leaves more time, or "layer_output", which is right more
        often.
    guess_threshold: the least probability, 0 to 1, at which an expert is prefetched.
    stand_aside: prefetch less, or nothing, where that saves no time.
    device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1".
    dtype: "auto" is the checkpoint's own, but float16 for bfloat16 on a GPU that lacks it.
    vram: bytes, or "15GB", that the whole model with its "auto" slots may take on the device;
        "auto" is what is free.
    ram: bytes of host memory for copies of experts; "auto" takes what is free beside a CUDA device,
        and nothing on a CPU, where the page cache serves.
    resident: {layer: experts} that always stay on the device, beside the slots.
    whole_layer: load every expert of a layer each time and prefetch nothing: the naive baseline of
        section 4.3.
    kernels: "auto" multiplies with low-bit weights by the kernel that passed its self-test here
        (see `moe_colab.quantization.kernels.report()`); "plain" uses torch alone, the same on all
        machines.
    attn_implementation: as in transformers, such as "sdpa" or "eager"; None for its own choice.
    revision: branch, tag or commit of the hub; None for the main branch.
    tokenizer: None for the source's own; another one, as "org/name", a folder or an object; or
        False for none, where the source's own cannot be loaded.
    progress: show progress bars.

    `model` is an ordinary transformers model in eval mode, and `model.offload` its handle to
    settings and statistics. `num_parameters` and `get_memory_footprint` leave the experts out. Its
    logits are those of the plain model after `requires_grad_(False)`, bit for bit: in float32,
    torch rounds a product of several rows otherwise where a weight may be trained. Adapters of peft
    work on everything but the routed experts. A forked process may use the model, on a CPU.
    Raises MoEColabError where the source cannot be used, an argument is wrong or memory is short.
    """
    target, wanted = pick_device(device), pick_dtype(dtype)
    check_attention(attn_implementation)
    prefetch = PrefetchSettings(speculate, lookahead, guess_from, guess_threshold, stand_aside)
    settings = Settings(slots, policy, vram, ram, resident, whole_layer, kernels, prefetch)
    store, chosen = open_store(source, revision, settings, target, wanted, tokenizer, progress)
    own = TORCH_DTYPES[store.manifest.dtype]
    if wanted not in (None, own):
        raise MoEColabError(
            f"{store.folder} holds {own} experts, not dtype={dtype!r}: leave dtype out, or load "
            "the original checkpoint with that dtype."
        )
    check_device_dtype(target, own)
    memory = store_sizes(store.manifest).memory
    checked = settings.checked(memory.experts)
    pinned = [len(experts) for experts in checked.pinned]
    check_before_loading(replace(memory, pinned=pinned, working=0), checked.slots, target)
    model = load_dense(store, own, target, settings.kernels, attn_implementation)
    model.offload = Offload(model, store, settings, target, own)
    return model, chosen


def check_attention(name: str | None) -> None:
    """Raises MoEColabError for an attn_implementation that transformers does not know. One with a
    slash is a kernel on the hub."""
    known = ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
    if name is not None and name not in known and "/" not in str(name):
        raise MoEColabError(
            f"transformers has no attn_implementation {name!r}: leave it out, or use sdpa or eager."
        )


def open_store(
    source: str | os.PathLike[str] | None,
    revision: str | None,
    settings: Settings,
    device: torch.device,
    dtype: torch.dtype | None,
    tokenizer: Any,
    progress: bool,
) -> tuple[Store, Any]:
    """The store that `source` names, or the one packed from the checkpoint that it names; and the
    tokenizer. Settings are checked, and the tokenizer is loaded, before the packing, which takes
    long."""
    source, revision = named(source, revision)
    if not is_on_hub(source):
        folder = find_source(source)
        if is_store(folder):
            store = Store(folder)
            return store, choose_tokenizer(folder, tokenizer, progress)
    checkpoint = open_checkpoint(source, revision, progress)
    settings.checked([module.num_experts for _, module in checkpoint.layers])
    chosen = choose_tokenizer(checkpoint.folder, tokenizer, progress)
    usable = usable_dtype(checkpoint.dtype(), dtype, device)
    return cached_store(checkpoint, usable, progress), chosen
