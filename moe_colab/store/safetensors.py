"""safetensors files: their headers, their bytes, and the index of shards. Knows the file format;
the library decides whether a header is right. Knows no torch."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import MoEColabError
from ..files import one_line, open_file, parse_json, read_errors, read_exactly, read_json
from .blobs import BLOB_ALIGNMENT, align

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100 << 20
METADATA = "__metadata__"  # the entry of a header that is no tensor

TensorSpec = tuple[str, str, tuple[int, ...], int]
"""A tensor to be written: name, safetensors' dtype, shape and bytes."""


def weight_files(folder: Path, listed: Collection[str] = ()) -> list[str]:
    """The names of a checkpoint's weight files: the single file, or those of the index. Where both
    are there, the single file counts, as in transformers: the index is from an earlier save. Files
    may be missing, or be in another place, which has those that are `listed`. Raises MoEColabError
    for an index that cannot be read."""
    path = folder / INDEX
    one_file = SINGLE in listed or os.path.exists(folder / SINGLE)
    if one_file or not os.path.isfile(path):
        return [SINGLE]
    index = read_json(path, "an index of shards")
    try:
        names = sorted({str(file) for file in index["weight_map"].values()})
        for name in names:
            name.encode()
            if "\0" in name or os.path.isabs(name) or ".." in Path(name).parts:
                raise ValueError(f"it names the file {name!r}")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise MoEColabError(f"{path} is not an index of shards: {one_line(error)}.") from error
    return names


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
    missing = f"{path} is missing: the checkpoint is not complete."
    with read_errors(path, missing), open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(read_exactly(file, 8), "little")
        text = read_exactly(file, length) if length <= min(MAX_HEADER, size - 8) else b""
    complaint = f"{path} is not a complete safetensors file"
    if not text:
        raise MoEColabError(f"{complaint}: its header is longer than the file.")
    header = parse_json(text, complaint)
    try:
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != METADATA]
        if 8 + length + max(ends, default=0) > size:
            raise MoEColabError(
                f"{path} is cut short: it has {size:,} bytes and its header names more. Fetch it "
                "again."
            )
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise MoEColabError(f"{complaint}: {one_line(error)}.") from error
    check_header(text, size - 8 - length, complaint)
    header.pop(METADATA, None)
    return {
        name: TensorEntry(
            path, name, t["dtype"], tuple(t["shape"]), *(8 + length + n for n in t["data_offsets"])
        )
        for name, t in header.items()
    }


def check_header(text: bytes, nbytes: int, complaint: str) -> None:
    """Let the library read a header whose tensors take `nbytes`: a file of that size, which takes
    no memory, holds nothing else. Raises MoEColabError, which begins with `complaint`."""
    file = os.memfd_create("header", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(file), "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
        os.ftruncate(file, 8 + len(text) + nbytes)
        with safe_open(f"/proc/self/fd/{file}", framework="np"):
            pass
    except (SafetensorError, OSError, OverflowError, MemoryError) as error:
        raise MoEColabError(f"{complaint}: {one_line(error)}.") from error
    finally:
        os.close(file)


def read_bytes(path: Path, start: int, buffer: memoryview) -> None:
    """Fill `buffer` from byte `start` of a file."""
    with read_errors(path), open_file(path) as file:
        file.seek(start)
        done = 0
        while done < len(buffer):  # one read may bring less than it is asked for
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
