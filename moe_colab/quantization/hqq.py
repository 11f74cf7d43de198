"""HQQ's choice of scales and zeros, by the hqq package (Badri and Shaji 2023, "Half-Quadratic
Quantization of Large Machine Learning Models"). Needed to quantize, never to run."""

from __future__ import annotations

import torch

from ..errors import MoEColabError
from .format import Format


def choose(weight: torch.Tensor, form: Format) -> tuple[torch.Tensor, torch.Tensor]:
    """Float scales and zeros [grid] of the groups of `weight` [N, K], on the weight's device.
    Raises MoEColabError where hqq is not installed."""
    try:
        from hqq.core.quantize import Quantizer
    except ImportError as error:
        raise MoEColabError(
            f"quantizing needs the hqq package ({error}): DISABLE_CUDA=1 pip install hqq"
        ) from error
    _, chosen = Quantizer.quantize(
        weight.float(),
        nbits=form.bits,
        group_size=form.group,
        axis=form.axis,
        bitpack=False,
        device=str(weight.device),
    )
    grid = form.grid(tuple(weight.shape))
    return chosen["scale"].view(grid).float(), chosen["zero"].view(grid).float()
