"""What was counted of a trace last: where one setting moves and others stay, nothing is counted
twice.

Knows replays, timelines and hit rates, who count.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from .cache import PolicySpec
from .replays import Replay, replay
from .tables import hit_rates
from .timelines import Timeline, timeline
from .trace import Trace

MOST = 64  # results that are kept


class Counted:
    """A trace and its parts, each by its label (None: all of it)."""

    def __init__(self, trace: Trace):
        self.trace = trace
        self._kept: dict[tuple, Any] = {}

    def part(self, label: str | None) -> Trace:
        return self.trace if label is None else self._once(self.trace.only, label)

    def rates(self, label: str | None, policy: PolicySpec) -> list[dict]:
        """The hit rates of one policy with every number of slots: rows of tables.hit_rates."""
        return self._once(self._rates, label, policy)

    def replay(self, label: str | None, policy: PolicySpec, slots: int) -> Replay:
        return self._once(self._replay, label, policy, slots)

    def timeline(
        self,
        label: str | None,
        expert: float,
        policy: PolicySpec,
        slots: int,
        link: float,
        compute: float,
        guesses: int,
        lookahead: int,
        source: str,
    ) -> Timeline:
        """expert: MB; link: GB/s; compute: ms of a layer."""
        large = self._once(self._sized, label, round(1e6 * expert))
        speed = (link * 1e9, compute / 1e3)
        return self._once(_timeline, large, *speed, policy, slots, guesses, lookahead, source)

    # ------------------------------------------------------------------ inside
    def _rates(self, label: str | None, policy: PolicySpec) -> list[dict]:
        return hit_rates(self.part(label), [policy]).to_dict("records")

    def _replay(self, label: str | None, policy: PolicySpec, slots: int) -> Replay:
        return replay(self.part(label), policy, slots)

    def _sized(self, label: str | None, nbytes: int) -> Trace:
        return self.part(label).sized(nbytes)

    def _once(self, count: Callable, *of: Hashable) -> Any:
        """count(*of), or what it was when it was counted before."""
        key = (count, *of)
        if key not in self._kept:
            if len(self._kept) >= MOST:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = count(*of)
        return self._kept[key]


def _timeline(trace, link, compute, policy, slots, guesses, lookahead, source) -> Timeline:
    return timeline(
        trace, link, compute, policy, slots,
        speculate=guesses, lookahead=lookahead, guess_from=source,
    )  # fmt: skip
