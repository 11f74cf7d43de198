"""Low-bit matrices: quantizing, packing, unpacking and dequantizing one of 2, 3, 4 or 8 bits.

Knows bits, groups and tensors; knows no experts, no store, and no method to choose scales. A weight
is (code - zero) * scale, with one scale and one zero for every group. Legend: N rows (out), K
columns (in); [grid] is the shape of the scales, see `Format.grid`.

Codes are packed in bit planes: those of 3 bits in a plane of their 2 low bits and one of the high
bit. Up to 4 bits, scales and zeros are quantized too (double quantization, as in QLoRA): each is a
byte, with one step and one offset for a row of the grid. The field "lines" [rows of the grid, 4]
holds them: step and offset of the scales, step and offset of the zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from .format import PLANES, UNITS, Format, Shape

KINDS = {"U8": torch.uint8, "BF16": torch.bfloat16, "F32": torch.float32}

Scales = tuple[torch.Tensor, torch.Tensor]
"""Scales and zeros, float32 [grid]."""
ChooseScales = Callable[[torch.Tensor, Format], Scales]
"""Finds them for a float32 matrix [N, K]."""


# ---------------------------------------------------------------------- quantize
def quantize_matrix(
    weight: torch.Tensor, fmt: Format, choose_scales: ChooseScales
) -> tuple[dict[str, torch.Tensor], float]:
    """(fields, relative error) of `weight` [N, K]; the error is the norm of the difference over the
    norm of the weights. Works piece by piece: it takes memory for the fields and a few copies of
    one piece."""
    shape = tuple(weight.shape)
    fields = {
        name: torch.empty(dims, dtype=KINDS[kind], device=weight.device)
        for name, (kind, dims) in fmt.fields(shape).items()
    }
    error = total = 0.0
    for piece, dims in fmt.pieces(shape):
        part = fmt.part(weight, piece).float().contiguous().view(dims)
        packed = quantize_piece(part, fmt, choose_scales)
        for name, values in packed.items():
            into = fmt.field(fields[name], name, shape, piece)
            into.copy_(values.view(into.shape))
        total += part.square().sum(dtype=torch.float64).item()
        back = dequantize(packed, fmt, dims, torch.float32)
        error += back.sub_(part).square_().sum(dtype=torch.float64).item()
    return fields, (error / max(total, 1e-60)) ** 0.5


def quantize_piece(
    weight: torch.Tensor, fmt: Format, choose_scales: ChooseScales
) -> dict[str, torch.Tensor]:
    """The fields of one piece. The codes are rounded with the scales as they are stored, and so
    make up for most of the scales' own rounding."""
    scales = quantize_scales(fmt, *choose_scales(weight, fmt))
    scale, zero = (part.unsqueeze(2 * fmt.axis) for part in dequantize_scales(fmt, scales))
    codes = fmt.grouped(weight) / scale + zero
    codes = codes.round_().clamp_(0, 2**fmt.bits - 1).to(torch.uint8)
    return {**pack_codes(codes.view(weight.shape), fmt), **scales}


def quantize_scales(
    fmt: Format, scale: torch.Tensor, zero: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The fields that store scales and zeros [grid]; floats at 8 bits, whose codes are too fine for
    coarse scales."""
    if fmt.bits == 8:
        return {"scale": scale.float(), "zero": zero.float()}
    fields, lines = {}, []
    for name, values in (("scale", scale.float()), ("zero", zero.float())):
        low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
        offset, step = low.bfloat16(), ((high - low) / 255).bfloat16()
        safe = step.float().where(step > 0, 1.0)
        fields[name] = ((values - offset.float()) / safe).round().clamp(0, 255).to(torch.uint8)
        lines += [step, offset]
    return fields | {"lines": torch.cat(lines, 1)}


def pack_codes(codes: torch.Tensor, fmt: Format) -> dict[str, torch.Tensor]:
    """uint8 codes [N, K] as bit planes, uint8 [bytes] each."""
    planes, below = {}, 0
    for name, bits in PLANES[fmt.bits].items():
        plane = codes >> below & 2**bits - 1
        planes[name] = (pack_rows if fmt.axis else pack_columns)(plane, bits, fmt.group).flatten()
        below += bits
    return planes


def pack_rows(plane: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Packs a plane along axis 1. A unit of u bytes holds neighbours of one row: column (u/2) i +
    2 j + h of the unit is in its 32-bit word j, at bit 16 h + bits i. So a kernel gets two codes
    with one mask and one shift, in the natural order of the activations."""
    pieces = plane.view(*split(plane.shape, bits)).to(torch.int32)  # [N, units, i, words, 2]
    shifts = bits * torch.arange(16 // bits, device=plane.device, dtype=torch.int32)
    halves = (pieces << shifts[:, None, None]).sum(2, dtype=torch.int32)
    return halves.to(torch.uint16).contiguous().view(torch.uint8)


def pack_columns(plane: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Packs a plane along axis 0, as hqq does: a byte holds codes of one group, the first in its
    highest bits."""
    parts = plane.view(8 // bits, group * bits // 8, -1)
    packed = torch.zeros_like(parts[0])
    for part in parts:
        packed = packed << bits | part
    return packed


def split(shape: Shape, bits: int) -> Shape:
    """(N, units in a row, codes in half a word, words in a unit, 2) of a plane [N, K]."""
    rows, columns = shape
    unit = next(unit for unit in UNITS if columns * bits // 8 % unit == 0)
    return (rows, columns * bits // 8 // unit, 16 // bits, unit // 4, 2)


# ---------------------------------------------------------------------- dequantize
def unpack_codes(fields: Mapping[str, torch.Tensor], fmt: Format, shape: Shape) -> torch.Tensor:
    """The codes, int16 [N, K]."""
    codes, below = None, 0
    for name, bits in PLANES[fmt.bits].items():
        plane = (unpack_rows if fmt.axis else unpack_columns)(fields[name], bits, fmt, shape)
        codes = plane.view(shape) if not below else codes | plane.view(shape) << below
        below += bits
    return codes


def unpack_rows(packed: torch.Tensor, bits: int, fmt: Format, shape: Shape) -> torch.Tensor:
    rows, units, count, words, _ = split(shape, bits)
    halves = packed.view(torch.int16).view(rows, units, 1, words, 2)
    shifts = bits * torch.arange(count, device=packed.device, dtype=torch.int16)
    return halves >> shifts[:, None, None] & 2**bits - 1


def unpack_columns(packed: torch.Tensor, bits: int, fmt: Format, shape: Shape) -> torch.Tensor:
    packed = packed.view(1, fmt.group * bits // 8, -1).to(torch.int16)
    shifts = torch.arange(8 - bits, -1, -bits, device=packed.device, dtype=torch.int16)
    return packed >> shifts[:, None, None] & 2**bits - 1


def dequantize_scales(fmt: Format, fields: Mapping[str, torch.Tensor]) -> Scales:
    """Scales and zeros from the fields that store them."""
    if fmt.bits == 8:
        return fields["scale"], fields["zero"]
    lines = fields["lines"].float()
    return (
        fields["scale"].float() * lines[:, 0:1] + lines[:, 1:2],
        fields["zero"].float() * lines[:, 2:3] + lines[:, 3:4],
    )


def dequantize(
    fields: Mapping[str, torch.Tensor], fmt: Format, shape: Shape, dtype: torch.dtype
) -> torch.Tensor:
    """The weights [N, K] in `dtype`, computed in float32. Takes memory for the result and a few
    copies of one piece of it."""
    weight = torch.empty(shape, dtype=dtype, device=fields["scale"].device)
    for piece, dims in fmt.pieces(shape):
        parts = {
            name: fmt.field(values, name, shape, piece).contiguous()
            for name, values in fields.items()
        }
        scale, zero = (part.unsqueeze(2 * fmt.axis) for part in dequantize_scales(fmt, parts))
        codes = fmt.grouped(unpack_codes(parts, fmt, dims).float())
        into = fmt.part(weight, piece)
        into.copy_(codes.sub_(zero).mul_(scale).view(into.shape))
    return weight
