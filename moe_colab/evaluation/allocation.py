"""Which option for every part, so that all are small enough together and lose the least. Knows
bytes and losses; knows no bits and no model.

A multiple-choice knapsack (Kellerer, Pferschy and Pisinger 2004, "Knapsack Problems", chapter 11),
solved part after part: of all sums so far, only those are kept that no other beats in both bytes
and loss.
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
    """One way to keep a part: its bytes and what it loses, a number that adds up over parts."""

    choice: Any
    nbytes: int
    loss: float


class Sum(NamedTuple):
    nbytes: int
    loss: float
    last: Option | None
    before: Sum | None


def best_options(
    parts: Sequence[Sequence[Option]], budget: int, most_sums: int = MOST_SUMS
) -> tuple[Option, ...]:
    """One option of every part: of all ways that take `budget` bytes at most, the one with the
    least loss in sum; of equal ones, the smallest. Exact as long as no more than `most_sums` sums
    are unbeaten at once; past that they are thinned out evenly, and the result may be a little
    worse, never larger. Raises MoEColabError where even the smallest options are too large."""
    smallest = [min(option.nbytes for option in options) for options in parts]
    rest = [*accumulate(reversed(smallest), initial=0)][::-1]  # rest[i]: least bytes from part i on
    if rest[0] > budget:
        raise MoEColabError(
            f"{human(budget)} do not hold it: with the fewest bits of every part it takes "
            f"{human(rest[0])}; allow more bytes, or formats of fewer bits."
        )
    sums = [Sum(0, 0.0, None, None)]
    for number, options in enumerate(parts):
        room = budget - rest[number + 1]
        kept = unbeaten(options)
        longer = (
            Sum(one.nbytes + option.nbytes, one.loss + option.loss, option, one)
            for one in sums
            for option in kept
            if one.nbytes + option.nbytes <= room
        )
        sums = thinned(unbeaten(longer), most_sums)
    chosen, one = [], sums[-1]
    while one.before is not None:
        chosen.append(one.last)
        one = one.before
    return tuple(reversed(chosen))


def unbeaten(candidates: Iterable[Any]) -> list[Any]:
    """Those that nothing beats in both bytes and loss: bytes rise, losses fall."""
    kept: list[Any] = []
    for candidate in sorted(candidates, key=lambda one: (one.nbytes, one.loss)):
        if not kept or candidate.loss < kept[-1].loss:
            kept.append(candidate)
    return kept


def thinned(sums: list[Sum], most: int) -> list[Sum]:
    """At most `most` of them, evenly, the first and the last with them: the smallest always leads
    to an end, the last is the best there is."""
    if len(sums) <= most:
        return sums
    return [sums[place * (len(sums) - 1) // (most - 1)] for place in range(most)]
