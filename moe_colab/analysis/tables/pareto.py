"""The Pareto front of quantized models: bytes against perplexity. Knows rows; draws nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def front(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that no other row beats, by bytes: no row of as few bytes or fewer has a lower
    `ratio`. rows: with the columns bytes and ratio, such as those of mc.benchmark("quality")."""
    best: list[Mapping[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["bytes"], row["ratio"])):
        if not best or row["ratio"] < best[-1]["ratio"]:
            best.append(row)
    return best
