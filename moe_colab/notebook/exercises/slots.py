"""The exercises of notebooks 05 and 06: hit rates, and the stall after a guess. Knows caches."""

from __future__ import annotations

from ...cache.belady import BeladyCache
from ...cache.layer_cache import LayerCache
from ...cache.policies import make_policy
from .judging import Reply, judge

# ---------------------------------------------------------------------- 05: which experts stay
ACCESSES = (0, 1, 0, 2, 1, 0)  # experts, one after the other
SLOTS = 2


def hits_of(cache: LayerCache | BeladyCache) -> int:
    """The hits of the six accesses."""
    return sum(step.hit for expert in ACCESSES for step in cache.access([expert]))


def best_hits(bypass: bool = False) -> int:
    return hits_of(BeladyCache([[expert] for expert in ACCESSES], SLOTS, bypass))


def check_lru(answer: object) -> Reply:
    """Check the hit rate of LRU over ACCESSES with two empty slots."""
    hits, count = hits_of(LayerCache(make_policy("lru", 3), SLOTS)), len(ACCESSES)
    return judge(
        answer,
        hits / count,
        0.01,
        "1/6: only the second 0 is a hit. Expert 2 evicts 1, then 1 evicts 0, and then 0 is "
        "missing: LRU evicts what is needed next.",
        "write down the experts in the two slots after every access; a third one replaces the "
        "least recently used one. Both slots are empty at first.",
        {
            hits: "that is the number of hits; the rate is hits divided by the six accesses.",
            best_hits() / count: (
                "that is the best possible rate. LRU does not know what comes: which expert is "
                "the least recently used one when expert 2 is loaded?"
            ),
            (count - hits) / count: "that is the share of misses: give the share of hits.",
        },
    )


def check_belady(answer: object) -> Reply:
    """Check the best hit rate over ACCESSES with two slots, if every loaded expert gets a slot."""
    hits, count = best_hits(), len(ACCESSES)
    return judge(
        answer,
        hits / count,
        0.01,
        "2/6: expert 2 evicts 0, which is needed later than 1. That is twice LRU's rate with the "
        "same two slots.",
        "a third expert replaces the one of the two that is needed again last.",
        {
            hits: "that is the number of hits; the rate is hits divided by the six accesses.",
            hits_of(LayerCache(make_policy("lru", 3), SLOTS)) / count: (
                "that is LRU's rate. Belady looks ahead: which of the two experts is needed later?"
            ),
            best_hits(bypass=True) / count: (
                "that is the rate if expert 2 may be used without a slot (a bypass). Here every "
                "loaded expert gets a slot."
            ),
        },
    )


# ---------------------------------------------------------------------- 06: load ahead
COPY, COMPUTING, MISSING = 5.5, 4.0, 2  # ms per copy, ms of compute per layer, misses


def stall(guessed: int, copy: float = COPY, compute: float = COMPUTING, misses: int = MISSING):
    """Milliseconds that a layer waits for its misses, if `guessed` of them were copied while the
    layer before was computing."""
    return misses * copy - min(guessed * copy, compute)


def check_stall(answer: object) -> Reply:
    """Check the stall of a layer with two misses, one of which was guessed a layer earlier."""
    return judge(
        answer,
        stall(guessed=1),
        0.05,
        "11 − 4 = 7 ms: the copy runs during all of the compute, and no guess can save more. It "
        "saves time, but no bytes.",
        "when the router decides, the guessed copy has been running for 4 ms. How much of it is "
        "left, and what must be copied after it?",
        {
            stall(guessed=0): "that is without a guess: two copies, one after the other.",
            (MISSING - 1) * COPY: (
                "that is the other miss alone. The guessed copy has had only 4 of its 5.5 ms."
            ),
            COPY - COMPUTING: (
                "that is the rest of the guessed copy. The other miss comes after it, on the same "
                "link."
            ),
            stall(guessed=0) - 2 * COMPUTING: "the copy can use the 4 ms of compute only once.",
        },
    )
