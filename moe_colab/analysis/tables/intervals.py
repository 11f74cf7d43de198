"""How sure a share of tokens is: a 95 % interval that knows that tokens which follow each other are
alike.

Knows which token went where and which block of text it is of; knows no traces.

Legend: N tokens, X places that a token may be sent to, B blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Z = 1.959964  # of the normal distribution, for 95 %


@dataclass(frozen=True)
class Shares:
    """tokens int [X] were sent there, of `of`; share, and the ends of its interval, [X]."""

    tokens: np.ndarray
    of: int
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray


def shares(went: np.ndarray, block: np.ndarray) -> Shares:
    """The share of tokens that were sent to each place, with Wilson's 95 % interval (1927) for as
    many *independent* tokens as these are worth.

    How many that is, is seen in how much the blocks differ: tokens of one subject go the same way,
    so that blocks differ more than chance would make them, and the tokens are worth fewer (Kish
    1965, "Survey Sampling", chapter 8: the design effect), the more so with few blocks (Korn and
    Graubard 1998, "Confidence intervals for proportions with small expected number of positive
    counts", Survey Methodology 24). They are never worth more than they are. Where all or none were
    sent, blocks cannot differ: these tokens are taken to be worth as many as at the other places,
    in the middle, or one for each block where all places are like that.

    The interval says what more of the same text would bring, not what another text would.

    went: bool [N, X]. block: int [N], in any numbers. Without tokens a share is not a number, and
    its interval all there is.
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
    found = few * np.divide(chance, spread, out=np.full_like(chance, N), where=spread > 0)
    worth = np.full(X, np.median(found) if differ.any() else B)
    worth[differ] = found
    return Shares(tokens, N, share, *wilson(share, worth.clip(1, N)))


def wilson(share: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ends; tokens: how many independent ones."""
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
