"""The arrays of a trace: their columns, their checks, and how they are joined.

Legend: F forwards (steps), N tokens of all forwards (all rows), L MoE layers, K top-k, E experts
per layer (the most of any layer), A accesses, G guesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..cache.stats import PHASES

Arrays = dict[str, np.ndarray]

NO_EXPERT = -1  # in `routing`: no expert
OUTCOMES = ("hit", "speculative_hit", "late", "miss")

FORWARD = np.dtype(
    [
        ("phase", "u1"),  # of stats.PHASES
        ("rows", "i4"),
        ("length", "i4"),  # new tokens of each row
        ("past", "i4"),  # tokens that each row had before
        ("sequence", "i4"),  # number of the generation: a forward without past begins one
        ("label", "i4"),  # of the trace's labels
        ("began", "f8"),  # seconds since the recording began
    ]
)
ACCESS = np.dtype(
    [
        ("step", "i4"),
        ("layer", "i2"),
        ("expert", "i2"),
        ("outcome", "u1"),  # of OUTCOMES
        ("bytes", "i8"),  # of the demand load of a miss, else 0
        ("wait", "f4"),  # seconds that compute waited for it
    ]
)
GUESS = np.dtype(
    [
        ("step", "i4"),
        ("at", "i2"),  # the layer whose hidden state the guess is made from
        ("layer", "i2"),  # the guessed layer; in the next step if it is not after `at`
        ("expert", "i2"),
        ("place", "i2"),  # 0: the most likely
        ("probability", "f2"),
        ("source", "u1"),  # of the trace's sources
    ]
)
NAMES = ("forwards", "spoke", "tokens", "routing", "logits", "accesses", "guesses")


def blank(steps: int, tokens: int, layers: int, top_k: int, experts: int) -> Arrays:
    """The arrays of a trace in which nothing is known yet: no choices, logits, accesses or
    guesses."""
    return {
        "forwards": np.zeros(steps, FORWARD),
        "spoke": np.full((steps, layers), np.nan, np.float32),
        "tokens": np.full(tokens, -1, np.int32),
        "routing": np.full((tokens, layers, top_k), NO_EXPERT, np.int16),
        "logits": np.full((tokens, layers, experts), np.nan, np.float16),
        "accesses": np.empty(0, ACCESS),
        "guesses": np.empty(0, GUESS),
    }


def bounds(forwards: np.ndarray) -> np.ndarray:
    """int64 [F + 1]: forward f has tokens bounds[f] to bounds[f + 1]."""
    sizes = forwards["rows"].astype(np.int64) * forwards["length"]
    return np.concatenate([[0], np.cumsum(sizes)])


def check(arrays: Arrays, experts: Sequence[int], labels: int, sources: int) -> None:
    """Check a trace's arrays. Raises ValueError where they do not fit each other or the model,
    IndexError where one has too few dimensions."""
    F, L, N = len(arrays["forwards"]), len(experts), len(arrays["tokens"])
    K, E = arrays["routing"].shape[2], max(experts)
    shapes = {"spoke": (F, L), "routing": (N, L, K), "logits": (N, L, E)}
    for name, expected in blank(0, 0, L, K, E).items():
        array = arrays[name]
        if array.dtype != expected.dtype or array.shape != shapes.get(name, (len(array),)):
            raise ValueError(f"{name} is {array.dtype} {array.shape}")
    forwards, routing = arrays["forwards"], arrays["routing"]
    within(forwards["phase"], 0, len(PHASES))
    within(forwards["label"], 0, labels)
    for name in ("rows", "length", "past", "sequence"):
        within(forwards[name], 0, 2**31)
    if bounds(forwards)[-1] != N:
        raise ValueError("tokens are missing")
    for layer, count in enumerate(experts):
        within(routing[:, layer], NO_EXPERT, count)
    for rows in (arrays["accesses"], arrays["guesses"]):
        within(rows["step"], 0, F)
        within(rows["layer"], 0, L)
        within(rows["expert"], 0, np.array(experts)[rows["layer"]])
    within(arrays["accesses"]["outcome"], 0, len(OUTCOMES))
    within(arrays["guesses"]["at"], 0, L)
    within(arrays["guesses"]["source"], 0, sources)


def softmax(logits: np.ndarray) -> np.ndarray:
    """The softmax over the last axis, in the dtype of `logits`."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def within(values: np.ndarray, least: int, limit: Any) -> None:
    """Raises ValueError unless least <= values < limit."""
    if (values < least).any() or (values >= limit).any():
        raise ValueError("a number in it is out of range")


def take(arrays: Arrays, kept: np.ndarray) -> Arrays:
    """The forwards where the mask `kept` [F] is true, numbered from 0."""
    of_token = np.repeat(kept, np.diff(bounds(arrays["forwards"])))
    out = {name: arrays[name][of_token] for name in ("tokens", "routing", "logits")}
    out |= {name: arrays[name][kept] for name in ("forwards", "spoke")}
    number = np.cumsum(kept) - 1
    for name in ("accesses", "guesses"):
        rows = arrays[name][kept[arrays[name]["step"]]]
        rows["step"] = number[rows["step"]]
        out[name] = rows
    return out


def join(parts: Sequence[Arrays]) -> Arrays:
    """Join parts: steps, sequences and times continue where the part before ends."""
    parts = [{name: array.copy() for name, array in part.items()} for part in parts]
    step = sequence = 0
    time = 0.0
    widest = max(part["routing"].shape[2] for part in parts)
    for part in parts:
        forwards = part["forwards"]
        forwards["sequence"] += sequence
        forwards["began"] += time
        part["accesses"]["step"] += step
        part["guesses"]["step"] += step
        more = widest - part["routing"].shape[2]
        part["routing"] = np.pad(
            part["routing"], ((0, 0), (0, 0), (0, more)), constant_values=NO_EXPERT
        )
        if len(forwards):
            step += len(forwards)
            sequence, time = forwards["sequence"].max() + 1, forwards["began"].max()
    return {name: np.concatenate([part[name] for part in parts]) for name in NAMES}


def renumber(rows: np.ndarray, column: str, old: Sequence[str], new: Sequence[str]) -> np.ndarray:
    """The rows with a column of numbers in the names `old` changed to numbers in `new`."""
    rows = rows.copy()
    if len(rows):
        rows[column] = np.array([new.index(name) for name in old])[rows[column]]
    return rows
