"""What a rung is, and the floor: dequantize, then an ordinary product.

The floor takes every format on every device and keeps nothing between two products, so that a slot
costs its blob and no more. Preparing the scales anew is 5 % of dequantizing 14336 x 4096 on a CPU
in groups of 16, 1 % in groups of 64; to keep them would more than double a slot of 2 bits.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from ..bits import dequantize
from ..format import Format, Shape

Fields = Mapping[str, torch.Tensor]


class Rung(Protocol):
    """One way to multiply. `max_rows`: how many rows of x it is for. What `prepare` returns is kept
    beside the matrix until other bytes are written there, `prepared_bytes` of memory."""

    name: str
    max_rows: int

    def fits(self, form: Format, shape: Shape, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether it is made for this; that it works is for a trial to say."""

    def prepared_bytes(self, form: Format, shape: Shape) -> int: ...

    def prepare(self, fields: Fields, form: Format, shape: Shape) -> Any:
        """Once for every load. `fields` stay as they are for as long as the result is used."""

    def linear(self, x: torch.Tensor, state: Any) -> torch.Tensor:
        """x [rows, K] -> [rows, N], as F.linear."""


class Plain:
    """The weights exist in full, in x's dtype, for one product only."""

    name, max_rows = "plain", sys.maxsize

    def fits(self, form: Format, shape: Shape, dtype: torch.dtype, device: torch.device) -> bool:
        return True

    def prepared_bytes(self, form: Format, shape: Shape) -> int:
        return 0

    def prepare(self, fields: Fields, form: Format, shape: Shape) -> tuple[Fields, Format, Shape]:
        return fields, form, shape

    def linear(self, x: torch.Tensor, state: tuple[Fields, Format, Shape]) -> torch.Tensor:
        return F.linear(x, dequantize(*state, x.dtype))
