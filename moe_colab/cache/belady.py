"""Belady's cache: the fewest loads that any policy could reach, because it knows the future.

Belady, "A study of replacement algorithms for a virtual-storage computer", 1966: evict the expert
that is needed last. Knows all accesses of one layer in advance, so only a replay can use it.
"""

from __future__ import annotations

from collections.abc import Sequence

from .layer_cache import Decision

NEVER = float("inf")


class BeladyCache:
    """Decides like a LayerCache, for the accesses of `needed` in this order.

    An access needs several experts at once and loads those that are missing. Without `bypass` it
    keeps them, as far as there are slots, and of the other residents those that are needed soonest;
    with it, it keeps those that are needed soonest of all. No rule of either kind loads less, by
    the usual exchange argument. A policy in a LayerCache may have to load more where an access
    needs more experts than there are slots, because its last expert is kept.
    """

    def __init__(self, needed: Sequence[Sequence[int]], slots: int, bypass: bool = False):
        self.slots, self.bypass = slots, bypass
        self.resident: set[int] = set()
        self.coming = next_uses(needed)
        self.next: dict[int, float] = {}
        self.step = 0

    def access(self, needed: Sequence[int], tokens=None, loading=()) -> list[Decision]:
        """Decide one forward, hits first. A load that is not kept uses a slot before the other
        loads, or a spare block after them."""
        self.next.update(zip(needed, self.coming[self.step], strict=True))
        self.step += 1
        hits = [Decision(expert, hit=True) for expert in needed if expert in self.resident]
        missing = [expert for expert in needed if expert not in self.resident]
        if not missing:
            return hits
        kept = self._keep(needed)
        use_spare = self.bypass or kept == self.resident  # or no slot is free for it
        missing.sort(key=lambda expert: (expert in kept) != use_spare)
        admitted = [expert for expert in missing if expert in kept or not use_spare]
        leaving = sorted(self.resident - kept) + [e for e in admitted if e not in kept]
        free = len(admitted) - len(leaving)  # the first ones take an empty slot
        victims = dict(zip(admitted[free:], leaving, strict=True))
        self.resident = kept
        return hits + [
            Decision(e, hit=False, victim=victims.get(e), keep=e in admitted) for e in missing
        ]

    def _keep(self, needed: Sequence[int]) -> set[int]:
        """The experts in the slots after an access."""
        if self.bypass or len(needed) > self.slots:
            first, others = set(), {*needed, *(self.resident if self.bypass else ())}
        else:
            first, others = set(needed), self.resident - set(needed)
        soonest = sorted(others, key=lambda expert: (self.next[expert], expert))
        return first.union(soonest[: self.slots - len(first)])


def next_uses(needed: Sequence[Sequence[int]]) -> list[list[float]]:
    """For each expert of every access: the number of the next access that needs it, or NEVER."""
    out: list[list[float]] = []
    after: dict[int, float] = {}
    for number in reversed(range(len(needed))):
        out.append([after.get(expert, NEVER) for expert in needed[number]])
        after.update(dict.fromkeys(needed[number], number))
    return out[::-1]
