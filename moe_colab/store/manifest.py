"""The manifest of a store: what it holds, as written in its moe_colab.json. Knows names, digests
and layouts; reads no weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import MoEColabError
from .blobs import BlobFile, BlobLayout, DenseEntry, DenseMatrix, LayerEntry

NAME = "moe_colab.json"
REPORT = "quantization.json"  # the relative errors of quantizing
FORMAT = 2


@dataclass(frozen=True)
class FileEntry:
    """A file without blobs, which is read as a whole."""

    name: str
    nbytes: int
    crc32: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of moe_colab.json. `source`: id, revision and fingerprint of the checkpoint;
    `dtype`: the model computes in it; `dense`: the file of all tensors outside the routed experts
    that are stored as they are; `files`: configuration, tokenizer, generation files; `low_bit`: the
    low-bit matrices outside the experts, if any."""

    source: dict[str, Any]
    family: str
    dtype: str
    dense: FileEntry
    files: tuple[FileEntry, ...]
    layers: tuple[LayerEntry, ...]
    low_bit: DenseEntry | None = None

    def dump(self) -> str:
        """The text of moe_colab.json, with a digest of itself."""
        body = {"format": FORMAT, **asdict(self)}
        return _text({"digest": _digest(body), **body})

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """The manifest of a store's folder. Raises MoEColabError where it is missing, altered, or
        of another version of the format."""
        path = folder / NAME
        try:
            data = path.read_bytes()  # reading text would change "\r" into "\n"
            body = json.loads(data)
            digest = body.pop("digest")
            version = body.pop("format")
        except FileNotFoundError:
            raise MoEColabError(f"{folder} is not a finished store: it has no {NAME}.") from None
        except OSError as error:
            raise MoEColabError(f"{path} cannot be read: {error.strerror}.") from error
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise MoEColabError(f"{path} is damaged ({error}): make the store again.") from error
        if isinstance(version, int) and version != FORMAT:
            age, upgrade = (
                ("a newer", "upgrade moe_colab, or ") if version > FORMAT else ("an older", "")
            )
            raise MoEColabError(
                f"{folder} was made by {age} moe_colab (store format {version}, this one reads "
                f"{FORMAT}): {upgrade}make the store again."
            )
        whole = _text({"digest": digest, "format": version, **body}).encode()
        if digest != _digest({"format": version, **body}) or data != whole:
            raise MoEColabError(
                f"{path} was altered, its digest does not match: make the store again."
            )
        files = tuple(FileEntry(**entry) for entry in body["files"])
        return cls(
            body["source"],
            body["family"],
            body["dtype"],
            FileEntry(**body["dense"]),
            files,
            tuple(map(_layer_entry, body["layers"])),
            body["low_bit"] and _dense_entry(body["low_bit"]),
        )

    def blob_files(self) -> tuple[BlobFile, ...]:
        """One for each MoE layer, then the low-bit matrices outside the experts."""
        return self.layers if self.low_bit is None else (*self.layers, self.low_bit)

    @property
    def low_bit_matrices(self) -> tuple[DenseMatrix, ...]:
        """The low-bit matrices outside the experts."""
        return self.low_bit.matrices if self.low_bit else ()

    def expert_bytes(self) -> int:
        """Bytes of all routed experts."""
        return sum(layer.nbytes for layer in self.layers)

    def dense_bytes(self) -> int:
        """Bytes of everything but the routed experts."""
        return self.total_bytes() - self.expert_bytes()

    def total_bytes(self) -> int:
        return sum(file.nbytes for file in self.blob_files()) + self.dense.nbytes


def _layer_entry(data: Mapping[str, Any]) -> LayerEntry:
    return LayerEntry(**_digests(data), layout=BlobLayout.from_json(data["layout"]))


def _dense_entry(data: Mapping[str, Any]) -> DenseEntry:
    matrices = tuple(
        DenseMatrix(m["part"], tuple(m["modules"]), BlobLayout.from_json(m["layout"]))
        for m in data["matrices"]
    )
    return DenseEntry(**_digests(data), matrices=matrices)


def _digests(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a BlobFile, without its layouts."""
    rest = {key: value for key, value in data.items() if key not in ("layout", "matrices")}
    return {**rest, "crc32": tuple(data["crc32"]), "sha256": tuple(data["sha256"])}


def _text(body: Mapping[str, Any]) -> str:
    return json.dumps(body, indent=1) + "\n"


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(body).encode()).hexdigest()
