"""safetensors files, read tensor by tensor and written in our own order.

Knows the file format. Reads with pread instead of mmap: mapped pages count as resident memory, and
a checkpoint is larger than the host. The library's writer sorts by name and aligns to 8 bytes only;
ours keeps the order it is given and starts the data at a page. The library reads what we write.
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
    """The tensor, or its part `[row]` along the first axis, in memory of its own."""
    shape, start, nbytes = entry.shape, entry.start, entry.nbytes
    if row is not None:
        shape, nbytes = shape[1:], nbytes // shape[0]
        start += row * nbytes
    out = torch.empty(shape, dtype=torch_dtype(entry))
    if nbytes:
        read_bytes(entry.path, start, as_bytes(out))
    return out


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def torch_dtype(entry: TensorEntry) -> torch.dtype:
    """Raises MoEColabError for a dtype that moe_colab cannot read."""
    if entry.dtype not in TORCH_DTYPES:
        raise MoEColabError(
            f"{entry.path} holds {entry.name} as {entry.dtype}, which moe_colab cannot read."
        )
    return TORCH_DTYPES[entry.dtype]
