"""The experts in one layer's slots, and the decision for every access.

Knows policies and expert ids; knows no bytes and no devices. The pool carries the decisions out, a
replay only counts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import MoEColabError
from .policies import Policy, Tokens, class_name


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do for one needed expert: use the slot that holds it (`hit`), or load it: into the
    slot of `victim`, or into a free one if that is None. Without `keep` it is computed from a spare
    block and bypasses the slots."""

    expert: int
    hit: bool
    victim: int | None = None
    keep: bool = True


class LayerCache:
    """The experts in one layer's slots. It decides and moves nothing; the same accesses give the
    same decisions, whenever the bytes arrive."""

    def __init__(self, policy: Policy, slots: int):
        self.policy = policy
        self.slots = 0 if policy.keeps_nothing else slots
        self.resident: set[int] = set()

    def access(self, needed: Sequence[int], tokens: Tokens | None = None) -> list[Decision]:
        """Decide one forward, in the order of computation: hits ascending, then misses ascending.

        needed: the distinct experts of this forward, ascending. A needed expert is evicted only
        when no other is left (a *wave*), and then only after its own use.
        """
        self.policy.observe(list(needed), tokens)  # a copy: the policy may change it
        hits = [expert for expert in needed if expert in self.resident]
        misses = [expert for expert in needed if expert not in self.resident]
        return [Decision(expert, hit=True) for expert in hits] + [
            self._admit(expert, set(needed)) for expert in misses
        ]

    def reconcile(self, present: Iterable[int]) -> None:
        """After a failure: the slots hold `present`, whatever was decided before."""
        present = set(present)
        for expert in sorted(self.resident - present):
            self._leave(expert)
        for expert in sorted(present - self.resident):
            self._enter(expert)

    def _admit(self, expert: int, spared: set[int]) -> Decision:
        """Give `expert` a slot. One of `spared` leaves only if no other expert can."""
        victim = None
        if self.slots == 0:
            return Decision(expert, hit=False, keep=False)
        if len(self.resident) >= self.slots:
            candidates = sorted(self.resident - spared or self.resident)
            answer = self.policy.victim(list(candidates), expert)
            if answer == expert:
                return Decision(expert, hit=False, keep=False)
            if answer not in candidates:
                raise MoEColabError(
                    f"policy {class_name(self.policy)} answered {answer!r}: victim() must "
                    f"return one of its candidates {candidates} or the newcomer {expert}."
                )
            victim = candidates[candidates.index(answer)]  # an int, whatever type was returned
            self._leave(victim)
        self._enter(expert)
        return Decision(expert, hit=False, victim=victim)

    def _enter(self, expert: int) -> None:
        self.resident.add(expert)
        self.policy.admit(expert)

    def _leave(self, expert: int) -> None:
        self.resident.discard(expert)
        self.policy.evict(expert)
