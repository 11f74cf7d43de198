"""The best that any cache of so many slots could have done, by one that knows what comes.

Belady, "A study of replacement algorithms for a virtual-storage computer", 1966: what is needed
last goes first. Knows one layer's accesses, all of them; only a replay can.
"""

from __future__ import annotations

from collections.abc import Sequence

from .layer_cache import Decision

NEVER = float("inf")


class BeladyCache:
    """Answers like a LayerCache, and is asked the accesses of `needed`, one after the other.

    An access needs several experts at once, and loads each that is missing. Without `bypass` those
    experts are kept as far as they have room, and of the others those that are needed soonest; with
    it, any of all may be kept. Under either rule nothing loads less: the usual exchange argument
    holds, as the choice after an access is free but for what that access needs. A policy may have
    to do worse where an access needs more experts than there are slots: its last one stays.
    """

    def __init__(self, needed: Sequence[Sequence[int]], slots: int, bypass: bool = False):
        self.slots, self.bypass = slots, bypass
        self.resident: set[int] = set()
        self.coming = next_uses(needed)
        self.next: dict[int, float] = {}
        self.step = 0

    def access(self, needed: Sequence[int], tokens=None, loading=()) -> list[Decision]:
        """The steps of one forward, hits first. A load that does not stay passes through a slot
        before the others come, or is run from scratch after them."""
        self.next.update(zip(needed, self.coming[self.step], strict=True))
        self.step += 1
        hits = [Decision(expert, hit=True) for expert in needed if expert in self.resident]
        missing = [expert for expert in needed if expert not in self.resident]
        if not missing:
            return hits
        kept = self._keep(needed)
        scratch = self.bypass or kept == self.resident  # or there is no slot to pass through
        missing.sort(key=lambda expert: (expert in kept) != scratch)
        admitted = [expert for expert in missing if expert in kept or not scratch]
        leavers = sorted(self.resident - kept) + [e for e in admitted if e not in kept]
        free = len(admitted) - len(leavers)  # the first ones find an empty slot
        victims = dict(zip(admitted[free:], leavers, strict=True))
        self.resident = kept
        return hits + [
            Decision(e, hit=False, victim=victims.get(e), keep=e in admitted) for e in missing
        ]

    def _keep(self, needed: Sequence[int]) -> set[int]:
        """Who lies in the slots after an access."""
        if self.bypass or len(needed) > self.slots:
            first, others = set(), {*needed, *(self.resident if self.bypass else ())}
        else:
            first, others = set(needed), self.resident - set(needed)
        soonest = sorted(others, key=lambda expert: (self.next[expert], expert))
        return first.union(soonest[: self.slots - len(first)])


def next_uses(needed: Sequence[Sequence[int]]) -> list[list[float]]:
    """For every access and each of its experts: the number of the next access that needs it."""
    out: list[list[float]] = []
    after: dict[int, float] = {}
    for number in reversed(range(len(needed))):
        out.append([after.get(expert, NEVER) for expert in needed[number]])
        after.update(dict.fromkeys(needed[number], number))
    return out[::-1]
