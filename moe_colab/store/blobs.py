"""Blobs: the bytes of one expert, or of one matrix outside the experts, and the files in which they
lie one behind the other. Knows names, shapes and offsets; reads no tensors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EXPERTS, DENSE, EMBEDDINGS = "experts", "dense", "embeddings"
"""The parts of a model that may be kept in low bits: the routed experts; the other matrices of the
decoder's blocks; the input embedding and the output head."""
FIELD_ALIGNMENT = 256  # a view at a field's offset needs no repacking on any device
BLOB_ALIGNMENT = 4096  # one page: what O_DIRECT and preadv like
DTYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""safetensors' names of the dtypes that a store may hold."""


def align(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


@dataclass(frozen=True)
class Field:
    """One tensor inside a blob: `shape` of `dtype` (safetensors' name) at byte `offset`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Matrix:
    """One weight (or bias) in a blob. `shape` is what it computes with; `fields` is how it is
    stored: 16 or 32 `bits` in one field "weight", or packed codes with their scales, in groups of
    `group` along `axis`."""

    name: str
    shape: tuple[int, ...]
    bits: int
    group: int | None
    axis: int | None
    packing: str
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class BlobLayout:
    """How a blob of `nbytes` is laid out: every expert of one layer, or one matrix outside them."""

    matrices: tuple[Matrix, ...]
    nbytes: int

    def parameters(self) -> int:
        return sum(math.prod(matrix.shape) for matrix in self.matrices)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BlobLayout:
        def field(f):
            return Field(f["name"], f["dtype"], tuple(f["shape"]), f["offset"])

        def matrix(m):
            return Matrix(
                **{**m, "shape": tuple(m["shape"]), "fields": tuple(map(field, m["fields"]))}
            )

        return cls(tuple(map(matrix, data["matrices"])), data["nbytes"])


@dataclass(frozen=True)
class BlobFile(ABC):
    """A file of blobs, one behind the other from `data_offset` on, and their digests in this
    order."""

    file: str
    data_offset: int
    header_sha256: str
    crc32: tuple[int, ...]
    sha256: tuple[str, ...]

    @abstractmethod
    def layouts(self) -> Sequence[BlobLayout]:
        """Of each blob."""

    @abstractmethod
    def part(self, number: int) -> str:
        """A blob's name in the file."""

    def label(self, number: int) -> str:
        """What people are told that it is."""
        return self.part(number)

    def offset(self, number: int) -> int:
        return self.data_offset + sum(layout.nbytes for layout in self.layouts()[:number])

    @property
    def nbytes(self) -> int:
        """Of all blobs."""
        return sum(layout.nbytes for layout in self.layouts())

    @property
    def file_bytes(self) -> int:
        return self.data_offset + self.nbytes


@dataclass(frozen=True)
class LayerEntry(BlobFile):
    """The experts of one MoE layer, a blob each: `module` is its experts module in the model."""

    module: str
    experts: int
    layout: BlobLayout

    def layouts(self) -> Sequence[BlobLayout]:
        return (self.layout,) * self.experts

    def part(self, number: int) -> str:
        return f"expert.{number}"

    def label(self, number: int) -> str:
        return f"expert {number}"

    def offset(self, number: int) -> int:
        return self.data_offset + number * self.layout.nbytes

    def parameters(self) -> int:
        """Weights of one expert."""
        return self.layout.parameters()


@dataclass(frozen=True)
class DenseMatrix:
    """A low-bit matrix outside the experts: `modules` compute with it, two where a head is tied to
    the embedding; `part` is "dense" or "embeddings"."""

    part: str
    modules: tuple[str, ...]
    layout: BlobLayout


@dataclass(frozen=True)
class DenseEntry(BlobFile):
    """All low-bit matrices outside the experts, a blob each."""

    matrices: tuple[DenseMatrix, ...]

    def layouts(self) -> Sequence[BlobLayout]:
        return tuple(matrix.layout for matrix in self.matrices)

    def part(self, number: int) -> str:
        return self.matrices[number].modules[0]
