"""02, where does each token go? 07, do experts have topics?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .judging import (
    MIXTRAL_ATTENTION,
    MIXTRAL_EMBEDDINGS,
    MIXTRAL_EXPERTS,
    MIXTRAL_ROUTERS,
    Reply,
    judge,
)

ROUTER = (2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)  # logits of eight experts; two are chosen


def weight(logits: Sequence[float], among: int) -> float:
    """Of the first expert, where the first `among` of them share the whole."""
    parts = [math.exp(logit) for logit in logits[:among]]
    return parts[0] / sum(parts)


def check_weight(answer: object) -> Reply:
    """The weight of the first of two chosen experts, by ROUTER."""
    right = weight(ROUTER, 2)
    return judge(
        answer,
        right,
        0.004,
        f"e² / (e² + e¹) = {right:.3f}, and {1 - right:.3f} for the other. Only the distance of "
        "the two logits counts: 7 and 6 would give the same.",
        [
            (1 - right, "that is the other expert's: the larger logit has the larger weight."),
            (2 / 3, "logits are not shared out as they are: their exponentials are."),
            (
                weight(ROUTER, 8),
                "that is its probability among all eight. The weights are shared among the two "
                "that were chosen, so that they add up to 1.",
            ),
            (
                math.nan,
                "raise e to each of the two logits, and divide the first by the sum of both.",
            ),
        ],
    )


def mixtral_active(experts: int = 2) -> float:
    """Billions of weights that a token of Mixtral-8x7B is multiplied with, or looked up in."""
    always = MIXTRAL_ATTENTION + MIXTRAL_EMBEDDINGS + MIXTRAL_ROUTERS
    return (always + MIXTRAL_EXPERTS * experts / 8) / 1e9


def check_active(answer: object) -> Reply:
    """Mixtral's active parameters, in billions."""
    return judge(
        answer,
        mixtral_active(),
        0.06,
        f"45.10 / 4 + 1.34 + 0.26 = {mixtral_active():.1f} billion, of {mixtral_active(8):.1f}. It "
        "computes like a model of 13 billion and must be kept like one of 47: that is why "
        "offloading pays.",
        [
            (mixtral_active(8), "those are all weights; of the experts, only 2 of 8 are used."),
            (
                MIXTRAL_EXPERTS / 4 / 1e9,
                "those are the experts alone: attention and embeddings are used by every token.",
            ),
            (14, "eight times seven is the name, not the size: count with the three numbers."),
            (
                mixtral_active(8) / 4,
                "a quarter of the experts, but all of the attention and of the embeddings.",
            ),
            (mixtral_active(1), "that is with one expert a layer; the router chooses two."),
            (math.nan, "two eighths of the experts' weights, and all of the others."),
        ],
    )


# ---------------------------------------------------------------------- 07: topics
SEEN, EVEN, TOKENS = 0.29, 0.25, 200  # a share, the one it is compared with, tokens


def standard_errors(share: float = SEEN, even: float = EVEN, tokens: int = TOKENS) -> float:
    """How many of them the share is from an even one, if tokens were independent."""
    return (share - even) / math.sqrt(even * (1 - even) / tokens)


def check_evidence(answer: object) -> Reply:
    """Standard errors between a share of 0.29 over 200 tokens and 0.25."""
    error = math.sqrt(EVEN * (1 - EVEN) / TOKENS)
    return judge(
        answer,
        standard_errors(),
        0.06,  # with the variance of the share that was seen: 1.25
        f"0.04 / √(0.25 · 0.75 / 200) = {standard_errors():.1f}: not evidence. Chance alone goes "
        "so far, up or down, in every fifth count, and the tokens of one text are not even "
        "independent.",
        [
            (
                error,
                "0.04 is the difference, 0.031 the standard error of a share: divide the one by "
                "the other.",
            ),
            (
                (SEEN - EVEN) / (EVEN * (1 - EVEN) / TOKENS),
                "take the root: p (1 − p) / n is the variance of a share, not its standard error.",
            ),
            (
                math.nan,
                "the standard error of a share p over n tokens is the root of p (1 − p) / n. How "
                "often does it fit into 0.29 − 0.25?",
            ),
        ],
    )
