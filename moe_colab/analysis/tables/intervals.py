"""95 % intervals for shares of tokens, where neighbouring tokens are not independent.

Knows which token was sent where, and its block of text; knows no traces.

Legend: N tokens, X places that a token may be sent to, B blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Z = 1.959964  # of the normal distribution, for 95 %


@dataclass(frozen=True)
class Shares:
    """tokens int [X]: sent to each place, of `of`; share and the ends of its interval, [X]."""

    tokens: np.ndarray
    of: int
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray


def shares(went: np.ndarray, block: np.ndarray) -> Shares:
    """The share of tokens sent to each place, with Wilson's 95 % interval (1927) for the number of
    *independent* tokens.

    Tokens of one subject are routed alike, so blocks differ more than by chance. Their variance
    gives the number of independent tokens (Kish 1965, "Survey Sampling", chapter 8: the design
    effect), corrected for few blocks (Korn and Graubard 1998, "Confidence intervals for proportions
    with small expected number of positive counts", Survey Methodology 24); it is at most N. Where
    all or no tokens were sent, blocks do not differ: then it is the median of the other places, or
    B if there is none. The interval is about more of the same text, not about another text.

    went: bool [N, X]. block: int [N], any numbers. Without tokens shares are nan and intervals 0 to
    1.
    """
    N, X = went.shape
    if not N:
        nothing = np.full(X, np.nan)
        return Shares(np.zeros(X, int), 0, nothing, np.zeros(X), np.ones(X))
    _, number = np.unique(block, return_inverse=True)
    sizes = np.bincount(number)[:, None]  # [B, 1]
    sent = np.zeros((len(sizes), X))  # [B, X]
    np.add.at(sent, number, went)
    tokens = went.sum(axis=0)
    share, B = tokens / N, len(sizes)
    differ = (tokens > 0) & (tokens < N) & (B > 1)
    spread = ((sent - share * sizes) ** 2).sum(axis=0)[differ] / N**2 * B / max(1, B - 1)
    chance = (share * (1 - share))[differ]
    few = (Z / student(B - 1)) ** 2 if B > 1 else 1
    independent = few * np.divide(chance, spread, out=np.full_like(chance, N), where=spread > 0)
    worth = np.full(X, np.median(independent) if differ.any() else B)
    worth[differ] = independent
    return Shares(tokens, N, share, *wilson(share, worth.clip(1, N)))


def wilson(share: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of Wilson's interval; tokens: the number of independent ones."""
    middle = share + Z**2 / (2 * tokens)
    half = Z * np.sqrt(share * (1 - share) / tokens + Z**2 / (4 * tokens**2))
    low, high = (middle - half) / (1 + Z**2 / tokens), (middle + half) / (1 + Z**2 / tokens)
    return np.minimum(low.clip(0), share), np.maximum(high.clip(max=1), share)  # rounding aside


def student(freedom: int) -> float:
    """Student's quantile for 95 %: the expansion 26.7.5 of Abramowitz and Stegun (1964)."""
    z, d = Z, freedom
    return (
        z
        + (z**3 + z) / (4 * d)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * d**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * d**3)
    )
