"""Where tokens were sent: how evenly, by what text, from layer to layer, and why.

Knows what choices.py reads out of a trace; intervals are those of intervals.py, over blocks of 32
consecutive tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ...cache.stats import PHASES
from ...errors import MoEColabError
from ...trace import Trace
from ...trace.arrays import NOBODY, softmax
from .choices import (
    by_token,
    check_layer,
    check_place,
    chosen,
    need_logits,
    sent,
    tokens_of,
)
from .intervals import Shares, shares

if TYPE_CHECKING:
    import pandas

SHARES = ["tokens", "of", "share", "low", "high", "uniform"]


def activations(
    trace: Trace, phase: str | None = None, top_k: int | None = None
) -> pandas.DataFrame:
    """How many tokens every expert was sent: one row for each layer and expert, with the columns
    layer, expert, tokens, of (tokens that this layer sent anywhere), share (tokens / of), low and
    high (its 95 % interval) and uniform (the share that an even router would give each).

    phase: "prompt" or "decode"; both, if not said. top_k: the router's first choices only, or more
    of them than it made: see `chosen`. Raises MoEColabError for a setting that cannot be.
    """
    kept, rows = tokens_of(trace, phase), []
    for layer in range(trace.layers):
        went, block = sent(trace, layer, kept, top_k)
        own = counted(shares(went, block), went)
        rows += [(layer, expert, *row) for expert, row in enumerate(own)]
    return frame(rows, "layer", "expert")


def specialisation(
    trace: Trace, layer: int = 0, phase: str | None = None, top_k: int | None = None
) -> pandas.DataFrame:
    """The same for one layer and every label of the trace: a domain, a language. One row for each
    expert and label, with the columns layer, expert, label, tokens, of, share, low, high, uniform.

    Raises MoEColabError for a setting that cannot be.
    """
    check_layer(trace, layer)
    kept, of_label, rows = tokens_of(trace, phase), by_token(trace, "label"), []
    for number, label in enumerate(trace.labels):
        went, block = sent(trace, layer, kept & (of_label == number), top_k)
        if len(went):
            own = counted(shares(went, block), went)
            rows += [(layer, expert, label, *row) for expert, row in enumerate(own)]
    found = frame(rows, "layer", "expert", "label")
    return found.sort_values("expert", kind="stable", ignore_index=True)


def transitions(
    trace: Trace, layer: int = 0, hops: int = 1, phase: str | None = None
) -> pandas.DataFrame:
    """Where the tokens of an expert go in the next layer: one row for each expert of a layer and
    each of the layer after it, with the columns

    layer, expert, next (expert of layer + 1), tokens (sent to both), of (sent to `expert`), share
    (tokens / of), low, high, independent (the share of all tokens that are sent to `next`: what
    `share` would be if the two layers did not know of each other), lift (share / independent), flow
    (the share of all tokens that takes this way, where a token that is sent to k experts and then
    to n goes k * n ways, each with an equal part of it).

    hops: for how many layers, from `layer` on. In a trace of several labels some of the lift is
    theirs: two experts that both like French follow each other. `trace.only(label)` is free of it.
    Raises MoEColabError for a setting that cannot be.
    """
    import pandas as pd

    check_layer(trace, layer)
    if hops < 1 or layer + hops >= trace.layers:
        raise MoEColabError(
            f"{hops} steps from layer {layer} lead out of the model: its last MoE layer is "
            f"{trace.layers - 1}."
        )
    kept, rows = tokens_of(trace, phase), []
    for at in range(layer, layer + hops):
        rows += [(at, *row) for row in ways(trace, at, kept)]
    names = ["layer", "expert", "next", "tokens", "of", "share", "low", "high"]
    return pd.DataFrame(rows, columns=[*names, "independent", "lift", "flow"])


def ways(trace: Trace, layer: int, kept: np.ndarray) -> Iterator[tuple]:
    """The rows of `transitions` between a layer and the next, but for the layer's number."""
    both = kept & (trace.routing[:, layer : layer + 2] != NOBODY).any(axis=2).all(axis=1)
    if not both.any():
        raise MoEColabError(f"no token of this trace was sent on from layer {layer} to the next.")
    here, block = sent(trace, layer, both)
    there, _ = sent(trace, layer + 1, both)
    independent = there.mean(axis=0)
    parts = there / there.sum(axis=1, keepdims=True)
    for expert, own in enumerate(here.T):
        found = shares(there[own], block[own])
        lift = np.divide(
            found.share, independent, out=np.full_like(independent, np.nan), where=independent > 0
        )
        flow = (parts[own] / here[own].sum(axis=1, keepdims=True)).sum(axis=0) / len(here)
        columns = (found.tokens, found.share, found.low, found.high, independent, lift, flow)
        for after, (tokens, *rest) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            yield (expert, after, tokens, found.of, *rest)


def tokens(
    trace: Trace, layer: int = 0, first: int = 0, count: int = 48, top_k: int | None = None
) -> pandas.DataFrame:
    """The text and where it went: one row for each token, in the order in which they were read, and
    rank (0: the router's first choice), with the columns place (of the token in the trace), phase,
    label, text ("" where it is not known), layer, rank, expert (-1: none) and probability (the
    softmax over the layer's logits; not a number where the trace does not hold them).

    first, count: the first token, and how many at the most. Raises MoEColabError for a setting that
    cannot be, or where there is no such token.
    """
    import pandas as pd

    check_layer(trace, layer)
    check_place(trace, first)
    places = np.arange(first, min(first + count, len(trace.tokens)))
    experts = chosen(trace, layer, top_k)[places]
    odds = np.take_along_axis(
        softmax(trace.logits[places, layer, : trace.experts[layer]].astype(np.float64)),
        experts.clip(min=0), axis=1,
    )  # fmt: skip
    phases, labels = by_token(trace, "phase"), by_token(trace, "label")
    rows = [
        (
            *(place, PHASES[phases[place]], trace.labels[labels[place]], trace.text_of(place)),
            *(layer, rank, int(expert), float(odd) if expert != NOBODY else np.nan),
        )
        for place, *choices in zip(places.tolist(), experts, odds, strict=True)
        for rank, (expert, odd) in enumerate(zip(*choices, strict=True))
    ]
    names = ["place", "phase", "label", "text", "layer", "rank", "expert", "probability"]
    return pd.DataFrame(rows, columns=names)


def router(trace: Trace, place: int, layer: int = 0, top_k: int | None = None) -> pandas.DataFrame:
    """What one router said to one token: one row for each expert of the layer, with the columns
    expert, logit, probability (the softmax over all experts), rank (0: the first choice; -1: not
    chosen), weight (the probability's part in those of the chosen: what Mixtral multiplies the
    expert's output with; other families differ), uniform (1 / experts).

    place: of the token in the trace. Raises MoEColabError for a setting that cannot be, or where
    the trace does not hold the router's logits.
    """
    import pandas as pd

    check_layer(trace, layer)
    check_place(trace, place)
    need_logits(trace, layer, "what its router said cannot be shown")
    logits = trace.logits[place, layer, : trace.experts[layer]].astype(np.float64)
    odds, ranks = softmax(logits), np.full(len(logits), -1)
    experts = [e for e in chosen(trace, layer, top_k)[place].tolist() if e != NOBODY]
    ranks[experts] = np.arange(len(experts))
    weights = np.where(ranks >= 0, odds, 0)
    columns = {"expert": np.arange(len(logits)), "logit": logits, "probability": odds}
    columns |= {"rank": ranks, "weight": weights / max(weights.sum(), 1e-30)}
    return pd.DataFrame(columns | {"uniform": 1 / len(logits)})


def counted(found: Shares, went: np.ndarray) -> Iterator[tuple]:
    """The columns SHARES, expert by expert."""
    uniform = went.sum() / went.size if went.size else np.nan
    columns = (found.tokens, found.share, found.low, found.high)
    for tokens, *rest in zip(*(column.tolist() for column in columns), strict=True):
        yield (tokens, found.of, *rest, float(uniform))


def frame(rows: list[tuple], *names: str) -> pandas.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows, columns=[*names, *SHARES])
