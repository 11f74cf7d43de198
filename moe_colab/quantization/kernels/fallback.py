"""The fallback kernel: dequantize the matrix, then an ordinary product, in plain torch.

It takes every format on every device and keeps nothing between two products, so that a slot costs
its blob and no more. Preparing the scales for each product takes 5 % of the time to dequantize
14336 x 4096 on a CPU in groups of 16, 1 % in groups of 64; keeping them would more than double a
slot of 2 bits. Knows no other kernel.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F

from ..bits import dequantize
from ..format import Format, Shape
from .kernel import Fields


class Fallback:
    """Dequantizes all weights into x's dtype for every product."""

    name, max_rows = "plain", sys.maxsize

    def fits(self, fmt: Format, shape: Shape, dtype: torch.dtype, device: torch.device) -> bool:
        return True

    def prepared_bytes(self, fmt: Format, shape: Shape) -> int:
        return 0

    def prepare(self, fields: Fields, fmt: Format, shape: Shape) -> tuple[Fields, Format, Shape]:
        return fields, fmt, shape

    def linear(self, x: torch.Tensor, state: tuple[Fields, Format, Shape]) -> torch.Tensor:
        return F.linear(x, dequantize(*state, x.dtype))
