"""A row of a quality table: which bits, on which text, with which scores. Knows what the table and
the allocation have in common."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation.comparison import Interval, Resamples, compare
from ..evaluation.perplexity import Scores
from ..evaluation.sensitivity import score_quantized
from ..quantization.format import Format
from ..store import Summary

SEED = 0


@dataclass(frozen=True)
class Setting:
    """The formats of the attention's and of the experts' matrices, None as they are."""

    attention: Format | None = None
    experts: Format | None = None

    def options(self) -> dict[str, Any]:
        """As `quantize` takes them."""
        return {
            "attention_bits": 16 if self.attention is None else self.attention.bits,
            "expert_bits": 16,
            "group_size": None if self.attention is None else self.attention.group,
            "overrides": {} if self.experts is None else {"experts.*": self.experts},
        }

    def columns(self) -> dict[str, int | None]:
        return {
            "attention_bits": self.attention.bits if self.attention else 16,
            "attention_group": self.attention.group if self.attention else None,
            "expert_bits": self.experts.bits if self.experts else 16,
            "expert_group": self.experts.group if self.experts else None,
        }


FULL = Setting()


@dataclass(frozen=True)
class Documents:
    """The text that is scored, document by document, and the domain of each."""

    texts: list[str]
    domains: list[str]

    @classmethod
    def of(cls, by_domain: dict[str, list[str]], picked: slice) -> Documents:
        """Those at `picked` of every domain."""
        pairs = [(t, name) for name, texts in by_domain.items() for t in texts[picked]]
        return cls([text for text, _ in pairs], [name for _, name in pairs])

    def score(self, source: str | None, **options: Any) -> tuple[Scores, Summary]:
        return score_quantized(source, self.texts, device="cpu", **options)

    def resamples(self, scores: Scores) -> Resamples:
        return Resamples(scores.documents, self.domains, seed=SEED)

    def tokens(self, scores: Scores) -> dict[str, int]:
        """Tokens scored, by domain."""
        return dict(Counter(np.array(self.domains)[scores.documents].tolist()))


def score_columns(scores: Scores, full: Scores, resamples: Resamples) -> dict[str, Any]:
    found = compare(scores, full, resamples=resamples)
    return {
        "perplexity": scores.perplexity,
        **columns("ratio", found.ratio),
        "tie": found.tie,
        **columns("agreement", found.agreement),
    }


def columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


# ---------------------------------------------------------------------- cells
def named(row: dict[str, Any], part: str) -> str:
    bits, group = row[f"{part}_bits"], row[f"{part}_group"]
    return f"{bits}" if group is None else f"{bits} g{group}"


def ratio(row: dict[str, Any]) -> str:
    """ "1" for full precision itself."""
    if row["ratio_low"] == row["ratio_high"] == 1:
        return "1"
    if row["tie"]:
        return "tie"
    return f"x{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"


def agreement(row: dict[str, Any]) -> str:
    low, high = row["agreement_low"], row["agreement_high"]
    return f"{row['agreement']:.1%}" + ("" if low == high else f" ({low:.1%} to {high:.1%})")
