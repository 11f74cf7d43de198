"""A row of a quality table: formats, documents and scores.

Knows how a row is measured and how its cells are written; knows nothing of the tables.
"""

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
    """Formats of the matrices of attention and experts; None keeps them as they are."""

    attention: Format | None = None
    experts: Format | None = None

    def options(self) -> dict[str, Any]:
        """The arguments of `quantize` for these formats."""
        cells = self.columns()
        return {
            "attention_bits": cells["attention_bits"],
            "expert_bits": 16,
            "group_size": cells["attention_group"],
            "overrides": {"experts.*": self.experts} if self.experts else {},
        }

    def columns(self) -> dict[str, int | None]:
        """The cells of a row that name the formats."""
        cells = {}
        for part, form in (("attention", self.attention), ("expert", self.experts)):
            bits, group = (form.bits, form.group) if form else (16, None)
            cells |= {f"{part}_bits": bits, f"{part}_group": group}
        return cells


FULL = Setting()


@dataclass(frozen=True)
class Documents:
    """The text that is scored, as documents, and the domain of each."""

    texts: list[str]
    domains: list[str]

    @classmethod
    def of(cls, by_domain: dict[str, list[str]], part: slice) -> Documents:
        """The documents `part` of every domain."""
        pairs = [(t, name) for name, texts in by_domain.items() for t in texts[part]]
        return cls([text for text, _ in pairs], [name for _, name in pairs])

    def score(self, source: str | None, **options: Any) -> tuple[Scores, Summary]:
        """Scores and summary of the store that `quantize` makes with `options`."""
        return score_quantized(source, self.texts, device="cpu", **options)

    def resamples(self, scores: Scores) -> Resamples:
        return Resamples(scores.documents, self.domains, seed=SEED)

    def tokens(self, scores: Scores) -> dict[str, int]:
        """Number of scored tokens by domain."""
        return dict(Counter(np.array(self.domains)[scores.documents].tolist()))


def score_columns(scores: Scores, full: Scores, resamples: Resamples) -> dict[str, Any]:
    """The cells of a row that compare with full precision."""
    comparison = compare(scores, full, resamples=resamples)
    return {
        "perplexity": scores.perplexity,
        **columns("ratio", comparison.ratio),
        "tie": comparison.tie,
        **columns("agreement", comparison.agreement),
    }


def columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


# ---------------------------------------------------------------------- cells
def format_name(row: dict[str, Any], part: str) -> str:
    """Format of "attention" or "expert": "4 g64"."""
    bits, group = row[f"{part}_bits"], row[f"{part}_group"]
    return f"{bits}" if group is None else f"{bits} g{group}"


def ratio(row: dict[str, Any]) -> str:
    """Ratio of perplexities with its interval; "tie", or "1" for full precision itself."""
    if row["ratio_low"] == row["ratio_high"] == 1:
        return "1"
    if row["tie"]:
        return "tie"
    return f"x{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"


def agreement(row: dict[str, Any]) -> str:
    low, high = row["agreement_low"], row["agreement_high"]
    return f"{row['agreement']:.1%}" + ("" if low == high else f" ({low:.1%} to {high:.1%})")
