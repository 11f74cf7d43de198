"""Comparison of two models on the same texts: the ratio of their perplexities, their agreement, and
confidence intervals of both. Knows scores by token and each token's document; knows no models.

The bootstrap resamples whole documents. The tokens of one document share its subject, and a
model's mistakes in it are alike: to resample tokens, or blocks of them, would count one subject
many times and give intervals that are too narrow. Every domain keeps its number of documents,
because the mix of domains was chosen and is not random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import MoEColabError
from .perplexity import Scores

CONFIDENCE, DRAWS = 0.95, 10_000


@dataclass(frozen=True)
class Interval:
    """A mean over all tokens, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def spans(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Comparison:
    """ratio: the perplexity of a model over that of the full model. agreement: the share of tokens,
    0 to 1, for which both have the same first choice."""

    ratio: Interval
    agreement: Interval

    @property
    def tie(self) -> bool:
        """Whether the interval of the ratio holds 1: the texts show no difference."""
        return self.ratio.spans(1.0)

    def __repr__(self) -> str:
        ratio, agreement = self.ratio, self.agreement
        return (
            f"<Comparison perplexity x{ratio.value:.4f} ({ratio.low:.4f} to {ratio.high:.4f}"
            f"{', a tie' if self.tie else ''}), agreement {agreement.value:.4f} "
            f"({agreement.low:.4f} to {agreement.high:.4f})>"
        )


class Resamples:
    """`draws` samples of the documents, with replacement within every domain. Drawn once, by
    `seed`: whatever is compared is compared on the same samples, in pairs, so that what makes a
    document hard for both models cancels (the percentile interval of Efron and Tibshirani 1993, "An
    Introduction to the Bootstrap", chapter 13). Of a domain's n documents n - 1 are drawn, each
    counting n / (n - 1) times: with n the intervals would be too narrow where n is small (Rao and
    Wu 1988, "Resampling Inference with Complex Survey Data").

    documents: int [tokens], which document a token is of. domains: the domain of every document, by
    its number; one for all by default. Raises MoEColabError where a domain has a single document:
    nothing could be said about another one.
    """

    def __init__(
        self,
        documents: np.ndarray,
        domains: Sequence[str] | None = None,
        draws: int = DRAWS,
        seed: int = 0,
    ):
        numbers, self._document = np.unique(documents, return_inverse=True)
        found = [domains[number] if domains else "the text" for number in numbers]
        self._tokens = np.bincount(self._document)  # [D]
        self._times = np.zeros((draws, len(numbers)))  # what a document counts in a sample
        random = np.random.default_rng(seed)
        for domain in dict.fromkeys(found):
            places = np.flatnonzero([name == domain for name in found])
            count = len(places)
            if count < 2:
                raise MoEColabError(
                    f"{domain} has a single document of two tokens or more: an interval is taken "
                    "over documents, score at least two of each domain."
                )
            times = random.multinomial(count - 1, [1 / count] * count, size=draws)
            self._times[:, places] = times * (count / (count - 1))

    def interval(self, values: np.ndarray) -> Interval:
        """Of the mean of `values` [tokens]; for a difference of two models, give their difference
        token by token."""
        sums = np.bincount(self._document, weights=values)  # [D]
        means = self._times @ sums / (self._times @ self._tokens)
        low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return Interval(float(np.mean(values)), float(low), float(high))


def compare(
    scores: Scores,
    full: Scores,
    *,
    domains: Sequence[str] | None = None,
    resamples: Resamples | None = None,
    seed: int = 0,
) -> Comparison:
    """A model's scores against those of another, mostly the same model in full precision, with 95 %
    intervals over documents.

    scores, full: of the same texts.
    domains: the domain of every text that was scored; one for all by default.
    resamples: made before, for many comparisons on the same texts.
    seed: of the resampling.

    Raises MoEColabError where the two scored different texts, or a domain has a single document.

        texts = ["Once upon a time there was a king.", "The capital of France is Paris."]
        mc.quantize("shipped", "my-store", expert_bits=4)
        scores = []
        for source in ("my-store", "shipped"):
            model, tokenizer = mc.load(source)
            scores.append(mc.perplexity(model, tokenizer, texts))
        print(mc.compare(*scores))  # the ratio of perplexities and the agreement
    """
    full.agreement(scores)  # raises for different texts
    resamples = resamples or Resamples(full.documents, domains, seed=seed)
    rise = resamples.interval(scores.nll - full.nll)
    ratio = Interval(*(math.exp(value) for value in (rise.value, rise.low, rise.high)))
    return Comparison(ratio, resamples.interval(scores.top1 == full.top1))
