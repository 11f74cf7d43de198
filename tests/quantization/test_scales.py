"""The choice of scales: never a larger error than by plain rounding, nor than by HQQ."""

from __future__ import annotations

import pytest
import torch
from test_bits import FORMATS, matrix, trained_matrices

from moe_colab.quantization.bits import Scales, quantize_matrix
from moe_colab.quantization.format import Format
from moe_colab.quantization.hqq import hqq_scales
from moe_colab.quantization.scales import choose_scales


def rounded(weight: torch.Tensor, fmt: Format) -> Scales:
    """The scales of plain rounding, written down by hand."""
    rows, columns = weight.shape
    if fmt.axis:
        groups = weight.reshape(rows, columns // fmt.group, fmt.group)
        low, high = groups.min(-1).values, groups.max(-1).values
    else:  # a group has every (rows / group)th weight of a column
        groups = weight.reshape(fmt.group, rows // fmt.group, columns)
        low, high = groups.min(0).values, groups.max(0).values
    scale = ((high - low) / (2**fmt.bits - 1)).clamp(min=1e-8)
    return scale, -low / scale


def outliers() -> torch.Tensor:
    weight = matrix(128, 256, seed=5)
    weight[::7, ::31] *= 40
    return weight


def steps() -> torch.Tensor:
    """Of few different values, so that the plain range is exact at 3 bits and more."""
    return (torch.arange(128 * 256) % 8).view(128, 256) / 4 - 1


MATRICES = {
    "normal": lambda: matrix(128, 256, heavy=False),
    "heavy tails": lambda: matrix(128, 256),
    "outliers": outliers,
    "one sign": lambda: matrix(128, 256).abs() + 0.1,
    "steps": steps,
    "tiny": lambda: matrix(128, 256) * 1e-6,
    "a row of zeros": lambda: matrix(128, 256) * (torch.arange(128) % 3 > 0)[:, None],
}


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_no_matrix_loses_more_than_by_plain_rounding_or_by_hqq(fmt, kind):
    weight = MATRICES[kind]()
    ours = quantize_matrix(weight, fmt, choose_scales)[1]
    for other in (rounded, hqq_scales):
        assert ours <= quantize_matrix(weight, fmt, other)[1] * (1 + 1e-6)


@pytest.mark.parametrize("fmt", [Format(4, 64), Format(3, 32)], ids=str)
def test_each_of_the_two_is_chosen_where_it_is_better(fmt):
    other = {"tiny": hqq_scales, "heavy tails": rounded}
    for kind, worse in other.items():
        weight = MATRICES[kind]()
        ours = quantize_matrix(weight, fmt, choose_scales)[1]
        assert ours < 0.97 * quantize_matrix(weight, fmt, worse)[1], kind


def test_on_the_small_model_hqq_is_always_better():
    """So the measured numbers of the small model are those of HQQ."""
    for weight in trained_matrices():
        for fmt in (Format(2, 16), Format(3, 64), Format(4, 64)):
            chosen, hqq = choose_scales(weight, fmt), hqq_scales(weight, fmt)
            assert all(map(torch.equal, chosen, hqq))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.37, 3e-4])
def test_equal_weights_stay_as_they_are(bits, value):
    weight = torch.full((64, 128), value)
    assert quantize_matrix(weight, Format(bits, 64), choose_scales)[1] < 0.004  # of bfloat16
