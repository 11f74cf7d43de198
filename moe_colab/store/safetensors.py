"""safetensors files: their headers, their bytes, and the index of shards. Knows the file format;
knows no torch."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import MoEColabError
from .blobs import BLOB_ALIGNMENT, DTYPE_BYTES, align

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100 << 20

TensorSpec = tuple[str, str, tuple[int, ...], int]
"""A tensor to be written: name, safetensors' dtype, shape and bytes."""


def weight_files(folder: Path, listed: Collection[str] = ()) -> list[str]:
    """The names of a checkpoint's weight files: the single file, or those of the index. Where both
    are there, the single file counts, as in transformers: the index is from an earlier save. Files
    may be missing, or be in another place, which has those that are `listed`. Raises MoEColabError
    for an index that cannot be read."""
    if SINGLE in listed or (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return [SINGLE]
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return sorted({str(file) for file in index["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise MoEColabError(f"{folder / INDEX} is not an index of shards: {error}.") from error


@dataclass(frozen=True)
class TensorEntry:
    """One tensor in a file: `shape` of `dtype` (safetensors' name) in bytes `start` to `end`."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


def read_header(path: Path) -> dict[str, TensorEntry]:
    """All tensors of a file by name. Raises MoEColabError where it is not a complete safetensors
    file."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(MAX_HEADER, size - 8):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        entries = {}
        for name, t in header.items():
            start, end = (8 + length + offset for offset in t["data_offsets"])
            entry = TensorEntry(path, name, t["dtype"], tuple(t["shape"]), start, end)
            entries[name] = entry
            need = math.prod(entry.shape) * DTYPE_BYTES.get(entry.dtype, 0)
            if need and need != entry.nbytes:
                raise ValueError(f"{entry.name} has {entry.nbytes} bytes, not {need}")
    except FileNotFoundError:
        raise MoEColabError(f"{path} is missing: the checkpoint is not complete.") from None
    except OSError as error:
        raise MoEColabError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise MoEColabError(f"{path} is not a complete safetensors file: {error}.") from error
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


def make_header(tensors: Iterable[TensorSpec]) -> bytes:
    """The header of a file with these tensors in order. It is padded
    with spaces so that the data starts at a page."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape, nbytes in tensors:
        end = offset + nbytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    length = align(8 + len(text), BLOB_ALIGNMENT) - 8
    return struct.pack("<Q", length) + text.ljust(length)


def aligned_first(entries: Iterable[TensorEntry]) -> list[TensorEntry]:
    """The tensors in an order for a file: those of a multiple of 64 bytes first, so that all of
    these start at a multiple of 64."""
    return sorted(entries, key=lambda entry: entry.nbytes % 64 != 0)
