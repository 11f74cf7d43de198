"""The exercises of notebook 03: real bits per weight. Knows the shapes of Mixtral."""

from __future__ import annotations

from .judging import MIXTRAL_ATTENTION, MIXTRAL_EMBEDDINGS, MIXTRAL_EXPERTS, Reply, judge

GIB = 2**30
MIXTRAL_TOTAL = 17.54 * GIB  # arXiv 2312.17238, Table 1: attention 4 bits, experts 2 bits
ATTENTION_BITS = 4.25  # 4-bit codes, an 8-bit scale and an 8-bit zero for every 64 weights


def group_bits(bits: int = 2, group: int = 64, columns: int = 4096) -> float:
    """Bits per weight: the codes, an 8-bit scale and an 8-bit zero for each group, and for each row
    a step and an offset of 16 bits, both for its scales and for its zeros."""
    return bits + 16 / group + 64 / columns


def check_group_bits(answer: object) -> Reply:
    """Check the real bits per weight of 2-bit codes in groups of 64 and rows of 4096."""
    return judge(
        answer,
        group_bits(),
        0.004,
        f"2 + 16/64 + 64/4096 = {group_bits():.3f}. An eighth of the bytes is not codes.",
        "add the bits of a group of 64 weights: its codes, its scale, its zero; divide by 64; "
        "then add the row's 64 bits, divided by 4096.",
        {
            2: "these are the codes only: every group also has a scale and a zero.",
            2 + 8 / 64: "a group has a scale and a zero, 8 bits each.",
            2 + 16 / 64: "nearly: every row has 64 more bits for its 4096 weights.",
        },
    )


def mixtral_bits() -> float:
    """Bits per weight of the paper's 2-bit experts: all bits without those of the attention and the
    embeddings, divided by the experts' weights."""
    rest = MIXTRAL_ATTENTION * ATTENTION_BITS + MIXTRAL_EMBEDDINGS * 16
    return (8 * MIXTRAL_TOTAL - rest) / MIXTRAL_EXPERTS


def check_mixtral_bits(answer: object) -> Reply:
    """Check the real bits per weight of the experts in the paper's Mixtral of 17.54 GiB."""
    whole = 8 * MIXTRAL_TOTAL
    everything = MIXTRAL_EXPERTS + MIXTRAL_ATTENTION + MIXTRAL_EMBEDDINGS
    return judge(
        answer,
        mixtral_bits(),
        0.035,
        f"(17.54 GiB − attention − embeddings) / 45.10 B = {mixtral_bits():.2f} bits. With groups "
        "of 16, scales and zeros add a whole bit to the two bits of a code.",
        "17.54 GiB are 17.54 · 2^30 bytes of 8 bits. Take out 1.342 B weights at 4.25 bits and "
        "0.262 B at 16, and divide what is left by 45.10 B.",
        {
            2: "2 bits is what a code takes. How many do the bytes give?",
            whole / MIXTRAL_EXPERTS: (
                "the 17.54 GiB include the attention and the embeddings: take them out first."
            ),
            whole / everything: (
                "that is the average over all weights, but embeddings have 16 bits: take them and "
                "the attention out."
            ),
        },
    )
