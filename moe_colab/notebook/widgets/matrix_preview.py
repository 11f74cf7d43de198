"""Matrix previews: one matrix of a checkpoint, quantized in memory, with its error and its bits.

Knows a folder of safetensors files and the quantization formats; writes nothing, loads no model,
and knows no widgets.
"""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...checkpoint.tensors import read_tensor
from ...errors import MoEColabError
from ...machine.folders import shipped_model
from ...quantization.bits import dequantize_scales, quantize_matrix
from ...quantization.format import GROUPS, Format, stored_bytes
from ...quantization.scales import choose_scales
from ...store.safetensors import TensorEntry, read_header, weight_files

EXPERT = re.compile(r"\.(\d+)\..*\bexperts\.(\d+)\.(.+)\.weight$")
ATTENTION = re.compile(r"\.(\d+)\.\w*attn\w*\.(.+)\.weight$")


@dataclass(frozen=True)
class MatrixPreview:
    """A matrix and one group of it. `weights`: float32 [N, K]. `group`: float32 [G], the weights of
    one group. `levels`: float32 [2^bits], the values of that group's codes. `relative_error`: the
    norm of the error over the norm of the matrix. `bits_per_weight`: with scales and zeros."""

    name: str
    fmt: Format
    weights: np.ndarray
    group: np.ndarray
    levels: np.ndarray
    relative_error: float
    bits_per_weight: float

    def as_row(self) -> dict[str, Any]:
        """A row for `plots.levels`."""
        name = f"{self.name}: {self.fmt.bits} bits, {self.relative_error:.1%} lost"
        return {"name": name, "weights": self.weights, "group": self.group, "levels": self.levels}


class Matrices:
    """The matrices of a checkpoint folder that has a matrix of its own for each expert. `experts`:
    by (layer, expert), the tensor entries by name; `attention`: the same by layer. Raises
    MoEColabError for a folder without such experts or attention."""

    def __init__(self, source: str | os.PathLike[str] | None = None):
        """source: a checkpoint folder; None: the small model."""
        folder = shipped_model() if source is None else Path(source).expanduser()
        entries: dict[str, TensorEntry] = {}
        for file in weight_files(folder):
            entries.update(read_header(folder / file))
        self.experts: dict[tuple[int, int], dict[str, TensorEntry]] = defaultdict(dict)
        self.attention: dict[int, dict[str, TensorEntry]] = defaultdict(dict)
        self.rest_bytes = 0
        for name, entry in sorted(entries.items()):
            if len(entry.shape) == 2 and (match := EXPERT.search(name)):
                self.experts[int(match[1]), int(match[2])][match[3]] = entry
            elif len(entry.shape) == 2 and (match := ATTENTION.search(name)):
                self.attention[int(match[1])][match[2]] = entry
            else:
                self.rest_bytes += entry.nbytes
        if not self.experts or not self.attention:
            raise MoEColabError(
                f"{folder} has no separate matrix for each expert, or none for attention: take a "
                "checkpoint such as Mixtral's, or the small model."
            )

    def groups(self) -> list[int]:
        """The group sizes that divide every row of every matrix."""
        entries = *entries_of(self.experts), *entries_of(self.attention)
        columns = {entry.shape[1] for entry in entries}
        return [group for group in GROUPS if not any(count % group for count in columns)]

    def sample(self, entry: TensorEntry, name: str, fmt: Format, row: int = 0) -> MatrixPreview:
        """Quantize one matrix; the preview shows the first group of `row`. Raises
        MoEColabError if the format does not fit the matrix, or if hqq is not installed."""
        shape = tuple(entry.shape)
        fmt.check(name, shape)
        weights = read_tensor(entry).float()
        fields, lost = quantize_matrix(weights, fmt, choose_scales)
        scale, zero = (values[row, 0] for values in dequantize_scales(fmt, fields))
        codes = torch.arange(2**fmt.bits, dtype=torch.float32)
        group = fmt.grouped(weights)[row, 0] if fmt.axis else fmt.grouped(weights)[:, row, 0]
        return MatrixPreview(
            name,
            fmt,
            weights.numpy(),
            group.numpy(),
            ((codes - zero) * scale).numpy(),
            lost,
            8 * stored_bytes(shape, fmt) / math.prod(shape),
        )

    def bytes_by_part(self, experts: Format | None, attention: Format | None) -> dict[str, int]:
        """The bytes of all weights in these formats, with scales and zeros, without padding and
        headers; a format of None keeps the weights as they are."""
        return {
            "experts": sum(entry_bytes(entry, experts) for entry in entries_of(self.experts)),
            "attention": sum(entry_bytes(entry, attention) for entry in entries_of(self.attention)),
            "rest": self.rest_bytes,
        }


def entries_of(matrices: Mapping[Any, Mapping[str, TensorEntry]]) -> list[TensorEntry]:
    return [entry for by_name in matrices.values() for entry in by_name.values()]


def entry_bytes(entry: TensorEntry, fmt: Format | None) -> int:
    return entry.nbytes if fmt is None else stored_bytes(tuple(entry.shape), fmt)
