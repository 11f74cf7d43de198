"""Low-bit matrices: every format there and back, hqq's formula, its error, real bits."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import TINY_MOE
from hqq.core.quantize import Quantizer

import moe_colab as mc
from moe_colab.checkpoint.reader import Checkpoint
from moe_colab.quantization import bits as bits_module
from moe_colab.quantization import format as formats
from moe_colab.quantization import scales as scales_module
from moe_colab.quantization.format import BITS, GROUPS, Format

pytestmark = pytest.mark.colab
FORMATS = [Format(b, g, a) for b in BITS for g in GROUPS for a in (0, 1)]
DTYPE_BYTES = {"U8": 1, "BF16": 2, "F32": 4}


def matrix(rows: int, columns: int, seed: int = 0, heavy: bool = True) -> torch.Tensor:
    """Weights with outliers, as trained ones have."""
    torch.manual_seed(seed)
    if not heavy:
        return torch.randn(rows, columns)
    return torch.distributions.StudentT(4.0).sample((rows, columns)) * 0.02


def hqq(weight: torch.Tensor, fmt: Format):
    codes, meta = Quantizer.quantize(
        weight.clone(), nbits=fmt.bits, group_size=fmt.group, axis=fmt.axis, bitpack=False,
        compute_dtype=torch.float32, device="cpu",
    )  # fmt: skip
    return codes, meta


def error(got: torch.Tensor, weight: torch.Tensor) -> float:
    return ((got - weight).norm() / weight.norm()).item()


def quantized(weight: torch.Tensor, fmt: Format) -> dict[str, torch.Tensor]:
    return bits_module.quantize_matrix(weight, fmt, scales_module.choose_scales)[0]


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(128, 256), (256, 384), (128, 160)], ids=str)
def test_codes_come_back_from_every_packing(fmt, shape):
    if shape[fmt.axis] % fmt.group:
        with pytest.raises(mc.MoEColabError, match="do not divide"):
            fmt.check("w1", shape)
        return
    fmt.check("w1", shape)
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 2**fmt.bits, shape, generator=generator, dtype=torch.uint8)
    packed = bits_module.pack_codes(codes, fmt)
    assert sum(plane.numel() for plane in packed.values()) * 8 == fmt.bits * codes.numel()
    assert torch.equal(bits_module.unpack_codes(packed, fmt, shape).to(torch.uint8), codes)
    declared = fmt.fields(shape)
    assert {name: tuple(t.shape) for name, t in packed.items()} == {
        name: declared[name][1] for name in packed
    }


@pytest.mark.parametrize("bits", (1, 2, 4, 8))
def test_where_a_code_lies_in_a_row(bits):
    """The layout that kernels rely on, said another way: column c = (u/2) i + 2 j + h of a unit of
    u bytes is at bit 16 h + bits i of its word j."""
    columns = 128 // bits * 2
    plane = torch.randint(0, 2**bits, (3, columns), dtype=torch.uint8)
    words = bits_module.pack_rows(plane, bits, 64).view(torch.int32).view(3, 2, 4)
    for row in range(3):
        for column in range(columns):
            unit, c = divmod(column, 128 // bits)
            i, (j, h) = c // 8, divmod(c % 8, 2)
            word = words[row, unit, j].item() & 0xFFFFFFFF
            assert word >> 16 * h + bits * i & 2**bits - 1 == plane[row, column]


@pytest.mark.parametrize("bits", (2, 4))
def test_axis_0_is_packed_as_hqq_packs(bits):
    fmt = Format(bits, 64, 0)
    weight = matrix(128, 256)
    ours = quantized(weight, fmt)["codes"]
    codes = bits_module.unpack_codes({"codes": ours}, fmt, (128, 256)).to(torch.uint8)
    theirs = Quantizer.pack[f"{bits}bit_u8"](codes.view(64, -1))
    assert torch.equal(ours, theirs.flatten())


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_dequantizing_is_hqqs_formula(fmt):
    weight = matrix(128, 256)
    fields = quantized(weight, fmt)
    scale, zero = bits_module.dequantize_scales(fmt, fields)
    codes = bits_module.unpack_codes(fields, fmt, (128, 256))
    view = (1, -1) if fmt.axis == 0 else (-1, 1)
    meta = {
        "scale": scale.reshape(view), "zero": zero.reshape(view), "shape": (128, 256),
        "packing": None, "compute_dtype": torch.float32,
    }  # fmt: skip
    by_group = (fmt.group, -1) if fmt.axis == 0 else (-1, fmt.group)
    theirs = Quantizer.dequantize(codes.reshape(by_group).float(), meta)
    assert torch.equal(bits_module.dequantize(fields, fmt, (128, 256), torch.float32), theirs)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_the_error_is_hqqs_with_float_scales_to_one_percent(fmt):
    for heavy in (False, True):
        weight = matrix(256, 512, seed=fmt.group, heavy=heavy)
        codes, meta = hqq(weight, fmt)
        theirs = Quantizer.dequantize(codes, {**meta, "compute_dtype": torch.float32})
        ours = bits_module.dequantize(quantized(weight, fmt), fmt, (256, 512), torch.float32)
        assert error(ours, weight) <= 1.01 * error(theirs, weight)


@pytest.mark.parametrize(
    "bits, group, most", [(2, 16, 3.05), (2, 64, 2.30), (3, 64, 3.30), (4, 64, 4.30), (8, 64, 9.01)]
)
def test_real_bits_of_a_weight(bits, group, most):
    shape = (1024, 4096)
    fields = Format(bits, group).fields(shape)
    nbytes = sum(math.prod(s) * DTYPE_BYTES[dtype] for dtype, s in fields.values())
    assert bits < 8 * nbytes / math.prod(shape) <= most


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_a_matrix_is_worked_on_in_pieces(fmt, monkeypatch):
    """As each piece alone; the weights that were given stay as they are."""
    weight = matrix(512, 384)
    before = weight.clone()
    monkeypatch.setattr(formats, "PIECE", 300 * 384 if fmt.axis else fmt.group * 384)
    fields, lost = bits_module.quantize_matrix(weight, fmt, scales_module.choose_scales)
    assert torch.equal(weight, before)
    pieces = list(fmt.pieces((512, 384)))
    assert len(pieces) == (2 if fmt.axis else 512 // fmt.group)
    got = bits_module.dequantize(fields, fmt, (512, 384), torch.float32)
    assert error(got, weight) == pytest.approx(lost, rel=1e-4)
    for piece, shape in pieces:
        part = fmt.part(weight, piece).reshape(shape)
        alone = bits_module.dequantize(quantized(part, fmt), fmt, shape, torch.float32)
        assert torch.equal(fmt.part(got, piece).reshape(shape), alone)
    monkeypatch.undo()
    assert torch.equal(bits_module.dequantize(fields, fmt, (512, 384), torch.float32), got)


def trained_matrices() -> list[torch.Tensor]:
    """Twenty of the small model's, from all of its layers."""
    checkpoint = Checkpoint(TINY_MOE)
    numbers = [divmod(7 * number, 8) for number in range(10)]
    return [m.float() for at in numbers for m in checkpoint.expert(at[0] % 8, at[1]).values()]


@pytest.mark.parametrize("bits, group", [(2, 16), (2, 64), (3, 64), (4, 64)])
def test_error_and_bits_beside_hqq(bits, group, capsys):
    """Twenty random and twenty trained matrices, each at most one percent above, at fewer bits;
    both are printed."""
    fmt = Format(bits, group)
    random = [matrix(256, 512, seed, heavy=seed % 2 == 0) for seed in range(20)]
    lines = []
    for kind, matrices in (("random", random), ("trained", trained_matrices())):
        assert len(matrices) == 20
        ratios, ours_bits, their_bits = [], [], []
        for weight in matrices:
            codes, meta = hqq(weight, fmt)
            theirs = Quantizer.dequantize(codes, meta)
            fields, lost = bits_module.quantize_matrix(weight, fmt, scales_module.choose_scales)
            ratios.append(lost / error(theirs, weight))
            ours_bits.append(8 * sum(f.nbytes for f in fields.values()) / weight.numel())
            floats = meta["scale"].nbytes + meta["zero"].nbytes
            their_bits.append(bits + 8 * floats / weight.numel())
            assert lost <= 1.01 * error(theirs, weight)
            assert ours_bits[-1] < their_bits[-1]
        lines.append(
            f"{bits} bits, groups of {group}, 20 {kind} matrices: error {min(ratios):.4f} to "
            f"{max(ratios):.4f} of hqq's, {max(ours_bits):.3f} bits a weight at most (hqq with "
            f"float scales {min(their_bits):.3f})"
        )
    with capsys.disabled():
        print("", *lines, sep="\n")


def test_odd_weights():
    fmt = Format(2, 64)
    for weight in (torch.zeros(32, 64), torch.full((32, 64), 3.0), torch.full((32, 64), 1e-8)):
        got = bits_module.dequantize(quantized(weight, fmt), fmt, (32, 64), torch.float32)
        assert torch.isfinite(got).all()
        assert (got - weight).abs().max() <= 0.01 * weight.abs().max() + 1e-4


def test_a_format_that_is_none():
    for fmt in (Format(5, 64), Format(4, 48), Format(4, 64, 2)):
        with pytest.raises(mc.MoEColabError, match="choose bits"):
            fmt.check("w", (64, 64))
