"""What is hung onto a transformers model: a Layer on every experts module, hooks on routers and
model.

Knows transformers' modules from outside, and the handle's pool and ledger. Decides nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from transformers import Cache

from . import families
from .cache import Tokens
from .counters import Ledger
from .errors import MoEColabError
from .pool import Pool
from .store import BlobLayout, LayerEntry


class Handle(Protocol):
    """What is asked of `model.offload` during a forward."""

    device: torch.device
    dtype: torch.dtype
    model_type: str
    entries: Sequence[LayerEntry]
    lock: threading.RLock
    pool: Pool
    ledger: Ledger
    policy: str
    needs_logits: bool
    whole_layer: bool
    check_stop: Callable[[], None]


class Layer:
    """What one experts module is attached to: the engine's way to the pool."""

    def __init__(self, offload: Handle, number: int, module: torch.nn.Module, layout: BlobLayout):
        self.offload, self.number, self.layout = offload, number, layout
        self.experts = module.num_experts
        self.lock = offload.lock
        self.sum_dtype = families.sum_dtype(offload.model_type, offload.dtype)
        self.router = threading.local()  # `logits` [T, E] of this thread's forward, kept by a hook

    def check_input(self, hidden_states: torch.Tensor) -> None:
        if hidden_states.dtype != self.offload.dtype or hidden_states.device != self.offload.device:
            raise MoEColabError(
                f"the experts are {self.offload.dtype} on {self.offload.device}, their input is "
                f"{hidden_states.dtype} on {hidden_states.device}: do not move or cast a loaded "
                "model, load it with device=... and dtype=..."
            )

    def routing(self, top_k_index: torch.Tensor) -> tuple[np.ndarray, Tokens | None]:
        """top_k_index [T, K] on the host, and what the policy is shown; one transfer for both."""
        if not self.offload.needs_logits:
            return top_k_index.cpu().numpy(), None
        logits = self.router.__dict__.pop("logits", None)
        if logits is None or len(logits) != len(top_k_index):
            raise MoEColabError(
                f"policy {self.offload.policy!r} needs the router's logits, and MoE layer "
                f"{self.number} of this family shows none: choose another policy."
            )
        both = torch.cat([top_k_index.double(), logits.double()], dim=1).cpu().numpy()
        index = both[:, : top_k_index.shape[1]].astype(np.int64)
        return index, list(
            zip(index.tolist(), both[:, top_k_index.shape[1] :].tolist(), strict=True)
        )

    def weights(self, needed: list[int], tokens) -> Iterator[tuple[int, dict]]:
        """Each needed expert once, with its matrices, in the order in which they can be had."""
        if self.offload.whole_layer:
            needed = list(range(self.experts))
        for expert, block in self.offload.pool.experts(self.number, needed, tokens):
            yield expert, block.views(self.layout, (self.number, expert))

    def keep_logits(self, router, args, output) -> None:
        """Hook on the router: its logits, if the policy asks for them."""
        if self.offload.needs_logits:
            self.router.logits = families.router_logits(output, self.experts)


def attach(model: torch.nn.Module, offload: Handle) -> None:
    """Let every experts module of the model find the handle, and the handle hear of forwards."""
    modules = families.experts_modules(model)
    for number, ((name, module), entry) in enumerate(zip(modules, offload.entries, strict=True)):
        layer = Layer(offload, number, module, entry.layout)
        module.moe_colab_layer = layer
        router = families.router_of(model, name)
        if router is not None:
            router.register_forward_hook(layer.keep_logits)

    def begin_forward(model, args, kwargs) -> None:
        inputs = kwargs.get("input_ids")
        if inputs is None:
            inputs = args[0] if args else kwargs.get("inputs_embeds")
        if inputs is None:
            return  # the model will say what it misses
        rows, length = inputs.shape[:2]
        decode = length == 1 and has_past(kwargs)
        with offload.lock:
            offload.pool.check_open()
            offload.ledger.forward("decode" if decode else "prompt", rows * length)

    model.register_forward_pre_hook(begin_forward, with_kwargs=True)


def has_past(kwargs: Mapping) -> bool:
    """True if a forward was given a cache that holds earlier tokens; layers without attention
    cannot tell."""
    # By type: its name differs between versions.
    caches = [value for value in kwargs.values() if isinstance(value, Cache)]
    layers = [layer for past in caches for layer in past.layers if hasattr(layer, "get_seq_length")]
    return any(layer.get_seq_length() > 0 for layer in layers)
