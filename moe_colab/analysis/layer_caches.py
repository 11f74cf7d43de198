"""Every layer's cache, for the routing of a trace: who would stay.

Knows traces and policies, the very classes that run live. Knows no bytes but their number, no time
and no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat

import numpy as np

from ..cache.belady import BeladyCache
from ..cache.policies import KeepNothing, LayerCache, Policy, PolicySpec, Step, Tokens, make_policy
from ..cache.settings import check_pinned, check_slots
from ..cache.stats import PHASES, Counters
from ..errors import MoEColabError
from ..trace import Trace

OPTIMAL, OPTIMAL_BYPASS = "optimal", "optimal-bypass"


class LayerCaches:
    """Every layer's cache for any number of slots, and what it counts over the whole trace."""

    def __init__(
        self,
        trace: Trace,
        policy: PolicySpec,
        bypass: bool = False,
        whole_layer: bool = False,
        resident: Mapping[int, Sequence[int]] | None = None,
    ):
        self.trace, self.policy, self.whole_layer = trace, policy, whole_layer
        self.optimal = policy in (OPTIMAL, OPTIMAL_BYPASS)
        self.bypass = bypass or policy == OPTIMAL_BYPASS
        self.resident = check_pinned(resident or {}, trace.experts)
        self.phases = [PHASES[phase] for phase in trace.forwards["phase"].tolist()]
        if not self.optimal:
            make_policy(policy, trace.experts[0])

    def needed(self, layer: int) -> list[list[int]]:
        """What is asked for in every step."""
        if self.whole_layer:
            return [list(range(self.trace.experts[layer]))] * self.trace.steps
        return self.trace.needed(layer)

    def shown(self, layer: int) -> Iterator[Tokens | None]:
        """What the policy sees of every step: nothing, if it does not ask for the logits."""
        asks = not self.optimal and make_policy(self.policy, self.trace.experts[layer])
        if getattr(asks, "needs_logits", False) and not self.whole_layer:
            return self.trace.shown(layer)
        return repeat(None)

    def make(self, layer: int, slots: int) -> LayerCache | BeladyCache:
        """The cache of a layer, empty; experts at home on the device are not its concern."""
        experts = self.trace.experts[layer]
        if self.whole_layer:
            return LayerCache(KeepNothing(experts), slots)
        if self.optimal:
            pinned = set(self.resident[layer])
            asked = [[e for e in needed if e not in pinned] for needed in self.needed(layer)]
            return BeladyCache(asked, slots, self.bypass)
        policy = make_policy(self.policy, experts, layer)
        return LayerCache(Bypassing(policy) if self.bypass else policy, slots)

    def count(self, layer: int, slots: int) -> dict[str, Counters]:
        """What is counted over all steps, by phase."""
        books = {phase: Counters() for phase in PHASES}
        cache, pinned = self.make(layer, slots), set(self.resident[layer])
        accesses = zip(self.phases, self.needed(layer), self.shown(layer), strict=False)
        for phase, needed, tokens in accesses:
            asked = [e for e in needed if e not in pinned] if pinned else needed
            book = books[phase]
            book.accesses += len(needed)
            book.hits += len(needed) - len(asked)
            tally(book, cache.access(asked, tokens))
        for book in books.values():
            book.bytes_loaded = book.loads * self.trace.expert_bytes[layer]
        return books


def chosen_slots(
    caches: LayerCaches, slots: int | Sequence[int] | None, budget: int | None
) -> list[int]:
    """One number per layer. Raises MoEColabError unless exactly one of both is given, and fits."""
    if (slots is None) == (budget is None):
        raise MoEColabError("give slots=, a number or one per layer, or budget=, their sum.")
    return check_slots(slots, caches.trace.experts) if budget is None else spread(caches, budget)


def tally(book: Counters, steps: Iterable[Step]) -> None:
    for step in steps:
        if step.hit:
            book.hits += 1
        else:
            book.misses += 1
            book.loads += 1
            book.evictions += step.victim is not None
            book.bypasses += not step.keep


class Bypassing(Policy):
    """Another policy, which may also send away the one that comes: it is then run from a scratch
    slot, and nobody leaves."""

    def __init__(self, policy: Policy):
        super().__init__(policy.experts)
        self.policy = policy
        self.needs_logits = getattr(policy, "needs_logits", False)
        self.keeps_nothing = getattr(policy, "keeps_nothing", False)
        self.observe, self.admit, self.evict = policy.observe, policy.admit, policy.evict

    def victim(self, candidates: Sequence[int], newcomer: int) -> int:
        return self.policy.victim(sorted([*candidates, newcomer]), newcomer)


def spread(caches: LayerCaches, budget: int) -> list[int]:
    """Slots of each layer, `budget` together and one at least, with which the fewest bytes are
    loaded: exact, by dynamic programming over the layers. Raises MoEColabError where the budget is
    too small or more than there are experts."""
    trace = caches.trace
    if not trace.layers <= budget <= sum(trace.experts):
        raise MoEColabError(
            f"a budget of {budget!r} slots does not fit: {trace.layers} MoE layers need one each "
            f"at least, and {sum(trace.experts)} hold every expert."
        )
    best = np.zeros(1)  # best[n]: the fewest bytes of the layers so far, with n slots
    choices = []
    for layer, experts in enumerate(trace.experts):
        cost = np.array(
            [
                sum(book.bytes_loaded for book in caches.count(layer, slots).values())
                for slots in range(1, experts + 1)
            ],
            float,
        )
        total = np.full((experts + 1, len(best) + experts), np.inf)  # [slots of this layer, sum]
        for slots in range(1, experts + 1):
            total[slots, slots : slots + len(best)] = best + cost[slots - 1]
        choices.append(total.argmin(axis=0))
        best = total.min(axis=0)
    slots, left = [], budget
    for choice in reversed(choices):
        slots.append(int(choice[left]))
        left -= slots[-1]
    return slots[::-1]
