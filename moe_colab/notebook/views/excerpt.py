"""An excerpt of a trace: the tokens that are shown, and the steps that are replayed for them.

Knows the arrays of a trace; knows no cache and no page.

Legend: n tokens that are shown, N tokens of these steps, L MoE layers, K top-k, E experts of the
widest layer, R steps with tokens that are not shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...cache.settings import is_whole
from ...errors import MoEColabError
from ...trace import Trace
from ...trace.arrays import NO_EXPERT, softmax
from ...trace.frames import lookup, routed


@dataclass(frozen=True, eq=False)
class Excerpt:
    """trace: the steps, with all their tokens. shown int64 [n]: numbers of the shown tokens, all of
    one row. first: the first one's number in its row. begins: whether these are the trace's first
    steps."""

    trace: Trace
    shown: np.ndarray
    first: int
    begins: bool

    @property
    def steps(self) -> np.ndarray:
        """int64 [n]: the step of each shown token."""
        return self.trace.step_of[self.shown]

    @property
    def routing(self) -> np.ndarray:
        """int16 [n, L, K]: the experts of each shown token."""
        return self.trace.routing[self.shown]

    def probabilities(self) -> np.ndarray:
        """float32 [n, L, K]: the softmax of the router's logits at each choice; nan: not known."""
        logits = self.trace.logits[self.shown].astype(np.float32)
        with np.errstate(invalid="ignore"):  # without any logits the softmax is nan
            shares = softmax(np.where(np.isnan(logits), -np.inf, logits))
        place = np.maximum(self.routing, 0).astype(np.int64)
        chosen = np.take_along_axis(shares, place, -1)
        return np.where(self.routing != NO_EXPERT, chosen, np.nan).astype(np.float32)

    def outcomes(self) -> np.ndarray:
        """uint8 [n, L, K]: the recorded outcome of each choice's access, 1 + its number in
        arrays.OUTCOMES; 0: not known, or no choice."""
        place, key = routed(self.trace)
        access, known = lookup(self.trace, self.trace.accesses, self.trace.accesses["step"], key)
        out = np.zeros(self.trace.routing.shape, np.uint8)
        out[place] = np.where(known, access["outcome"] + 1, 0)
        return out[self.shown]

    def first_uses(self) -> np.ndarray:
        """bool [n, L, K]: whether this is the first token of its step that needs this expert. The
        cost of the access counts here; the other tokens share it."""
        place, key = routed(self.trace)
        first = np.unique(key, return_index=True)[1]
        out = np.zeros(self.trace.routing.shape, bool)
        out[tuple(axis[first] for axis in place)] = True
        return out[self.shown]

    def rest(self) -> tuple[np.ndarray, np.ndarray]:
        """The experts of tokens that are not shown: (bits uint8 [R, L, bytes of E bits], the lowest
        one first; int64 [R], the steps)."""
        hidden = np.ones(len(self.trace.tokens), bool)
        hidden[self.shown] = False
        steps, place = np.unique(self.trace.step_of[hidden], return_inverse=True)
        routing = self.trace.routing[hidden]
        token, layer, rank = np.nonzero(routing != NO_EXPERT)
        needed = np.zeros((len(steps), self.trace.layers, max(self.trace.experts)), bool)
        needed[place[token], layer, routing[token, layer, rank]] = True
        return np.packbits(needed, axis=-1, bitorder="little"), steps


def stream_of(trace: Trace, row: int) -> np.ndarray:
    """int64: the numbers of one row's tokens in the trace. Raises MoEColabError where there are
    none."""
    rows = int(trace.forwards["rows"].max(initial=0))
    if not rows or not len(trace.tokens):
        raise MoEColabError("there is nothing in this trace: record a generation first.")
    if not is_whole(row) or not 0 <= row < rows:
        raise MoEColabError(f"row must be 0 to {rows - 1}, a row of the batch, not {row!r}.")
    own = trace.forwards["rows"] > row
    lengths = trace.forwards["length"].astype(np.int64)[own]
    starts = trace.bounds[:-1][own] + row * lengths
    return np.concatenate([np.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)])


def excerpts(trace: Trace, row: int, first: int, tokens: int, most: int) -> Iterator[Excerpt]:
    """`tokens` tokens of a row from `first` on: with all earlier steps, unless these take more than
    `most` bytes, then without. Raises MoEColabError for a row or a first token that does not
    exist."""
    stream = stream_of(trace, row)
    if not is_whole(first) or not -len(stream) <= first < len(stream):
        raise MoEColabError(
            f"first must be 0 to {len(stream) - 1}, a token of this trace, not {first!r}."
        )
    first = int(first) % len(stream)
    shown = stream[first : first + tokens]
    begin, end = (np.searchsorted(trace.bounds, shown[[0, -1]], side="right") - 1).tolist()
    before = begin * trace.layers * (max(trace.experts) + 7) // 8
    for start in (0, begin) if begin and before <= most else (begin,):
        yield Excerpt(trace.between(start, end + 1), shown - trace.bounds[start], first, start == 0)
