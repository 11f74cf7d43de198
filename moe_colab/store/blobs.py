"""Blobs: the bytes of one expert, or of one matrix outside the experts, and the files that hold
them. Knows names, shapes and offsets; knows no tensors and reads nothing."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

EXPERTS, DENSE, EMBEDDINGS = "experts", "dense", "embeddings"
"""The parts of a model that can be in low bits: the routed experts; the other matrices of the
decoder's blocks; the input embedding and the output head."""
UNPACKED = "none"  # the `packing` of a matrix that is stored as it is
FIELD_ALIGNMENT = 256  # so that any device can use a view of a field as it is
BLOB_ALIGNMENT = 4096  # one page, for O_DIRECT and preadv
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
DTYPE_BYTES |= {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""{safetensors' name of a dtype that a store may hold: its bytes}."""


def align(offset: int, alignment: int) -> int:
    """The next multiple of `alignment`, or `offset` if it is one."""
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
    """One weight (or bias) in a blob. `shape` is that of the module's parameter. `fields` store it:
    16 or 32 `bits` in one field "weight", or packed codes with their scales, in groups of `group`
    along `axis`; `packing` is UNPACKED, or one of the names in quantization/recipe.py."""

    name: str
    shape: tuple[int, ...]
    bits: int
    group: int | None
    axis: int | None
    packing: str
    fields: tuple[Field, ...]

    @classmethod
    def unpacked(cls, name: str, shape: Sequence[int], dtype: str) -> Matrix:
        """A matrix of `dtype` that is stored as it is."""
        whole = Field("weight", dtype, tuple(shape), 0)
        return cls(name, whole.shape, 8 * DTYPE_BYTES[dtype], None, None, UNPACKED, (whole,))


@dataclass(frozen=True)
class BlobLayout:
    """The layout of a blob of `nbytes`: of every expert in one layer, or of a matrix outside the
    experts."""

    matrices: tuple[Matrix, ...]
    nbytes: int

    def parameters(self) -> int:
        """The number of weights and biases."""
        return sum(math.prod(matrix.shape) for matrix in self.matrices)

    def check(self) -> None:
        """Raises ValueError where the fields do not lie one after the other in the blob, each where
        its dtype can be read."""
        end = 0
        for matrix in self.matrices:
            for field in matrix.fields:
                if field.dtype not in DTYPE_BYTES or min(field.shape, default=1) < 0:
                    raise ValueError(f"{matrix.name} is {field.dtype} {field.shape}")
                if field.offset < end or field.offset % FIELD_ALIGNMENT:
                    raise ValueError(f"{matrix.name} begins at byte {field.offset}")
                end = field.offset + field.nbytes
        if not end <= self.nbytes:
            raise ValueError(f"a blob has {self.nbytes} bytes, and its fields end at {end}")


@dataclass(frozen=True)
class BlobFile(ABC):
    """A file of blobs, in order and without gaps from `data_offset` on, with their digests."""

    file: str
    data_offset: int
    header_sha256: str
    crc32: tuple[int, ...]
    sha256: tuple[str, ...]

    @abstractmethod
    def layouts(self) -> Sequence[BlobLayout]:
        """The layout of every blob, in file order."""

    @abstractmethod
    def part(self, number: int) -> str:
        """The name of a blob's tensor in the file."""

    def label(self, number: int) -> str:
        """The name of a blob in messages."""
        return self.part(number)

    def offset(self, number: int) -> int:
        """The first byte of a blob in the file."""
        return self.data_offset + sum(layout.nbytes for layout in self.layouts()[:number])

    @property
    def nbytes(self) -> int:
        """Bytes of all blobs together."""
        return sum(layout.nbytes for layout in self.layouts())

    @property
    def file_bytes(self) -> int:
        return self.data_offset + self.nbytes

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of blobs."""

    def check(self) -> None:
        """Raises ValueError where the layouts or digests cannot be those of such a file."""
        if not len(self.crc32) == len(self.sha256) == self.count or self.data_offset < 0:
            raise ValueError(f"{self.file} has {len(self.crc32)} digests for {self.count} blobs")
        for layout in {id(layout): layout for layout in self.layouts()}.values():
            layout.check()


@dataclass(frozen=True)
class LayerEntry(BlobFile):
    """The experts of one MoE layer, one blob each. `module`: the name of the experts module in the
    model."""

    module: str
    experts: int
    layout: BlobLayout

    @property
    def count(self) -> int:
        return self.experts

    def layouts(self) -> Sequence[BlobLayout]:
        return (self.layout,) * self.experts

    def part(self, number: int) -> str:
        return f"expert.{number}"

    def label(self, number: int) -> str:
        return f"expert {number}"

    def offset(self, number: int) -> int:
        return self.data_offset + number * self.layout.nbytes

    def parameters(self) -> int:
        """The number of one expert's weights and biases."""
        return self.layout.parameters()


@dataclass(frozen=True)
class DenseMatrix:
    """A low-bit matrix outside the experts. `modules` use it, two where a head is tied to the
    embedding; `part` is "dense" or "embeddings"."""

    part: str
    modules: tuple[str, ...]
    layout: BlobLayout


@dataclass(frozen=True)
class DenseEntry(BlobFile):
    """All low-bit matrices outside the experts, one blob each."""

    matrices: tuple[DenseMatrix, ...]

    @property
    def count(self) -> int:
        return len(self.matrices)

    def layouts(self) -> Sequence[BlobLayout]:
        return tuple(matrix.layout for matrix in self.matrices)

    def part(self, number: int) -> str:
        return self.matrices[number].modules[0]

    def check(self) -> None:
        super().check()
        for matrix in self.matrices:
            whole = [inner.name for inner in matrix.layout.matrices] == ["weight"]
            if matrix.part not in (DENSE, EMBEDDINGS) or not matrix.modules or not whole:
                raise ValueError(f"{self.file} holds something else than one weight of a module")
