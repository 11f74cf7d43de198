"""05, which slots pay? 06, load before the router decides?

Knows the caches that it asks about.
"""

from __future__ import annotations

import math

from ...cache.belady import BeladyCache
from ...cache.layer_cache import LayerCache
from ...cache.policies import make_policy
from .judging import Reply, judge

# ---------------------------------------------------------------------- 05: which slots pay
ASKED = (0, 1, 0, 2, 1, 0)  # experts, one after the other
PLACES = 2  # slots


def hits_of(cache: LayerCache | BeladyCache) -> int:
    """Of the six of ASKED."""
    return sum(step.hit for expert in ASKED for step in cache.access([expert]))


def best_hits(bypass: bool = False) -> int:
    return hits_of(BeladyCache([[expert] for expert in ASKED], PLACES, bypass))


def check_lru(answer: object) -> Reply:
    """The hit rate of LRU over ASKED with two slots, empty at first."""
    hits, all_of_them = hits_of(LayerCache(make_policy("lru", 3), PLACES)), len(ASKED)
    return judge(
        answer,
        hits / all_of_them,
        0.01,
        "1/6: only the second 0 is a hit. Expert 2 drives 1 away, 1 drives 0 away, and 0 comes too "
        "late: LRU throws out what is needed next.",
        [
            (hits, "that many hits; the rate is hits divided by the six that were asked for."),
            (
                best_hits() / all_of_them,
                "that is the best there is. LRU does not know what comes: who was used longest ago "
                "when expert 2 arrives?",
            ),
            (
                (all_of_them - hits) / all_of_them,
                "that is the share of misses: the rate of hits is asked for.",
            ),
            (
                math.nan,
                "write down who is in the two slots after every step; when a third one comes, the "
                "one goes that was used longest ago. Both slots are empty at first.",
            ),
        ],
    )


def check_belady(answer: object) -> Reply:
    """The best hit rate over ASKED with two slots, where whoever is loaded gets a slot."""
    hits, all_of_them = best_hits(), len(ASKED)
    return judge(
        answer,
        hits / all_of_them,
        0.01,
        "2/6: when expert 2 comes, 0 goes, which is needed later than 1. Twice LRU's, with the "
        "same two slots.",
        [
            (hits, "that many hits; the rate is hits divided by the six that were asked for."),
            (
                hits_of(LayerCache(make_policy("lru", 3), PLACES)) / all_of_them,
                "that is LRU's. Belady looks ahead: of the two in the slots, who is needed later?",
            ),
            (
                best_hits(bypass=True) / all_of_them,
                "that is so where expert 2 may be used without getting a slot (a bypass). Here, "
                "whoever is loaded gets one.",
            ),
            (
                math.nan,
                "when a third expert comes, the one of the two goes that is needed again last.",
            ),
        ],
    )


# ---------------------------------------------------------------------- 06: load ahead
COPY, COMPUTING, MISSING = 5.5, 4.0, 2  # ms a copy, ms a layer computes, experts that miss


def stall(guessed: int, copy: float = COPY, compute: float = COMPUTING, misses: int = MISSING):
    """Milliseconds that a layer waits for its misses, of which some were guessed while the layer
    before computed: the link had so much of a start, if it had something to do."""
    return misses * copy - min(guessed * copy, compute)


def check_stall(answer: object) -> Reply:
    """Of a layer that misses two experts, one of which was guessed a layer earlier."""
    return judge(
        answer,
        stall(guessed=1),
        0.05,
        "11 − 4 = 7 ms: all of the compute is hidden behind the copy, and no guess could hide "
        "more. It saves time, and not one byte.",
        [
            (stall(guessed=0), "that is without a guess: two copies, one after the other."),
            (
                (MISSING - 1) * COPY,
                "that is the other miss alone. The guessed copy has had 4 ms and takes 5.5.",
            ),
            (
                COPY - COMPUTING,
                "that is what is left of the guessed copy. The other miss comes after it, on the "
                "same link.",
            ),
            (
                stall(guessed=0) - 2 * COMPUTING,
                "one guess has 4 ms of compute to hide behind, and that only once.",
            ),
            (
                math.nan,
                "when the layer's router speaks, the link has been at the guessed copy for 4 ms. "
                "How much of it is left, and what must still come after it?",
            ),
        ],
    )
