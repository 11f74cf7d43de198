"""Routers' choices as arrays: the experts of every token, and the blocks of text.

Knows a trace's routing and logits, and checks arguments; counts nothing.

Legend: N tokens, k choices of each, E experts of the layer.
"""

from __future__ import annotations

import numpy as np

from ...cache.stats import PHASES
from ...errors import MoEColabError
from ...trace import Trace
from ...trace.arrays import NO_EXPERT

# Tokens. In the shipped trace, shares of such blocks vary as if half the tokens were independent;
# of longer blocks there are too few.
BLOCK = 32


def chosen(trace: Trace, layer: int, top_k: int | None = None) -> np.ndarray:
    """int [N, k]: the experts of every token in the router's order, -1 for none. A smaller top_k
    than recorded takes the first choices; a larger one adds those with the next highest logits,
    while the layer's input stays the recorded one. Raises MoEColabError for a top_k that cannot be,
    or for a larger one without logits."""
    routing, experts = trace.routing[:, layer], trace.experts[layer]
    k = routing.shape[1] if top_k is None else top_k
    if not 1 <= k <= experts:
        raise MoEColabError(f"top_k must be 1 to {experts}, the experts of layer {layer}, not {k}.")
    if k <= routing.shape[1]:
        return routing[:, :k].astype(np.int64)
    need_logits(trace, layer, f"the choices after its first {routing.shape[1]} are not known")
    order = trace.logits[:, layer, :experts].astype(np.float64)
    first = routing.astype(np.int64)
    token, rank = np.nonzero(first != NO_EXPERT)
    order[token, first[token, rank]] = np.inf  # those come first, in their own order
    rest = np.argsort(-order, axis=1, kind="stable")
    have = (first != NO_EXPERT).sum(axis=1, keepdims=True)
    ranks = np.arange(k)
    padded = np.pad(first, ((0, 0), (0, k - first.shape[1])), constant_values=NO_EXPERT)
    return np.where(have == 0, NO_EXPERT, np.where(ranks < have, padded, rest[:, :k]))


def sent(
    trace: Trace, layer: int, kept: np.ndarray, top_k: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(bool [n, E], int [n]): the experts and the block of each token in the mask `kept` that this
    layer sent to any expert."""
    experts = chosen(trace, layer, top_k)
    kept = kept & (experts != NO_EXPERT).any(axis=1)
    routed = np.zeros((int(kept.sum()), trace.experts[layer] + 1), bool)
    np.put_along_axis(routed, experts[kept], True, axis=1)  # -1: the last column
    return routed[:, :-1], blocks(trace)[kept]


def blocks(trace: Trace) -> np.ndarray:
    """int [N]: the number of each token's block, up to BLOCK consecutive tokens of a sequence."""
    length, past = by_token(trace, "length"), by_token(trace, "past")
    place = np.arange(len(trace.tokens)) - trace.bounds[trace.step_of]
    rows, position = place // length, past + place % length
    keys = np.stack([by_token(trace, "sequence"), rows, position // BLOCK])
    return np.unique(keys, axis=1, return_inverse=True)[1].reshape(-1)


def by_token(trace: Trace, column: str) -> np.ndarray:
    """A column of the trace's forwards for every token [N]."""
    return trace.forwards[column][trace.step_of]


def tokens_of(trace: Trace, phase: str | None) -> np.ndarray:
    """bool [N]: the tokens of a phase. Raises MoEColabError where there is none."""
    if phase not in (None, *PHASES):
        raise MoEColabError(f"phase must be {' or '.join(map(repr, PHASES))}, not {phase!r}.")
    kept = np.ones(len(trace.tokens), bool)
    if phase is not None:
        kept = by_token(trace, "phase") == PHASES.index(phase)
    if not kept.any():
        raise MoEColabError(f"there are no {phase or ''} tokens in this trace: record some.")
    return kept


def check_layer(trace: Trace, layer: int) -> None:
    if layer not in range(trace.layers):
        raise MoEColabError(f"layer must be 0 to {trace.layers - 1}, not {layer!r}.")


def check_place(trace: Trace, place: int) -> None:
    if place not in range(len(trace.tokens)):
        raise MoEColabError(
            f"there is no token {place!r} in this trace: it has {len(trace.tokens):,}, from 0 on."
        )


def need_logits(trace: Trace, layer: int, so: str) -> None:
    if not trace.holds_logits(layer):
        raise MoEColabError(
            f"this trace does not hold the router's logits of MoE layer {layer}, so {so}: record "
            "one with mc.record."
        )
