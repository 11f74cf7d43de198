"""Choosing scales: HQQ's, or those of plain rounding where these lose less.

HQQ is nearer to the weights than plain rounding from the smallest to the largest weight on nearly
all matrices, but it fails where the weights are very small. Knows one matrix and how scales are
stored; knows no experts.
"""

from __future__ import annotations

import torch

from .bits import Scales, dequantize_scales, quantize_scales
from .format import Format
from .hqq import hqq_scales


def choose_scales(weight: torch.Tensor, fmt: Format) -> Scales:
    """Scales and zeros, float32 [grid], for the groups of `weight` [N, K], on its device: of HQQ or
    of plain rounding, whichever has the smaller squared error with the scales as they are stored.
    Raises MoEColabError where hqq is not installed."""
    plain, hqq = plain_scales(weight, fmt), hqq_scales(weight, fmt)
    return plain if squared_error(weight, fmt, plain) < squared_error(weight, fmt, hqq) else hqq


def plain_scales(weight: torch.Tensor, fmt: Format) -> Scales:
    """For codes from the smallest to the largest weight of each group."""
    low, high = fmt.grouped(weight).aminmax(dim=2 * fmt.axis)
    scale = (high - low) / (2**fmt.bits - 1)
    scale = torch.where(scale > 0, scale, low.abs())  # all weights of the group are equal
    scale = torch.where(scale > 0, scale, 1.0)
    return scale, -low / scale


def squared_error(weight: torch.Tensor, fmt: Format, scales: Scales) -> float:
    """That of the whole matrix, with the scales as they are stored."""
    stored = dequantize_scales(fmt, quantize_scales(fmt, *scales))
    scale, zero = (part.unsqueeze(2 * fmt.axis) for part in stored)
    groups = fmt.grouped(weight)
    codes = (groups / scale + zero).round_().clamp_(0, 2**fmt.bits - 1)
    return codes.sub_(zero).mul_(scale).sub_(groups).square_().sum(dtype=torch.float64).item()
