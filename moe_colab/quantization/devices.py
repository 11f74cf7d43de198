"""Device and dtype of a model: checks what the user asks for against what the machine can do. Knows
torch and CUDA; knows no model."""

from __future__ import annotations

import torch

from ..errors import MoEColabError

COMPUTE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device(device: str | torch.device) -> torch.device:
    """The device that the user names; "auto" is the GPU, if there is one. Raises MoEColabError for
    a device that is not there."""
    if str(device) == "auto":
        return (
            torch.device("cuda", torch.cuda.current_device())
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise MoEColabError(f"{device!r} is not a device: use auto, cpu or cuda.") from error
    if device.type not in ("cpu", "cuda"):
        raise MoEColabError(f"moe_colab runs on cpu and cuda, not on {device.type}.")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise MoEColabError(
                "this machine has no CUDA GPU that torch can use: leave device out, or use "
                "device='cpu'."
            )
        index = torch.cuda.current_device() if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise MoEColabError(
                f"there is no {device}: this machine has {torch.cuda.device_count()} GPUs."
            )
        device = torch.device("cuda", index)
    return device


def pick_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """The dtype that the user names, None for "auto". Raises MoEColabError for one that models
    cannot compute in."""
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        return None
    if name not in COMPUTE_DTYPES:
        raise MoEColabError(
            f"moe_colab cannot compute in {dtype}: use auto, {', '.join(COMPUTE_DTYPES)}."
        )
    return COMPUTE_DTYPES[name]


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16. Asks for the compute capability, because torch says
    yes where bfloat16 is only emulated, as on a T4."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def check_device_dtype(device: torch.device, dtype: torch.dtype) -> None:
    """Raises MoEColabError where the device cannot compute in `dtype`."""
    if dtype is torch.bfloat16 and not has_bfloat16(device):
        raise MoEColabError(
            f"{torch.cuda.get_device_name(device)} cannot compute in bfloat16: use dtype='float16'."
        )


def usable_dtype(own: torch.dtype, wanted: torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype in which a checkpoint of dtype `own` is packed; `wanted` None is "auto". Raises
    MoEColabError where the device cannot compute in it."""
    if wanted is None:
        return torch.float16 if own is torch.bfloat16 and not has_bfloat16(device) else own
    check_device_dtype(device, wanted)
    return wanted
