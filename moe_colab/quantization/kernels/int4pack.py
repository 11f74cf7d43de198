"""The int4pack kernel: torch's 4-bit product on a CPU, for bfloat16 and few rows of x.

`aten::_weight_int4pack_mm_for_cpu(x, packed, group, lines)`, found by trying on torch 2.13: a
weight is (code - 8) * scale + zero with codes of 0 to 15; `lines` [K / group, N, 2] hold scale and
zero in x's dtype; groups are 32, 64, 128 or 256 along K, N is a multiple of 16, sums are float32.
Only bfloat16 is fast. `packed` uint8 [N, K / 2] depends on the CPU, so it is made at load and
never stored. Knows this op and our formats; knows no other kernel.
"""

from __future__ import annotations

import functools

import torch

from ..bits import dequantize_scales, unpack_codes
from ..format import PIECE, PLANES, Format, Shape
from .kernel import Fields

TILE = 64  # rows; the op packs so many together, or a divisor of it
State = tuple[torch.Tensor, int, torch.Tensor]


class Int4Pack:
    """Moves codes of 2 and 3 bits to the middle of the op's sixteen codes. At the low end, zeros
    would be larger than the weights, and in bfloat16 the error of 2 bits would be 4 to 5 times that
    of the fallback; in the middle it is 1.0 to 1.1 times, and 1.3 times where the mean of x is as
    large as its spread, because the weights of a group share the rounding of their zero."""

    name, max_rows = "int4pack", 8

    def fits(self, fmt: Format, shape: Shape, dtype: torch.dtype, device: torch.device) -> bool:
        here = device.type == "cpu" and hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")
        known = fmt.axis == 1 and fmt.bits <= 4 and fmt.group >= 32 and shape[0] % 16 == 0
        return here and known and dtype == torch.bfloat16

    def prepared_bytes(self, fmt: Format, shape: Shape) -> int:
        rows, columns = shape
        return rows * columns // 2 + rows * columns // fmt.group * 4

    def prepare(self, fields: Fields, fmt: Format, shape: Shape) -> State:
        (rows, columns), middle = shape, 2 ** (fmt.bits - 1)
        packed = fields["codes"].new_empty((rows, columns // 2))
        step = max(TILE, PIECE // columns // TILE * TILE)
        for start in range(0, rows, step):
            piece = slice(start, min(rows, start + step))
            planes = {
                name: fmt.field(fields[name], name, shape, piece) for name in PLANES[fmt.bits]
            }
            codes = unpack_codes(planes, fmt, (piece.stop - start, columns)) + (8 - middle)
            packed[piece] = pack_int4(codes)
        scale, zero = dequantize_scales(fmt, fields)
        lines = torch.stack([scale, (middle - zero) * scale], -1).bfloat16()
        return packed, fmt.group, lines.transpose(0, 1).contiguous()

    def linear(self, x: torch.Tensor, state: State) -> torch.Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x.contiguous(), *state)


def pack_int4(codes: torch.Tensor) -> torch.Tensor:
    """int16 codes [N, K] in the op's layout. The op's own packing is slower than a load."""
    half = half_tile()
    if half and len(codes) % (2 * half) == 0:
        return paired(codes, half)
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)


def paired(codes: torch.Tensor, half: int) -> torch.Tensor:
    """Packs rows d and d + half of a tile into the same bytes, in the order (tile, column, d)."""
    tiles = codes.view(-1, 2, half, codes.shape[1])
    both = (tiles[:, 0] | tiles[:, 1] << 4).to(torch.uint8)
    return both.transpose(1, 2).reshape(len(codes), -1)


@functools.cache
def half_tile() -> int:
    """The half with which `paired` packs as the op does on this CPU: 32 with AVX-512, 16 with AVX2;
    0 where neither does."""
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(16, (TILE, 32), generator=random, dtype=torch.int16, device="cpu")
    theirs = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    return next((half for half in (32, 16) if torch.equal(paired(codes, half), theirs)), 0)
