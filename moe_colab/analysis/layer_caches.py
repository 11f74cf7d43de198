"""Every layer's cache for the routing of a trace, and what it counts.

Knows traces and policies, the same classes as a live model. Knows no bytes but their number, no
time and no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat

import numpy as np

from ..cache.belady import BeladyCache
from ..cache.layer_cache import Decision, LayerCache
from ..cache.policies import BypassingPolicy, KeepNothing, PolicySpec, Tokens, make_policy
from ..cache.settings import check_pinned, check_slots
from ..cache.stats import PHASES, Counters
from ..errors import MoEColabError
from ..trace import Trace

OPTIMAL, OPTIMAL_BYPASS = "optimal", "optimal-bypass"


class LayerCaches:
    """The caches of all layers, for any number of slots.

    Raises MoEColabError for an unknown policy, or for pinned experts (`resident`) that do not
    exist.
    """

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
        self.pinned = check_pinned(resident or {}, trace.experts)
        self.phases = [PHASES[phase] for phase in trace.forwards["phase"].tolist()]
        if not self.optimal:
            make_policy(policy, trace.experts[0])

    def needed(self, layer: int) -> list[list[int]]:
        """The experts that every step needs, ascending."""
        if self.whole_layer:
            return [list(range(self.trace.experts[layer]))] * self.trace.steps
        return self.trace.needed(layer)

    def shown(self, layer: int) -> Iterator[Tokens | None]:
        """What the policy is shown in every step: None unless it needs the logits."""
        if self.optimal or self.whole_layer:
            return repeat(None)
        policy = make_policy(self.policy, self.trace.experts[layer])
        return self.trace.shown(layer) if policy.needs_logits else repeat(None)

    def make(self, layer: int, slots: int) -> LayerCache | BeladyCache:
        """Make the cache of a layer, empty."""
        experts = self.trace.experts[layer]
        if self.whole_layer:
            return LayerCache(KeepNothing(experts), slots)
        if self.optimal:
            return BeladyCache(self._not_pinned(layer), slots, self.bypass)
        policy = make_policy(self.policy, experts, layer)
        return LayerCache(BypassingPolicy(policy) if self.bypass else policy, slots)

    def walk(
        self, layer: int, cache: LayerCache | BeladyCache
    ) -> Iterator[tuple[list[int], list[Decision]]]:
        """Ask `cache`, made by `make`, for every step's experts. Yields for each step the experts
        that it needs, and the decisions for those that are not pinned."""
        accesses = zip(self.needed(layer), self._not_pinned(layer), self.shown(layer), strict=False)
        for needed, unpinned, tokens in accesses:
            yield needed, cache.access(unpinned, tokens)

    def count(self, layer: int, slots: int) -> dict[str, Counters]:
        """Counters of all steps by phase, for a layer with this many slots."""
        books = {phase: Counters() for phase in PHASES}
        steps = zip(self.phases, self.walk(layer, self.make(layer, slots)), strict=True)
        for phase, (needed, decisions) in steps:
            book = books[phase]
            book.accesses += len(needed)
            misses = [decision for decision in decisions if not decision.hit]
            book.hits += len(needed) - len(misses)
            book.misses += len(misses)
            book.evictions += sum(decision.victim is not None for decision in misses)
            book.bypasses += sum(not decision.keep for decision in misses)
        for book in books.values():
            book.loads = book.misses
            book.bytes_loaded = book.loads * self.trace.expert_bytes[layer]
        return books

    def _not_pinned(self, layer: int) -> list[list[int]]:
        needed, pinned = self.needed(layer), self.pinned[layer]
        return [[e for e in step if e not in pinned] for step in needed] if pinned else needed


def chosen_slots(
    caches: LayerCaches, slots: int | Sequence[int] | None, budget: int | None
) -> list[int]:
    """Slots of each layer, from `slots` or from their sum `budget`. Raises MoEColabError unless
    exactly one of the two is given, or where it does not fit."""
    if (slots is None) == (budget is None):
        raise MoEColabError("give slots=, a number or one per layer, or budget=, their sum.")
    return check_slots(slots, caches.trace.experts) if budget is None else spread(caches, budget)


def spread(caches: LayerCaches, budget: int) -> list[int]:
    """Share `budget` slots among the layers, at least one each, so that the fewest bytes are
    loaded: exact, by dynamic programming over the layers. Raises MoEColabError for a budget that is
    too small or larger than the number of experts."""
    trace = caches.trace
    if not trace.layers <= budget <= sum(trace.experts):
        raise MoEColabError(
            f"a budget of {budget!r} slots does not fit: it must be {trace.layers} (one for each "
            f"MoE layer) to {sum(trace.experts)} (one for each expert)."
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
