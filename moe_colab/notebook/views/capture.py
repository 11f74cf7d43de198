"""Capture of a model that reads a text: every vector that goes into its experts and comes out.

Knows the listeners of MoE layers and the pool's caches; makes the `TokenSteps` of the stepper. A
listener changes nothing that the model computes or counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ...analysis.cache_history import LOWEST, CacheHistory, RecordingPolicy, watch
from ...cache.settings import SPECULATE
from ...checkpoint import families
from ...errors import MoEColabError
from ...offload.handle import Offload, offload_of
from ...offload.read_text import exclusive, ids_of, record_ids
from .token_steps import Computed, TokenSteps


class CaptureListener:
    """A LayerListener. `captured` holds what the layer computed for every token from number `first`
    on, in order."""

    def __init__(self, first: int):
        self.first, self.seen = first, 0
        self.captured: list[Computed] = []
        self.outputs: dict[tuple[int, int], np.ndarray] = {}  # of this call, by token and expert

    def expert(self, expert: int, token: torch.Tensor, out: torch.Tensor) -> None:
        for number, row in zip(token.tolist(), on_host(out), strict=True):
            self.outputs[number, expert] = row

    def layer(self, hidden_states, top_k_index, top_k_weights, total) -> None:
        vectors = map(on_host, (hidden_states, top_k_weights, total))
        rows = zip(*vectors, top_k_index.tolist(), strict=True)
        for token, (x, weights, y, index) in enumerate(rows):
            if self.seen >= self.first:
                zero = np.zeros_like(y)  # ids past the last expert mean no expert
                outputs = [self.outputs.get((token, expert), zero) for expert in index]
                self.captured.append(Computed(x, weights, np.stack(outputs), y))
            self.seen += 1
        self.outputs.clear()


def on_host(values: torch.Tensor) -> np.ndarray:
    """A float32 copy of a tensor in host memory."""
    return values.detach().float().cpu().numpy().copy()


def capture(
    model: torch.nn.Module, tokenizer: Any, text: str, first: int, tokens: int, more: int
) -> TokenSteps:
    """Let the model read up to `first + tokens` tokens, the last `more` of which it generates; the
    steps from token `first` on. Raises MoEColabError for a model that mc.load did not make, without
    a tokenizer or a text, for a text that ends before token `first`, and while a chat answers."""
    offload = offload_of(model, "only a trace or a model of mc.load() can be shown step by step")
    if tokenizer is None or not isinstance(text, str):
        raise MoEColabError(
            "a model needs a tokenizer and a text to read: mc.stepper(model, tokenizer, text). A "
            "trace needs neither."
        )
    most = first + tokens
    ids = ids_of(tokenizer, text, most)
    with exclusive(offload), listening(model, offload, first) as (listeners, policies):
        trace = record_ids(
            model,
            tokenizer,
            ids,
            label="",
            prompt=1,
            more=min(more, most - ids.shape[1]),
            speculate=offload.speculate or SPECULATE,
            lookahead=offload.lookahead,
            sources=[offload.guess_from],
        )
    if len(trace.tokens) <= first:
        raise MoEColabError(f"the text ends before token {first}: there are {len(trace.tokens)}.")
    measures = policies[0].measures
    history = CacheHistory(
        policy="whole layer" if offload.whole_layer else offload.policy,
        slots=tuple(policy.cache.slots for policy in policies),
        measures=measures,
        rule=LOWEST if measures else "",
        snapshots=[policy.snapshots for policy in policies],
        pinned=tuple(tuple(sorted(pinned)) for pinned in offload.pool.pinned),
        recorded=True,
    )
    captured = [listener.captured for listener in listeners]
    return TokenSteps(trace, history, first, len(trace.tokens), captured)


@contextlib.contextmanager
def listening(
    model: torch.nn.Module, offload: Offload, first: int
) -> Iterator[tuple[list[CaptureListener], list[RecordingPolicy]]]:
    """A listener at every MoE layer and a recording policy in every cache, for a while."""
    layers = [module.moe_colab_layer for _, module in families.experts_modules(model)]
    with offload.runtime.lock:
        offload.pool.check_open()
        caches = list(offload.pool.caches)
        policies = [watch(cache) for cache in caches]
        listeners = [CaptureListener(first) for _ in layers]
        for layer, listener in zip(layers, listeners, strict=True):
            layer.listener = listener
    try:
        yield listeners, policies
    finally:
        with offload.runtime.lock:
            for layer, cache, policy in zip(layers, caches, policies, strict=True):
                layer.listener, cache.policy = None, policy.policy
