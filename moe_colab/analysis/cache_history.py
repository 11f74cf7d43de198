"""Who lay in the slots of every layer, forward after forward, and who left, and why.

Knows caches and policies, live or of a trace. A cache decides the same whether it is watched or
not. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from ..cache.belady import BeladyCache
from ..cache.policies import POLICIES, LayerCache, Policy, PolicySpec, policy_name
from ..cache.settings import check_slots
from ..trace import Trace
from .layer_caches import OPTIMAL, OPTIMAL_BYPASS, LayerCaches

Scores = Mapping[int, tuple[float, ...]]
LOWEST, LATEST = "the lowest goes", "the one that is needed last goes"


@dataclass(frozen=True)
class Eviction:
    """Who had to go for `newcomer`: `victim`, or the newcomer itself, which is then not kept.
    scores: of all who could have gone; {} where the policy does not say."""

    newcomer: int
    victim: int
    scores: Scores


@dataclass(frozen=True)
class CacheSnapshot:
    """What a forward found in the slots of a layer, ascending, and the choices it led to."""

    resident: tuple[int, ...]
    choices: list[Eviction]


class RecordingPolicy(Policy):
    """A cache's own policy, which notes what every access finds and whom it sends away. Put it in
    the policy's place with `watch`."""

    def __init__(self, cache: LayerCache):
        policy = cache.policy
        super().__init__(getattr(policy, "experts", 0))
        self.cache, self.policy, self.found = cache, policy, []
        self.needs_logits = getattr(policy, "needs_logits", False)
        self.keeps_nothing = getattr(policy, "keeps_nothing", False)
        self.measures = getattr(policy, "measures", ())
        self.admit, self.evict = policy.admit, policy.evict

    def observe(self, used, tokens=None):
        self.found.append(CacheSnapshot(tuple(sorted(self.cache.resident)), []))
        self.policy.observe(used, tokens)

    def victim(self, candidates, newcomer):
        ask = getattr(self.policy, "scores", None)  # a policy need not be a Policy
        scores = dict(ask(list(candidates))) if ask else {}
        answer = self.policy.victim(candidates, newcomer)
        self.found[-1].choices.append(Eviction(newcomer, answer, scores))
        return answer


def watch(cache: LayerCache) -> RecordingPolicy:
    cache.policy = RecordingPolicy(cache)
    return cache.policy


@dataclass(frozen=True)
class CacheHistory:
    """The caches of all layers, step by step. found[layer][step]. measures: what the numbers of a
    score are called; rule: who goes by them. always: by layer, experts that need no slot. recorded:
    are these the caches that the trace was recorded with?"""

    policy: str
    slots: tuple[int, ...]
    measures: tuple[str, ...]
    rule: str
    found: Sequence[Sequence[CacheSnapshot]]
    pinned: tuple[tuple[int, ...], ...]
    recorded: bool

    def kept(self, layer: int, choice: Eviction | None) -> bool:
        """Does an expert that was loaded stay for the next step?"""
        return self.slots[layer] > 0 and (choice is None or choice.victim != choice.newcomer)


def replayed(
    trace: Trace,
    policy: PolicySpec | None = None,
    slots: int | Sequence[int] | None = None,
    steps: int | None = None,
) -> CacheHistory:
    """The caches of a trace, from empty slots, up to so many steps. None: as it was recorded, or
    LRU and half of the experts where that is not known. Raises MoEColabError."""
    settings = trace.settings
    known = "none" if settings.get("whole_layer") else settings.get("policy")
    if policy is None:
        policy = known if known in POLICIES else "lru"
    if slots is None:
        slots = settings.get("slots") or [-(-experts // 2) for experts in trace.experts]
    caches, slots = LayerCaches(trace, policy), check_slots(slots, trace.experts)
    same = known == policy_name(policy) and settings.get("slots") in (slots, slots[0])
    found, measures = [], ("next use",)
    for layer, n in enumerate(slots):
        cache = caches.make(layer, n)
        asked = islice(zip(caches.needed(layer), caches.shown(layer), strict=False), steps)
        if isinstance(cache, BeladyCache):
            found.append([look_back(cache, needed) for needed, _ in asked])
            continue
        teller = watch(cache)
        slots[layer] = cache.slots  # 0 where nothing is kept
        for needed, tokens in asked:
            cache.access(needed, tokens)
        found.append(teller.found)
        measures = teller.measures
    rule = LATEST if policy in (OPTIMAL, OPTIMAL_BYPASS) else LOWEST if measures else ""
    pinned = ((),) * trace.layers
    return CacheHistory(policy_name(policy), tuple(slots), measures, rule, found, pinned, same)


def look_back(cache: BeladyCache, needed: Sequence[int]) -> CacheSnapshot:
    """One access of a cache that knows what comes. A score: the number of the step that will need
    the expert."""
    before = set(cache.resident)
    steps = cache.access(needed)
    any_may_go = cache.bypass or len(needed) > cache.slots
    others = before.union(needed) if any_may_go else before.difference(needed)
    scores = {expert: (cache.next[expert],) for expert in sorted(others)}
    gone = [(s.expert, s.victim if s.keep else s.expert) for s in steps if not s.hit]
    choices = [Eviction(expert, victim, scores) for expert, victim in gone if victim is not None]
    return CacheSnapshot(tuple(sorted(before)), choices)
