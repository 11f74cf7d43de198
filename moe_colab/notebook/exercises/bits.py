"""The exercises of notebook 03: real bits per weight. Knows the shapes of Mixtral."""

from __future__ import annotations

from ...planner.mixtral import (
    ATTENTION_BITS,
    ATTENTION_WEIGHTS,
    EMBEDDING_WEIGHTS,
    EXPERT_WEIGHTS,
    PAPER_BYTES,
)
from .judging import Reply, judge


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
    rest = ATTENTION_WEIGHTS * ATTENTION_BITS + EMBEDDING_WEIGHTS * 16
    return (8 * PAPER_BYTES - rest) / EXPERT_WEIGHTS


def check_mixtral_bits(answer: object) -> Reply:
    """Check the real bits per weight of the experts in the paper's Mixtral of 17.54 GiB."""
    whole = 8 * PAPER_BYTES
    everything = EXPERT_WEIGHTS + ATTENTION_WEIGHTS + EMBEDDING_WEIGHTS
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
            whole / EXPERT_WEIGHTS: (
                "the 17.54 GiB include the attention and the embeddings: take them out first."
            ),
            whole / everything: (
                "that is the average over all weights, but embeddings have 16 bits: take them and "
                "the attention out."
            ),
        },
    )
