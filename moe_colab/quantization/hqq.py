"""HQQ scales and zeros, found by the hqq package (Badri and Shaji 2023, "Half-Quadratic
Quantization of Large Machine Learning Models"). Needed to quantize, never to run a model. Knows one
matrix; knows nothing of how its codes are stored."""

from __future__ import annotations

import torch

from ..errors import MoEColabError
from .format import Format


def hqq_scales(weight: torch.Tensor, fmt: Format) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros, float32 [grid], for the groups of `weight` [N, K], on its device. Raises
    MoEColabError where hqq is not installed."""
    try:
        from hqq.core.quantize import Quantizer
    except ImportError as error:
        raise MoEColabError(
            f"quantizing needs the hqq package ({error}): DISABLE_CUDA=1 pip install hqq"
        ) from error
    _, meta = Quantizer.quantize(
        weight.float(),
        nbits=fmt.bits,
        group_size=fmt.group,
        axis=fmt.axis,
        bitpack=False,
        device=str(weight.device),
    )
    grid = fmt.grid(tuple(weight.shape))
    return meta["scale"].view(grid).float(), meta["zero"].view(grid).float()
