"""safetensors files, read tensor by tensor and written in our own order.

Knows the file format. Reads with pread instead of mmap: mapped pages count as resident memory, and
a checkpoint is larger than the host. The library's writer sorts by name and aligns to 8 bytes only;
ours keeps the order it is given and starts the data at a page. The library reads what we write.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import MoEColabError
from .blobs import BLOB_ALIGNMENT, DTYPE_BYTES, align

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
MAX_HEADER = 100 << 20


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies in a file: `shape` of `dtype` (safetensors' name) in bytes `start` to
    `end`."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    def torch_dtype(self) -> torch.dtype:
        if self.dtype not in TORCH_DTYPES:
            raise MoEColabError(
                f"{self.path} holds {self.name} as {self.dtype}, which moe_colab cannot read."
            )
        return TORCH_DTYPES[self.dtype]


def read_header(path: Path) -> dict[str, TensorEntry]:
    """All tensors of a file by name. Raises MoEColabError where it is not a whole safetensors
    file."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(MAX_HEADER, size - 8):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        entries = {
            name: TensorEntry(
                path,
                name,
                t["dtype"],
                tuple(t["shape"]),
                *(8 + length + o for o in t["data_offsets"]),
            )
            for name, t in header.items()
        }
        for entry in entries.values():
            need = math.prod(entry.shape) * DTYPE_BYTES.get(entry.dtype, 0)
            if need and need != entry.nbytes:
                raise ValueError(f"{entry.name} has {entry.nbytes} bytes, not {need}")
    except FileNotFoundError:
        raise MoEColabError(f"{path} is missing: the checkpoint is not complete.") from None
    except OSError as error:
        raise MoEColabError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise MoEColabError(f"{path} is not a whole safetensors file: {error}.") from error
    if any(entry.end > size for entry in entries.values()):
        raise MoEColabError(
            f"{path} is cut short: it has {size:,} bytes and its header names more. Fetch it again."
        )
    return entries


def read_bytes(path: Path, start: int, buffer: memoryview) -> None:
    """Fill `buffer` from byte `start` of a file."""
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        done = 0
        while done < len(buffer):
            got = file.readinto(buffer[done:])
            if not got:
                raise MoEColabError(f"{path} ends early: fetch it again.")
            done += got


def read_tensor(entry: TensorEntry, row: int | None = None) -> torch.Tensor:
    """The tensor, or its part `[row]` along the first axis, in memory of its own."""
    shape, start, nbytes = entry.shape, entry.start, entry.nbytes
    if row is not None:
        shape, nbytes = shape[1:], nbytes // shape[0]
        start += row * nbytes
    out = torch.empty(shape, dtype=entry.torch_dtype())
    if nbytes:
        read_bytes(entry.path, start, as_bytes(out))
    return out


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def make_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """The header for (name, dtype, shape, nbytes) in file order, padded with spaces so that data
    starts at a page."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape, nbytes in tensors:
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + nbytes],
        }
        offset += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    length = align(8 + len(text), BLOB_ALIGNMENT) - 8
    return struct.pack("<Q", length) + text.ljust(length)


def aligned_first(entries: Iterable[TensorEntry]) -> list[TensorEntry]:
    """File order for dense tensors: those of a multiple of 64 bytes first, so that they all lie on
    64 bytes."""
    return sorted(entries, key=lambda entry: entry.nbytes % 64 != 0)
