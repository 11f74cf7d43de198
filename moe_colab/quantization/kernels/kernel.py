"""The interface of a kernel: a product with one low-bit matrix.

Knows formats and fields; knows no implementation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from ..format import Format, Shape

Fields = Mapping[str, torch.Tensor]


class Kernel(Protocol):
    """A way to multiply with a low-bit matrix. `max_rows`: the most rows of x that it is used for.
    What `prepare` returns is kept beside the matrix, in `prepared_bytes` of memory, until another
    matrix is written to its place."""

    name: str
    max_rows: int

    def fits(self, fmt: Format, shape: Shape, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether it is made for such a matrix; the self-test checks whether it works here."""

    def prepared_bytes(self, fmt: Format, shape: Shape) -> int:
        """Bytes of what `prepare` returns."""

    def prepare(self, fields: Fields, fmt: Format, shape: Shape) -> Any:
        """What `linear` needs, computed once per load. `fields` do not change while it is used."""

    def linear(self, x: torch.Tensor, state: Any) -> torch.Tensor:
        """x [rows, K] -> [rows, N], as F.linear."""
