"""In which order files are downloaded and deleted for work that needs them.

Knows names and numbers only: what each group of jobs needs, and what is there already.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

ROOM = 2  # downloaded files on the disk at once, with the one that is on its way


@dataclass(frozen=True)
class Step:
    """Bring this file, when so many groups of jobs are done and not earlier."""

    name: str
    after: int


def plan(needs: Sequence[frozenset[str]], here: set[str]) -> tuple[deque[Step], list[set[str]]]:
    """How files are brought and deleted for groups of jobs that need them, one group after the
    other, some being `here`. [n] of the second: what is deleted when n groups are done. Never more
    than ROOM files are there, except while a group needs more. The one that makes room is the one
    whose next use is farthest, and it goes as soon as it has been used."""
    uses: dict[str, list[int]] = defaultdict(list)
    for now, names in enumerate(needs):
        for name in names:
            uses[name].append(now)

    def next_use(name: str, now: int) -> float:
        later = bisect_left(uses[name], now)
        return uses[name][later] if later < len(uses[name]) else math.inf

    steps, leaves = deque(), [set() for _ in range(len(needs) + 1)]
    held = dict.fromkeys(here, 0)  # what is there: how many groups were done when it had no use
    coming: set[str] = set()  # of these, what has its step
    gone: dict[str, int] = {}
    load = [0] * len(needs)  # how many files are there while a group is worked on
    for now, names in enumerate(needs):
        for name in sorted(held.keys() - names, key=lambda name: -next_use(name, now)):
            fits = len(held.keys() | names) <= max(ROOM, len(names))
            if fits and next_use(name, now) < math.inf:
                break
            gone[name] = held.pop(name)
            leaves[gone[name]].add(name)
            coming.discard(name)
            for group in range(gone[name], now):
                load[group] -= 1
        for name in sorted(names - coming):
            after = 0 if name in held else now
            while after > gone.get(name, 0) and load[after - 1] < ROOM:
                after -= 1
                load[after] += 1
            steps.append(Step(name, after))
        coming |= names
        held |= dict.fromkeys(names, now + 1)
        load[now] = len(held)
    return steps, leaves
