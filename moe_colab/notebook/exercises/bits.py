"""03, how few bits can an expert survive?"""

from __future__ import annotations

import math

from .judging import MIXTRAL_ATTENTION, MIXTRAL_EMBEDDINGS, MIXTRAL_EXPERTS, Reply, judge

GIB = 2**30
MIXTRAL_TOTAL = 17.54 * GIB  # arXiv 2312.17238, Table 1: attention 4 bits, experts 2 bits
ATTENTION_BITS = 4.25  # 4-bit codes, an 8-bit scale and an 8-bit zero for every 64 weights


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
