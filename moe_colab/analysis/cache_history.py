"""The contents of every layer's slots, step after step, and the evictions with their reasons.

Knows caches and policies, live or of a trace. A cache decides the same whether it is recorded or
not. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from ..cache.belady import BeladyCache
from ..cache.layer_cache import LayerCache
from ..cache.policies import POLICIES, PolicySpec, PolicyWrapper, policy_name
from ..cache.settings import check_slots
from ..trace import Trace
from .layer_caches import OPTIMAL, OPTIMAL_BYPASS, LayerCaches

LOWEST, LATEST = "the lowest is evicted", "the one needed last is evicted"


@dataclass(frozen=True)
class Eviction:
    """The expert that left to make room for `newcomer`: `victim`, or the newcomer itself, which is
    then not kept. scores: of every expert that could have left; {} for a policy without scores."""

    newcomer: int
    victim: int
    scores: Mapping[int, tuple[float, ...]]


@dataclass(frozen=True)
class CacheSnapshot:
    """The experts in a layer's slots before a step, ascending, and the step's evictions."""

    resident: tuple[int, ...]
    evictions: list[Eviction]


class RecordingPolicy(PolicyWrapper):
    """A cache's own policy, which records a snapshot at every access. `watch` puts it in the
    policy's place."""

    def __init__(self, cache: LayerCache):
        super().__init__(cache.policy)
        self.cache = cache
        self.snapshots: list[CacheSnapshot] = []

    def observe(self, used, tokens=None):
        self.snapshots.append(CacheSnapshot(tuple(sorted(self.cache.resident)), []))
        super().observe(used, tokens)

    def victim(self, candidates, newcomer):
        scores = dict(self.scores(list(candidates)))
        victim = super().victim(candidates, newcomer)
        self.snapshots[-1].evictions.append(Eviction(newcomer, victim, scores))
        return victim


def watch(cache: LayerCache) -> RecordingPolicy:
    """Record a cache from now on. Put `policy.policy` back to stop."""
    cache.policy = RecordingPolicy(cache)
    return cache.policy


@dataclass(frozen=True)
class CacheHistory:
    """The caches of all layers, step by step: snapshots[layer][step].

    measures: names of the numbers in a score; rule: which expert they evict. pinned: by layer,
    experts that need no slot. recorded: whether these are the caches of the recording.
    """

    policy: str
    slots: tuple[int, ...]
    measures: tuple[str, ...]
    rule: str
    snapshots: Sequence[Sequence[CacheSnapshot]]
    pinned: tuple[tuple[int, ...], ...]
    recorded: bool

    def kept(self, layer: int, eviction: Eviction | None) -> bool:
        """Whether an expert that was loaded is kept for the next step."""
        return self.slots[layer] > 0 and (eviction is None or eviction.victim != eviction.newcomer)


def replayed(
    trace: Trace,
    policy: PolicySpec | None = None,
    slots: int | Sequence[int] | None = None,
    steps: int | None = None,
) -> CacheHistory:
    """Replay a trace from empty slots, up to `steps` steps. policy, slots: as recorded by default,
    or LRU and half of the experts where that is not known. Raises MoEColabError for a policy or
    slots that cannot be."""
    settings = trace.settings
    known = "none" if settings.get("whole_layer") else settings.get("policy")
    if policy is None:
        policy = known if known in POLICIES else "lru"
    if slots is None:
        slots = settings.get("slots") or [-(-experts // 2) for experts in trace.experts]
    caches, slots = LayerCaches(trace, policy), check_slots(slots, trace.experts)
    same = known == policy_name(policy) and settings.get("slots") in (slots, slots[0])
    snapshots, measures = [], ("next use",)
    for layer, n in enumerate(slots):
        cache = caches.make(layer, n)
        if isinstance(cache, BeladyCache):
            snapshots.append(list(islice(belady_snapshots(cache, caches, layer), steps)))
            continue
        recording = watch(cache)
        slots[layer] = cache.slots  # 0 where nothing is kept
        for _ in islice(caches.walk(layer, cache), steps):
            pass
        snapshots.append(recording.snapshots)
        measures = recording.measures
    rule = LATEST if policy in (OPTIMAL, OPTIMAL_BYPASS) else LOWEST if measures else ""
    pinned = ((),) * trace.layers
    return CacheHistory(policy_name(policy), tuple(slots), measures, rule, snapshots, pinned, same)


def belady_snapshots(
    cache: BeladyCache, caches: LayerCaches, layer: int
) -> Iterator[CacheSnapshot]:
    """The accesses of a cache that knows the future. A score is the number of the step that needs
    the expert next."""
    before: set[int] = set()
    for needed, decisions in caches.walk(layer, cache):
        any_may_leave = cache.bypass or len(needed) > cache.slots
        others = before.union(needed) if any_may_leave else before.difference(needed)
        scores = {expert: (cache.next[expert],) for expert in sorted(others)}
        left = [(d.expert, d.victim if d.keep else d.expert) for d in decisions if not d.hit]
        evictions = [Eviction(new, old, scores) for new, old in left if old is not None]
        yield CacheSnapshot(tuple(sorted(before)), evictions)
        before = set(cache.resident)
