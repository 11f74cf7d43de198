"""The exercises of notebooks 02 and 07: routing weights, active parameters, standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...planner.mixtral import (
    ATTENTION_WEIGHTS,
    EMBEDDING_WEIGHTS,
    EXPERT_WEIGHTS,
    ROUTER_WEIGHTS,
)
from .judging import Reply, judge

ROUTER = (2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)  # logits of eight experts; two are chosen


def weight(logits: Sequence[float], among: int) -> float:
    """The weight of the first expert, by a softmax over the first `among` logits."""
    parts = [math.exp(logit) for logit in logits[:among]]
    return parts[0] / sum(parts)


def check_weight(answer: object) -> Reply:
    """Check the weight of the first of the two chosen experts of ROUTER."""
    right = weight(ROUTER, 2)
    return judge(
        answer,
        right,
        0.004,
        f"e² / (e² + e¹) = {right:.3f}, and {1 - right:.3f} for the other. Only the difference of "
        "the two logits counts: 7 and 6 would give the same.",
        "raise e to each of the two logits, and divide the first by the sum of both.",
        {
            1 - right: "that is the other expert's weight: the larger logit has the larger weight.",
            2 / 3: "do not divide the logits themselves: divide their exponentials.",
            weight(ROUTER, 8): (
                "that is its probability among all eight. The weights of the two chosen experts "
                "alone add up to 1."
            ),
        },
    )


def mixtral_active(experts: int = 2) -> float:
    """Billions of weights of Mixtral-8x7B that a token uses, with this many experts per layer."""
    always = ATTENTION_WEIGHTS + EMBEDDING_WEIGHTS + ROUTER_WEIGHTS
    return (always + EXPERT_WEIGHTS * experts / 8) / 1e9


def check_active(answer: object) -> Reply:
    """Check Mixtral's active parameters, in billions."""
    return judge(
        answer,
        mixtral_active(),
        0.06,
        f"45.10 / 4 + 1.34 + 0.26 = {mixtral_active():.1f} billion, of {mixtral_active(8):.1f}. "
        "It computes like a model of 13 billion weights and needs the memory of 47 billion: that "
        "is why offloading helps.",
        "take two eighths of the experts' weights, and all other weights.",
        {
            mixtral_active(8): "these are all weights, but a token uses only 2 of 8 experts.",
            EXPERT_WEIGHTS / 4 / 1e9: (
                "these are the experts alone: every token also uses attention and embeddings."
            ),
            14: "8x7B is the name, not the size: use the three numbers.",
            mixtral_active(8) / 4: (
                "take a quarter of the experts, but all of the attention and the embeddings."
            ),
            mixtral_active(1): "that is with one expert a layer; the router chooses two.",
        },
    )


# ---------------------------------------------------------------------- 07: topics
SEEN, EVEN, TOKENS = 0.29, 0.25, 200  # a share, the even share, tokens


def standard_errors(share: float = SEEN, even: float = EVEN, tokens: int = TOKENS) -> float:
    """The difference of the two shares in standard errors, for independent tokens."""
    return (share - even) / math.sqrt(even * (1 - even) / tokens)


def check_evidence(answer: object) -> Reply:
    """Check the standard errors between a share of 0.29 over 200 tokens and 0.25."""
    error = math.sqrt(EVEN * (1 - EVEN) / TOKENS)
    return judge(
        answer,
        standard_errors(),
        0.06,  # 1.25 with the variance of the observed share
        f"0.04 / √(0.25 · 0.75 / 200) = {standard_errors():.1f}: not evidence. By chance alone, "
        "one count in five is that far from even, and the tokens of one text are not even "
        "independent.",
        "the standard error of a share p over n tokens is the root of p (1 − p) / n. How often "
        "does it fit into 0.29 − 0.25?",
        {
            error: (
                "0.04 is the difference, 0.031 the standard error of a share: divide the one by "
                "the other."
            ),
            (SEEN - EVEN) / (EVEN * (1 - EVEN) / TOKENS): (
                "take the root: p (1 − p) / n is the variance of a share, not its standard error."
            ),
        },
    )
