"""What a store holds, as written in its moe_colab.json. Knows names, shapes, offsets and digests;
reads no tensors."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import MoEColabError

NAME = "moe_colab.json"
REPORT = "quantization.json"  # what the quantizing has cost
FORMAT = 1
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
    """One weight (or bias) of an expert. `shape` is what it computes with; `fields` is how it is
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
    """How every expert of one layer is laid out in its blob of `nbytes`."""

    matrices: tuple[Matrix, ...]
    nbytes: int

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
class FileEntry:
    """A file that is read as a whole."""

    name: str
    nbytes: int
    crc32: int
    sha256: str


@dataclass(frozen=True)
class LayerEntry:
    """One MoE layer: `module` is its experts module in the model; expert e lies at `data_offset + e
    * blob bytes`."""

    module: str
    file: str
    experts: int
    data_offset: int
    header_sha256: str
    layout: BlobLayout
    crc32: tuple[int, ...]
    sha256: tuple[str, ...]

    @property
    def file_bytes(self) -> int:
        return self.data_offset + self.experts * self.layout.nbytes

    def offset(self, expert: int) -> int:
        return self.data_offset + expert * self.layout.nbytes

    def parameters(self) -> int:
        """Weights of one expert."""
        return sum(math.prod(matrix.shape) for matrix in self.layout.matrices)


@dataclass(frozen=True)
class Manifest:
    """All that moe_colab.json says. `source`: id, revision and fingerprint of the checkpoint;
    `dtype`: what the model computes in; `dense`: everything but the routed experts; `files`:
    configuration, tokenizer, generation files."""

    source: dict[str, Any]
    family: str
    dtype: str
    dense: FileEntry
    files: tuple[FileEntry, ...]
    layers: tuple[LayerEntry, ...]

    def dump(self) -> str:
        body = {"format": FORMAT, **asdict(self)}
        return _text({"digest": _digest(body), **body})

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Raises MoEColabError where the manifest is missing, newer than this program, or
        altered."""
        path = folder / NAME
        try:
            data = path.read_bytes()  # as text, "\r" would be read as "\n"
            body = json.loads(data)
            digest = body.pop("digest")
            version = body.pop("format")
        except FileNotFoundError:
            raise MoEColabError(f"{folder} is not a finished store: it has no {NAME}.") from None
        except OSError as error:
            raise MoEColabError(f"{path} cannot be read: {error.strerror}.") from error
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise MoEColabError(f"{path} is damaged ({error}); make the store anew.") from error
        if isinstance(version, int) and version > FORMAT:
            raise MoEColabError(
                f"{folder} was made by a newer moe_colab (store format {version}, this one reads "
                f"{FORMAT}): upgrade moe_colab, or make the store anew."
            )
        whole = _text({"digest": digest, "format": version, **body}).encode()
        if digest != _digest({"format": version, **body}) or data != whole:
            raise MoEColabError(
                f"{path} was altered: its digest does not match; make the store anew."
            )
        layers = tuple(
            LayerEntry(
                **{
                    **layer,
                    "layout": BlobLayout.from_json(layer["layout"]),
                    "crc32": tuple(layer["crc32"]),
                    "sha256": tuple(layer["sha256"]),
                }
            )
            for layer in body["layers"]
        )
        files = tuple(FileEntry(**entry) for entry in body["files"])
        return cls(
            body["source"], body["family"], body["dtype"], FileEntry(**body["dense"]), files, layers
        )

    def expert_bytes(self) -> int:
        return sum(layer.experts * layer.layout.nbytes for layer in self.layers)

    def total_bytes(self) -> int:
        return self.expert_bytes() + self.dense.nbytes


def _text(body: Mapping[str, Any]) -> str:
    return json.dumps(body, indent=1) + "\n"


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(body).encode()).hexdigest()
