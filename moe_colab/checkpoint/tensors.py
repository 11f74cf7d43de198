"""Tensors from safetensors files, one at a time, and their bytes.

Knows torch's dtypes and the entries of headers; knows no names. Reads into memory of its own
instead of mapping files: mapped pages count as resident memory, and a checkpoint is larger than the
host.
"""

from __future__ import annotations

import torch

from ..errors import MoEColabError
from ..store.safetensors import TensorEntry, read_bytes

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def read_tensor(entry: TensorEntry, row: int | None = None) -> torch.Tensor:
    """A tensor, or its part `[row]` along the first axis, in new memory."""
    shape, start, nbytes = entry.shape, entry.start, entry.nbytes
    if row is not None:
        shape, nbytes = shape[1:], nbytes // shape[0]
        start += row * nbytes
    out = torch.empty(shape, dtype=torch_dtype(entry), device="cpu")
    if nbytes:
        read_bytes(entry.path, start, as_bytes(out))
    return out


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def torch_dtype(entry: TensorEntry) -> torch.dtype:
    """The torch dtype of a tensor. Raises MoEColabError for one that moe_colab cannot read."""
    if entry.dtype not in TORCH_DTYPES:
        raise MoEColabError(
            f"{entry.path} holds {entry.name} as {entry.dtype}, which moe_colab cannot read."
        )
    return TORCH_DTYPES[entry.dtype]
