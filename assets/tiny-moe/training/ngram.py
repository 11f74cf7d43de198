"""A byte n-gram: the baseline for the bits per byte of the small model."""

from __future__ import annotations

import numpy as np

ORDER = 5  # the four bytes before predict a byte


class NGram:
    """A byte n-gram of `ORDER`. Every order is interpolated with the next lower one (Witten and
    Bell 1991), the lowest one with the uniform distribution."""

    def __init__(self, data: bytes):
        self.tables = []
        for order in range(1, ORDER + 1):
            grams, counts = np.unique(keys(data, order), return_counts=True)
            contexts, starts = np.unique(grams >> 8, return_index=True)
            totals = np.add.reduceat(counts, starts)
            kinds = np.diff(np.append(starts, len(grams)))  # different bytes after the context
            self.tables.append((grams, counts, contexts, totals, kinds))

    def bits(self, data: bytes) -> np.ndarray:
        """Bits of every byte of `data` that follows at least ORDER - 1 bytes -> float64 [n]."""
        count = len(data) - ORDER + 1
        probability = np.full(count, 1 / 256)
        for order, (grams, counts, contexts, totals, kinds) in enumerate(self.tables, 1):
            wanted = keys(data, order)[-count:]
            seen = lookup(grams, counts, wanted)
            total, kind = (lookup(contexts, values, wanted >> 8) for values in (totals, kinds))
            known = total > 0
            mixed = (seen + kind * probability)[known]
            probability[known] = mixed / (total + kind)[known]
        return -np.log2(probability)


def keys(data: bytes, order: int) -> np.ndarray:
    """Every window of `order` bytes as one integer, last byte lowest -> int64 [n - order + 1]."""
    values = np.frombuffer(data, np.uint8).astype(np.int64)
    windows = np.zeros(len(values) - order + 1, np.int64)
    for start in range(order):
        windows = windows << 8 | values[start : len(windows) + start]
    return windows


def lookup(table: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values[i] where table[i] == wanted, else 0; `table` is sorted."""
    at = np.searchsorted(table, wanted).clip(max=len(table) - 1)
    return np.where(table[at] == wanted, values[at], 0)
