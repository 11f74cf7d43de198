"""A low-bit weight: a matrix in its fields, and the kernels that multiply with it.

Knows fields and the dispatcher; knows no expert and no slot.
"""

from __future__ import annotations

from typing import Any

import torch

from ..bits import dequantize
from ..format import Format, Shape
from .dispatch import AUTO, Dispatcher, dispatcher_for
from .kernel import Fields


class LowBitWeight:
    """A matrix [N, K] in its fields. Call `renew` after another matrix of the same format was
    written into them."""

    def __init__(
        self, fields: Fields, fmt: Format, shape: Shape, dispatcher: Dispatcher | None = None
    ):
        self.fields, self.fmt, self.shape = fields, fmt, shape
        self._dispatcher = dispatcher or dispatcher_for(AUTO)
        self.renew()

    def renew(self) -> None:
        """Forget what the kernels have prepared."""
        self._states: dict[str, Any] = {}

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., K] -> [..., N], by the best kernel for this number of rows."""
        rows = x.reshape(-1, self.shape[1])
        kernels = self._dispatcher.choose(self.fmt, self.shape, x.dtype, x.device)
        kernel = next(kernel for kernel in kernels if len(rows) <= kernel.max_rows)
        if kernel.name not in self._states:
            self._states[kernel.name] = kernel.prepare(self.fields, self.fmt, self.shape)
        return kernel.linear(rows, self._states[kernel.name]).view(*x.shape[:-1], self.shape[0])

    def rows(self, numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The rows of these `numbers` [R], dequantized, [R, K]. The groups must be along axis 1."""
        whole = slice(None)
        fields = {
            name: self.fmt.field(values, name, self.shape, whole).index_select(0, numbers)
            for name, values in self.fields.items()
        }
        return dequantize(fields, self.fmt, (len(numbers), self.shape[1]), dtype)

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The whole matrix, [N, K]."""
        return dequantize(self.fields, self.fmt, self.shape, dtype)
