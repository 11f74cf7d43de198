"""Choosing scales: of several candidates for a group of weights, that whose rounding loses least.

The candidates are HQQ's, the plain range from the smallest to the largest weight, and narrower
ranges around its middle: a few clipped weights cost less than a coarse step for all. HQQ alone
minimizes another norm than the squares, and loses to the plain range on some matrices at 4 bits.
Knows one matrix and how scales are stored; knows no experts.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .bits import Scales, dequantize_scales, quantize_scales
from .format import Format
from .hqq import hqq_scales

NARROWEST = {2: 0.5, 3: 0.5, 4: 0.7, 8: 0.9}  # by bits: the least part of the range
WIDTHS = 16  # between that and the whole range


def choose_scales(weight: torch.Tensor, fmt: Format) -> Scales:
    """Scales and zeros, float32 [grid], for the groups of `weight` [N, K], on its device. The
    squared error of every row of the grid is at most that of the plain range and of HQQ, with the
    scales as they are stored. Raises MoEColabError where hqq is not installed."""
    plain, hqq = plain_range(weight, fmt), hqq_scales(weight, fmt)
    best, least = hqq, group_errors(weight, fmt, hqq)
    for scales in (plain, *narrower(weight, fmt)):
        errors = group_errors(weight, fmt, scales)
        best = pick(errors < least, scales, best)
        least = least.minimum(errors)
    # Stored scales of a row share a step, so what is best for each group may not be for the row.
    least = row_errors(weight, fmt, best)
    for scales in (plain, hqq):
        errors = row_errors(weight, fmt, scales)
        best = pick((errors < least)[:, None], scales, best)
        least = least.minimum(errors)
    return best


def plain_range(weight: torch.Tensor, fmt: Format, part: float = 1.0) -> Scales:
    """For codes from the smallest to the largest weight of each group, or for this part of the
    range."""
    low, high = fmt.grouped(weight).aminmax(dim=2 * fmt.axis)
    middle, half = (low + high) / 2, (high - low) / 2 * part
    scale = 2 * half / (2**fmt.bits - 1)
    scale = torch.where(scale > 0, scale, middle.abs())  # all weights of the group are equal
    scale = torch.where(scale > 0, scale, 1.0)
    return scale, (half - middle) / scale


def narrower(weight: torch.Tensor, fmt: Format) -> Iterator[Scales]:
    for number in range(1, WIDTHS):
        yield plain_range(weight, fmt, 1 - (1 - NARROWEST[fmt.bits]) * number / (WIDTHS - 1))


def group_errors(weight: torch.Tensor, fmt: Format, scales: Scales) -> torch.Tensor:
    """The squared errors [grid] of rounding with these scales."""
    dim = 2 * fmt.axis
    scale, zero = (part.unsqueeze(dim) for part in scales)
    groups = fmt.grouped(weight)
    codes = (groups / scale + zero).round_().clamp_(0, 2**fmt.bits - 1)
    return codes.sub_(zero).mul_(scale).sub_(groups).square_().sum(dim)


def row_errors(weight: torch.Tensor, fmt: Format, scales: Scales) -> torch.Tensor:
    """The squared errors of every row of the grid, with the scales as they are stored."""
    stored = dequantize_scales(fmt, quantize_scales(fmt, *scales))
    return group_errors(weight, fmt, stored).sum(1)


def pick(where: torch.Tensor, scales: Scales, others: Scales) -> Scales:
    """`scales` where it is true, `others` elsewhere."""
    return tuple(torch.where(where, one, two) for one, two in zip(scales, others, strict=True))
