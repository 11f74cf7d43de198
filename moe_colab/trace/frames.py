"""Pandas tables of a trace: one row per choice of a router, one row per guess.

Knows a trace's arrays; knows no cache and no figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cache.stats import PHASES
from .arrays import NO_EXPERT, OUTCOMES

if TYPE_CHECKING:
    import pandas


def choices(trace: Any) -> pandas.DataFrame:
    """The table of Trace.frame."""
    import pandas as pd

    (token, layer, rank), key = routed(trace)
    order = np.lexsort((rank, token, layer, trace.step_of[token]))
    token, layer, rank, key = (column[order] for column in (token, layer, rank, key))
    step, expert = trace.step_of[token], trace.routing[token, layer, rank]
    forward = trace.forwards[step]
    place = token - trace.bounds[step]  # among the tokens of its forward
    first = np.zeros(len(key), bool)
    first[np.unique(key, return_index=True)[1]] = True
    access, known = lookup(trace, trace.accesses, trace.accesses["step"], key)
    guess, named = lookup(trace, trace.guesses, meant_step(trace), key)
    own = known & first
    columns = {
        "step": step,
        "phase": category(forward["phase"], PHASES),
        "label": category(forward["label"], trace.labels),
        "sequence": forward["sequence"],
        "row": place // forward["length"],
        "position": forward["past"] + place % forward["length"],
        "token": trace.tokens[token],
        "layer": layer,
        "rank": rank,
        "expert": expert,
        "logit": trace.logits[token, layer, expert].astype(np.float32),
        "guessed": category(guess["source"], trace.sources, named),
        "outcome": category(access["outcome"], OUTCOMES, known),
        "first": first,
        "bytes": np.where(own, access["bytes"], 0),
        "seconds": np.where(own, access["wait"], 0),
        "began": forward["began"] + trace.spoke[step, layer],
    }
    frame = pd.DataFrame(columns)
    if trace.texts:
        text = frame["token"].map(dict(trace.texts))
        frame.insert(frame.columns.get_loc("token") + 1, "text", text)
    return frame


def guesses(trace: Any) -> pandas.DataFrame:
    """The table of Trace.guess_frame."""
    import pandas as pd

    meant = meant_step(trace)
    rows = trace.guesses[meant < trace.steps]
    key = keys(trace, meant[meant < trace.steps], rows["layer"], rows["expert"])
    right = np.isin(key, routed(trace)[1])
    names = ("step", "at", "layer", "expert", "place", "probability")
    frame = pd.DataFrame({name: rows[name] for name in names})
    return frame.assign(source=category(rows["source"], trace.sources), right=right)


def meant_step(trace: Any) -> np.ndarray:
    """For each guess the step that it was made for: its own, or the next."""
    made = trace.guesses["step"].astype(np.int64)
    return made + (trace.guesses["layer"] <= trace.guesses["at"])


def routed(trace: Any) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """The places (token, layer, rank) of all choices in the routing, token after token; and the key
    of each one's (step, layer, expert)."""
    token, layer, rank = np.nonzero(trace.routing != NO_EXPERT)
    expert = trace.routing[token, layer, rank]
    return (token, layer, rank), keys(trace, trace.step_of[token], layer, expert)


def keys(trace: Any, step, layer, expert) -> np.ndarray:
    """One number per (step, layer, expert)."""
    wide = np.asarray(step, np.int64) * trace.layers + layer
    return wide * (max(trace.experts) + 1) + expert


def lookup(
    trace: Any, rows: np.ndarray, step: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For every key in `wanted` the first row that has it, and whether there is one."""
    if len(rows) == 0:
        return np.zeros(len(wanted), rows.dtype), np.zeros(len(wanted), bool)
    present, where = np.unique(keys(trace, step, rows["layer"], rows["expert"]), return_index=True)
    at = np.searchsorted(present, wanted).clip(max=len(present) - 1)
    return rows[where[at]], present[at] == wanted


def category(codes: np.ndarray, names: Sequence[str], known=True) -> pandas.Categorical:
    """The numbers as names; missing where `known` is false."""
    import pandas as pd

    codes = np.where(known, codes.astype(np.int32), -1)
    return pd.Categorical.from_codes(codes, categories=list(names))
