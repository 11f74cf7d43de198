"""Tables of routing: by expert, by text, from layer to layer, and a router's probabilities.

Knows the arrays of choices.py; intervals are those of intervals.py, over blocks of 32 consecutive
tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ...cache.stats import PHASES
from ...errors import MoEColabError
from ...trace import Trace
from ...trace.arrays import NO_EXPERT, softmax
from .choices import by_token, check_layer, check_place, chosen, need_logits, sent, tokens_of
from .intervals import shares

if TYPE_CHECKING:
    import pandas


def activations(
    trace: Trace, phase: str | None = None, top_k: int | None = None
) -> pandas.DataFrame:
    """The tokens of every expert: one row for each layer and expert, with the columns layer,
    expert, tokens, of (all tokens that this layer routed), share (tokens / of), low and high (its
    95 % interval) and uniform (the share under an even router).

    phase: "prompt" or "decode", by default both. top_k: fewer or more choices than recorded, see
    `chosen`. Raises MoEColabError for a setting that cannot be.
    """
    import pandas as pd

    kept = tokens_of(trace, phase)
    layers = range(trace.layers)
    frames = [expert_shares(*sent(trace, layer, kept, top_k), layer) for layer in layers]
    return pd.concat(frames, ignore_index=True)


def specialisation(
    trace: Trace, layer: int = 0, phase: str | None = None, top_k: int | None = None
) -> pandas.DataFrame:
    """The tokens of every expert of one layer, by label of the trace (a domain, a language): one
    row for each, with the columns layer, expert, label, tokens, of, share, low, high, uniform.

    Raises MoEColabError for a setting that cannot be.
    """
    import pandas as pd

    check_layer(trace, layer)
    kept, of_label = tokens_of(trace, phase), by_token(trace, "label")
    frames = []
    for number, label in enumerate(trace.labels):
        routed, block = sent(trace, layer, kept & (of_label == number), top_k)
        frames.append(expert_shares(routed, block, layer, label=label))
    frame = pd.concat(frames).query("of > 0")
    return frame.sort_values("expert", kind="stable", ignore_index=True)


def transitions(
    trace: Trace, layer: int = 0, hops: int = 1, phase: str | None = None
) -> pandas.DataFrame:
    """The experts of the next layer for the tokens of every expert: one row for each expert of a
    layer and each of the layer after it, with the columns

    layer, expert, next (expert of layer + 1), tokens (sent to both), of (sent to `expert`), share
    (tokens / of), low, high, independent (the share of all tokens sent to `next`, which `share`
    would be for independent layers), lift (share / independent), flow (the share of all tokens on
    this path; a token sent to k experts and then to n has k * n paths of equal parts).

    hops: the number of layers, from `layer` on. In a trace of several labels, part of the lift
    comes from them: two experts for French follow each other. `trace.only(label)` avoids this.
    Raises MoEColabError for a setting that cannot be.
    """
    import pandas as pd

    check_layer(trace, layer)
    if hops < 1 or layer + hops >= trace.layers:
        raise MoEColabError(
            f"{hops!r} hops from layer {layer} do not end at a later MoE layer: hops must be 1 or "
            f"more, and the last MoE layer is {trace.layers - 1}."
        )
    kept = tokens_of(trace, phase)
    frames = [frame for at in range(layer, layer + hops) for frame in paths(trace, at, kept)]
    return pd.concat(frames, ignore_index=True)


def paths(trace: Trace, layer: int, kept: np.ndarray) -> Iterator[pandas.DataFrame]:
    """The rows of `transitions` between a layer and the next, for one expert after the other."""
    import pandas as pd

    both = kept & (trace.routing[:, layer : layer + 2] != NO_EXPERT).any(axis=2).all(axis=1)
    if not both.any():
        raise MoEColabError(f"no token of this trace was sent on from layer {layer} to the next.")
    here, block = sent(trace, layer, both)
    there, _ = sent(trace, layer + 1, both)
    independent = there.mean(axis=0)
    parts = there / there.sum(axis=1, keepdims=True)
    for expert, own in enumerate(here.T):
        sent_on = shares(there[own], block[own])
        with np.errstate(invalid="ignore"):  # an expert that gets no token has no lift
            lift = sent_on.share / independent
        flow = (parts[own] / here[own].sum(axis=1, keepdims=True)).sum(axis=0) / len(here)
        columns = {"layer": layer, "expert": expert, "next": np.arange(len(lift)), **vars(sent_on)}
        yield pd.DataFrame(columns | {"independent": independent, "lift": lift, "flow": flow})


def tokens(
    trace: Trace, layer: int = 0, first: int = 0, count: int = 48, top_k: int | None = None
) -> pandas.DataFrame:
    """The text with its experts: one row for each token, in the order of the text, and rank (0: the
    router's first choice), with the columns place (the token's number in the trace), phase, label,
    text ("" where unknown), layer, rank, expert (-1: none) and probability (the softmax over the
    layer's logits; nan where unknown).

    first, count: the first token, and the largest number of tokens. Raises MoEColabError for a
    setting that cannot be, or for a token that does not exist.
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
            *(layer, rank, int(expert), float(odd) if expert != NO_EXPERT else np.nan),
        )
        for place, *choices in zip(places.tolist(), experts, odds, strict=True)
        for rank, (expert, odd) in enumerate(zip(*choices, strict=True))
    ]
    names = ["place", "phase", "label", "text", "layer", "rank", "expert", "probability"]
    return pd.DataFrame(rows, columns=names)


def router(trace: Trace, place: int, layer: int = 0, top_k: int | None = None) -> pandas.DataFrame:
    """The output of one router for one token: one row for each expert of the layer, with the
    columns expert, logit, probability (the softmax over all experts), rank (0: the first choice;
    -1: not chosen), weight (the probability divided by the sum over the chosen experts, as in
    Mixtral; other families differ), uniform (1 / experts).

    place: the token's number in the trace. Raises MoEColabError for a setting that cannot be, or
    where the trace does not hold the router's logits.
    """
    import pandas as pd

    check_layer(trace, layer)
    check_place(trace, place)
    need_logits(trace, layer, "its output cannot be shown")
    logits = trace.logits[place, layer, : trace.experts[layer]].astype(np.float64)
    odds, ranks = softmax(logits), np.full(len(logits), -1)
    experts = [e for e in chosen(trace, layer, top_k)[place].tolist() if e != NO_EXPERT]
    ranks[experts] = np.arange(len(experts))
    weights = np.where(ranks >= 0, odds, 0)
    columns = {"expert": np.arange(len(logits)), "logit": logits, "probability": odds}
    columns |= {"rank": ranks, "weight": weights / max(weights.sum(), 1e-30)}
    return pd.DataFrame(columns | {"uniform": 1 / len(logits)})


def expert_shares(
    routed: np.ndarray, block: np.ndarray, layer: int, **label: str
) -> pandas.DataFrame:
    """One row per expert for the tokens routed [n, E] by a layer, in blocks [n]."""
    import pandas as pd

    columns = {"layer": layer, "expert": np.arange(routed.shape[1]), **label}
    columns |= vars(shares(routed, block))
    uniform = routed.sum() / routed.size if routed.size else np.nan
    return pd.DataFrame(columns | {"uniform": uniform})
