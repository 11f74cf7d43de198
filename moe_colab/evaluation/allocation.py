"""Allocation of a budget of bytes: one option for every part, so that they lose the least together.

Knows bytes and losses; knows no bits and no model. This is a multiple-choice knapsack (Kellerer,
Pferschy and Pisinger 2004, "Knapsack Problems", chapter 11), solved part by part: only sums that
no other beats in both bytes and loss (the Pareto front) are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from ..errors import MoEColabError
from ..units import human

MOST_SUMS = 3000


@dataclass(frozen=True)
class Option:
    """One choice for a part: its bytes, and its loss, a number that adds up over parts."""

    choice: Any
    nbytes: int
    loss: float


class Sum(NamedTuple):
    """The bytes and loss of the options chosen so far; `last` is the newest, `before` the rest."""

    nbytes: int
    loss: float
    last: Option | None
    before: Sum | None


def best_options(
    parts: Sequence[Sequence[Option]], budget: int, most_sums: int = MOST_SUMS
) -> tuple[Option, ...]:
    """One option of every part, together at most `budget` bytes, with the least sum of losses; of
    equal ones, the smallest. Exact while the Pareto front has at most `most_sums` sums; a longer
    one is thinned out evenly, and the result may lose a little more, but is never larger. Raises
    MoEColabError where even the smallest options are too large."""
    smallest = [min(option.nbytes for option in options) for options in parts]
    rest = [*accumulate(reversed(smallest), initial=0)][::-1]  # rest[i]: least bytes from part i on
    if rest[0] > budget:
        raise MoEColabError(
            f"{human(budget)} are too few: with the smallest option of every part it takes "
            f"{human(rest[0])}; allow more bytes, or formats of fewer bits."
        )
    sums = [Sum(0, 0.0, None, None)]
    for number, options in enumerate(parts):
        front = pareto_front(options)
        longer = (
            Sum(before.nbytes + option.nbytes, before.loss + option.loss, option, before)
            for before in sums
            for option in front
            if before.nbytes + option.nbytes <= budget - rest[number + 1]
        )
        sums = thinned(pareto_front(longer), most_sums)
    options, total = [], sums[-1]
    while total.before is not None:
        options.append(total.last)
        total = total.before
    return tuple(reversed(options))


def pareto_front(candidates: Iterable[Any]) -> list[Any]:
    """The candidates that no other beats in both bytes and loss: bytes rise, losses fall."""
    front: list[Any] = []
    for candidate in sorted(candidates, key=lambda one: (one.nbytes, one.loss)):
        if not front or candidate.loss < front[-1].loss:
            front.append(candidate)
    return front


def thinned(sums: list[Sum], most: int) -> list[Sum]:
    """At most `most` sums, evenly spread, with the first (it always leads to a result) and the last
    (it has the least loss)."""
    if len(sums) <= most:
        return sums
    return [sums[i * (len(sums) - 1) // (most - 1)] for i in range(most)]
