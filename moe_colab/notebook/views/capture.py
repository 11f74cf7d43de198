"""Listening to a model: it reads a text token by token, and every vector that its experts are given
and answer is kept.

Knows the engine's listeners and the pool's caches; what is heard goes to `moments`. What a model
says and counts does not depend on who listens.
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
from ...offload.handle import Offload
from ...offload.read_text import alone, ids_of, record_ids
from .token_steps import Computed, TokenSteps


class CaptureListener:
    """A Listener at one layer. Of every token from the number `first` on, in order, `heard` holds
    what was computed."""

    def __init__(self, first: int):
        self.first, self.seen = first, 0
        self.captured: list[Computed] = []
        self.outputs: dict[tuple[int, int], np.ndarray] = {}  # of this call, by token and expert

    def expert(self, expert: int, token: torch.Tensor, out: torch.Tensor) -> None:
        for number, row in zip(token.tolist(), on_host(out), strict=True):
            self.outputs[number, expert] = row

    def layer(self, hidden_states, top_k_index, top_k_weights, total) -> None:
        given = map(on_host, (hidden_states, top_k_weights, total))
        rows = zip(*given, top_k_index.tolist(), strict=True)
        for token, (x, weights, y, index) in enumerate(rows):
            if self.seen >= self.first:
                nobody = np.zeros_like(y)  # ids past the last expert
                outputs = [self.outputs.get((token, expert), nobody) for expert in index]
                self.captured.append(Computed(x, weights, np.stack(outputs), y))
            self.seen += 1
        self.outputs.clear()


def on_host(values: torch.Tensor) -> np.ndarray:
    """A copy, float32."""
    return values.detach().float().cpu().numpy().copy()


def capture(
    model: torch.nn.Module, tokenizer: Any, text: str, first: int, tokens: int, more: int
) -> TokenSteps:
    """Let the model read up to `first + tokens` tokens, its own `more` at the end among them; the
    moments from `first` on. Raises MoEColabError."""
    offload = getattr(model, "offload", None)
    if not isinstance(offload, Offload):
        raise MoEColabError(
            f"a model of mc.load() or a trace can be looked at step by step, and this is "
            f"{type(model).__name__}."
        )
    if tokenizer is None or not isinstance(text, str):
        raise MoEColabError(
            "a model needs something to read: mc.stepper(model, tokenizer, text). A trace needs "
            "neither."
        )
    room = first + tokens
    ids = ids_of(tokenizer, text, room)
    with alone(offload), captured(model, offload, first) as (ears, tellers):
        trace = record_ids(
            model,
            tokenizer,
            ids,
            label="",
            prompt=1,
            more=min(more, room - ids.shape[1]),
            speculate=offload.speculate or SPECULATE,
            lookahead=offload.lookahead,
            sources=[offload.guess_from],
        )
    if len(trace.tokens) <= first:
        raise MoEColabError(f"the text ends before token {first}: there are {len(trace.tokens)}.")
    measures = tellers[0].measures
    history = CacheHistory(
        policy="whole layer" if offload.whole_layer else offload.policy,
        slots=tuple(teller.cache.slots for teller in tellers),
        measures=measures,
        rule=LOWEST if measures else "",
        found=[teller.found for teller in tellers],
        pinned=tuple(tuple(sorted(pinned)) for pinned in offload.pool.pinned),
        recorded=True,
    )
    return TokenSteps(trace, history, first, len(trace.tokens), [ear.captured for ear in ears])


@contextlib.contextmanager
def captured(
    model: torch.nn.Module, offload: Offload, first: int
) -> Iterator[tuple[list[CaptureListener], list[RecordingPolicy]]]:
    """An ear at every layer and a teller in every cache, for a while."""
    layers = [module.moe_colab_layer for _, module in families.experts_modules(model)]
    with offload.lock:
        offload.pool.check_open()
        caches = list(offload.pool.caches)
        tellers = [watch(cache) for cache in caches]
        ears = [CaptureListener(first) for _ in layers]
        for layer, ear in zip(layers, ears, strict=True):
            layer.listener = ear
    try:
        yield ears, tellers
    finally:
        with offload.lock:
            for layer, cache, teller in zip(layers, caches, tellers, strict=True):
                layer.listener, cache.policy = None, teller.policy
