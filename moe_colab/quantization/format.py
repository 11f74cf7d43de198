"""The format of a low-bit matrix: bits, groups, axis, and the fields that store it.

Knows shapes and bytes, and views into tensors; knows no codes (bits.py packs them).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ..errors import MoEColabError
from ..store.blobs import DTYPE_BYTES

BITS, GROUPS = (2, 3, 4, 8), (16, 32, 64, 128)
USUAL_GROUPS = (64, 32, 16)
"""The groups to try where none is asked for: the first that fits a matrix is used."""
PLANES = {2: {"codes": 2}, 3: {"codes": 2, "high": 1}, 4: {"codes": 4}, 8: {"codes": 8}}
"""{bits of a code: its bit planes with the bits of each, the low ones first}."""
UNITS = (16, 8, 4)  # bytes that are packed together: the largest that divides a row's bytes
PIECE = 2 << 20  # weights worked on at once, so that a large matrix needs no more memory
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Format:
    """How a matrix [N, K] is stored. axis 1: a group is `group` neighbours of one row. axis 0: it
    is `group` weights of one column, N / group rows apart, as in the paper's checkpoint. group
    None: for each matrix the largest of 64, 32 and 16 that fits it."""

    bits: int
    group: int | None = None
    axis: int = 1

    def check_choice(self) -> None:
        """Raises MoEColabError for a combination that exists for no matrix."""
        whole = all(type(number) is int for number in (self.bits, self.group or 16, self.axis))
        choices = self.bits in BITS and self.group in (None, *GROUPS) and self.axis in (0, 1)
        if not whole or not choices:
            groups = "" if self.group is None else f" in groups of {self.group}"
            raise MoEColabError(
                f"there is no format of {self.bits} bits{groups} along axis {self.axis}: choose "
                f"bits from {BITS}, groups from {GROUPS} and axis 0 or 1."
            )

    def with_group(self, shape: Shape) -> Format:
        """This format with a group for a matrix of this shape; the group may not fit, either."""
        if self.group is not None:
            return self
        fits = (group for group in USUAL_GROUPS if shape[self.axis] % group == 0)
        return replace(self, group=next(fits, USUAL_GROUPS[-1]))

    def fits(self, shape: Shape) -> bool:
        return shape[self.axis] % self.group == 0 and shape[1] % 32 == 0

    def check(self, name: str, shape: Shape) -> None:
        """Raises MoEColabError where the matrix `name` cannot be stored in this format."""
        self.check_choice()
        if not self.fits(shape):
            fitting = [group for group in GROUPS if replace(self, group=group).fits(shape)]
            advice = f"choose group_size={max(fitting)}, or keep" if fitting else "keep"
            raise MoEColabError(
                f"{name} is {shape[0]} x {shape[1]}: groups of {self.group} along axis {self.axis} "
                f"do not divide it, or 32 does not divide its columns; {advice} it at 16 bits."
            )

    def grid(self, shape: Shape) -> Shape:
        """The shape of the scales, one for every group: [N, K / group] along axis 1,
        [N / group, K] along axis 0."""
        rows, columns = shape
        return (rows, columns // self.group) if self.axis else (rows // self.group, columns)

    def fields(self, shape: Shape) -> dict[str, tuple[str, Shape]]:
        """{field: (safetensors' dtype, shape)} in the order of the file; bits.py explains them."""
        rows, columns = shape
        grid = self.grid(shape)
        fields: dict[str, tuple[str, Shape]] = {
            name: ("U8", (rows * columns * bits // 8,)) for name, bits in PLANES[self.bits].items()
        }
        if self.bits == 8:
            return fields | {"scale": ("F32", grid), "zero": ("F32", grid)}
        return fields | {
            "scale": ("U8", grid),
            "zero": ("U8", grid),
            "lines": ("BF16", (grid[0], 4)),
        }

    def grouped(self, matrix: torch.Tensor) -> torch.Tensor:
        """A view of [N, K] whose dimension `2 * axis` runs over the weights of a group."""
        rows, columns = matrix.shape
        if self.axis:
            return matrix.view(rows, columns // self.group, self.group)
        return matrix.view(self.group, rows // self.group, columns)

    def pieces(self, shape: Shape) -> Iterator[tuple[slice, Shape]]:
        """(rows of the grid, shape of their weights as a matrix) of each piece. No group and no row
        of the grid is in two pieces, so each can be quantized and dequantized by itself."""
        rows, columns = self.grid(shape)[0], shape[1]
        each = 1 if self.axis else self.group
        step = max(1, PIECE // (each * columns))
        for start in range(0, rows, step):
            piece = slice(start, min(rows, start + step))
            yield piece, (each * (piece.stop - start), columns)

    def part(self, matrix: torch.Tensor, piece: slice) -> torch.Tensor:
        """A view of the part of [N, K] that belongs to these rows of the grid."""
        if self.axis:
            return matrix[piece]
        return matrix.view(self.group, -1, matrix.shape[1])[:, piece]

    def field(self, values: torch.Tensor, name: str, shape: Shape, piece: slice) -> torch.Tensor:
        """A view of the part of a field that belongs to these rows of the grid."""
        if name not in PLANES[self.bits]:
            return values[piece]
        rows = self.grid(shape)[0]
        if self.axis:
            return values.view(rows, -1)[piece]
        return values.view(-1, rows, shape[1])[:, piece]


def stored_bytes(shape: Shape, fmt: Format) -> int:
    """Bytes of a matrix's codes, scales and zeros."""
    return sum(math.prod(dims) * DTYPE_BYTES[kind] for kind, dims in fmt.fields(shape).values())
