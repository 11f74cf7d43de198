"""What the notebooks ask, and whether an answer is right: a hint, never a traceback.

Knows numbers, and the caches that it asks about; every right answer is computed here from what the
exercise tells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .cache import LayerCache, make_policy
from .card import STYLE, mark
from .optimal import OptimalCache

GIB = 2**30
# Weights of Mixtral-8x7B: 32 layers of 8 experts, each three matrices of 4096 x 14336; attention (q
# and o 4096 x 4096, k and v 4096 x 1024); embeddings and head.
MIXTRAL_EXPERTS = 32 * 8 * 3 * 4096 * 14336
MIXTRAL_ATTENTION = 32 * 2 * (4096 * 4096 + 4096 * 1024)
MIXTRAL_EMBEDDINGS = 2 * 32000 * 4096
MIXTRAL_TOTAL = 17.54 * GIB  # arXiv 2312.17238, Table 1: attention 4 bits, experts 2 bits
ATTENTION_BITS = 4.25  # 4-bit codes, an 8-bit scale and an 8-bit zero for every 64 weights


@dataclass(frozen=True)
class Reply:
    """What is said to an answer. `right` is None where there was none yet."""

    right: bool | None
    text: str

    def __repr__(self) -> str:
        return f"{ {True: 'Right', False: 'Not yet', None: 'Your turn'}[self.right] }: {self.text}"

    def _repr_html_(self) -> str:
        said, text = repr(self).split(": ", 1)
        sign = "" if self.right is None else mark(self.right)
        return f'{STYLE}<div class="moecard">{sign} <b>{said}.</b> {escape(text)}</div>'


def judge(
    answer: object, right: float, tolerance: float, praise: str, mistakes: Sequence[tuple]
) -> Reply:
    """A number within `tolerance` of the right one; `mistakes`: (what they lead to, hint), of which
    the one within the tolerance is told."""
    if answer is None or answer is ...:
        return Reply(None, "put a number in place of the dots and run the cell again.")
    try:
        value = float(answer)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        return Reply(False, f"a number is asked for, such as 2.5, and {answer!r} is none.")
    if abs(value - right) <= tolerance:
        return Reply(True, praise)
    for wrong, hint in mistakes:
        if abs(value - wrong) <= tolerance:
            return Reply(False, hint)
    return Reply(False, "too " + ("low" if value < right else "high") + f": {mistakes[-1][1]}")


# ---------------------------------------------------------------------- 03: how few bits
def group_bits(bits: int = 2, group: int = 64, columns: int = 4096) -> float:
    """Bits a weight: the codes, 8 bits of scale and 8 of zero for each group, and for each row a
    line (step and offset, 16 bits each) for its scales and one for its zeros."""
    return bits + 16 / group + 64 / columns


def check_group_bits(answer: object) -> Reply:
    """Real bits a weight of 2-bit codes in groups of 64, rows of 4096."""
    return judge(
        answer,
        group_bits(),
        0.004,
        f"2 + 16/64 + 64/4096 = {group_bits():.3f}. An eighth of the bytes are not codes.",
        [
            (2, "those are the codes alone: every group also has a scale and a zero."),
            (2 + 8 / 64, "a group has a scale and a zero, 8 bits each."),
            (2 + 16 / 64, "nearly: every row has 64 bits more, spread over its 4096 weights."),
            (
                math.nan,
                "add up what a group of 64 weights takes: its codes, its scale, its zero; divide "
                "by 64; then add the row's 64 bits, divided by 4096.",
            ),
        ],
    )


def mixtral_bits() -> float:
    """Bits a weight of the paper's 2-bit experts: what is left of the whole when the attention and
    the embeddings are taken out."""
    rest = MIXTRAL_ATTENTION * ATTENTION_BITS + MIXTRAL_EMBEDDINGS * 16
    return (8 * MIXTRAL_TOTAL - rest) / MIXTRAL_EXPERTS


def check_mixtral_bits(answer: object) -> Reply:
    """Real bits a weight of the experts in the paper's Mixtral of 17.54 GiB."""
    whole = 8 * MIXTRAL_TOTAL
    everything = MIXTRAL_EXPERTS + MIXTRAL_ATTENTION + MIXTRAL_EMBEDDINGS
    return judge(
        answer,
        mixtral_bits(),
        0.035,
        f"(17.54 GiB − attention − embeddings) / 45.10 B = {mixtral_bits():.2f} bits. Groups of 16 "
        "cost a whole bit beside the two of the codes.",
        [
            (2, "2 is what a code takes. What do the bytes say?"),
            (
                whole / MIXTRAL_EXPERTS,
                "the attention and the embeddings are in the 17.54 GiB too: take them out first.",
            ),
            (
                whole / everything,
                "that is the average over all weights, and the embeddings have 16 bits each: take "
                "them and the attention out.",
            ),
            (
                math.nan,
                "17.54 GiB are 17.54 · 2^30 bytes of 8 bits. Take out 1.342 B weights at 4.25 bits "
                "and 0.262 B at 16, and divide what is left by 45.10 B.",
            ),
        ],
    )


# ---------------------------------------------------------------------- 05: which slots pay
ASKED = (0, 1, 0, 2, 1, 0)  # experts, one after the other
PLACES = 2  # slots


def hits_of(cache: LayerCache | OptimalCache) -> int:
    """Of the six of ASKED."""
    return sum(step.hit for expert in ASKED for step in cache.access([expert]))


def best_hits(bypass: bool = False) -> int:
    return hits_of(OptimalCache([[expert] for expert in ASKED], PLACES, bypass))


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
