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
from ..files import one_line, parse_json, read_file
from .blobs import DTYPE_BYTES, BlobFile, DenseEntry, DenseMatrix, LayerEntry
from .typed import typed

NAME = "moe_colab.json"
REPORT = "quantization.json"  # the relative errors of quantizing
FORMAT = 2


@dataclass(frozen=True)
class FileEntry:
    """A file without blobs, which is read as a whole. `name`: its path in the store, with "/"."""

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
        return sealed({"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """The manifest of a store's folder. Raises MoEColabError where it is missing, altered, or
        of another version of the format."""
        path = folder / NAME
        missing = f"{folder} is not a finished store: it has no {NAME}."
        data = read_file(path, missing)  # reading text would change "\r" into "\n"
        body = parse_json(data, f"{path} is damaged, make the store again")
        try:
            digest = body.pop("digest")
            version = body.pop("format")
        except (KeyError, AttributeError, TypeError) as error:
            raise MoEColabError(
                f"{path} is damaged ({one_line(error)}): make the store again."
            ) from error
        if isinstance(version, int) and version != FORMAT:
            age, upgrade = (
                ("a newer", "upgrade moe_colab, or ") if version > FORMAT else ("an older", "")
            )
            raise MoEColabError(
                f"{folder} was made by {age} moe_colab (store format {version}, this one reads "
                f"{FORMAT}): {upgrade}make the store again."
            )
        try:
            whole = _text({"digest": digest, "format": version, **body}).encode()
            if digest != _digest({"format": version, **body}) or data != whole:
                raise MoEColabError(
                    f"{path} was altered, its digest does not match: make the store again."
                )
            manifest = typed(cls, body, NAME)
            manifest._check()
        except (ValueError, RecursionError) as error:
            raise cls._wrong(folder, error) from error
        return manifest

    def check_blobs(self, folder: Path) -> None:
        """Raises MoEColabError where the files of blobs cannot be as this manifest says."""
        try:
            if len({*self.file_names()}) < len(self.file_names()):
                raise ValueError("it names a file twice")
            for entry in self.blob_files():
                entry.check()
        except ValueError as error:
            raise self._wrong(folder, error) from error

    def _check(self) -> None:
        """Raises ValueError where no store can be like this."""
        for name in self.file_names():
            check_name(name)
        if self.dtype not in DTYPE_BYTES or "F" not in self.dtype:
            raise ValueError(f"nothing is computed in {self.dtype}")
        if not isinstance(self.source.get("id"), str) or not self.layers:
            raise ValueError("it names no model, or no layers")

    @staticmethod
    def _wrong(folder: Path, error: Exception) -> MoEColabError:
        return MoEColabError(
            f"{folder / NAME} does not describe a store ({one_line(error)}): make the store again."
        )

    def file_names(self) -> list[str]:
        """The names of all files of the store, its manifest first."""
        whole = [NAME, *(entry.name for entry in (self.dense, *self.files))]
        return whole + [entry.file for entry in self.blob_files()]

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


def check_name(name: str) -> None:
    """Raises ValueError unless `name` is that of a file in a store, or in a folder of it."""
    name.encode()  # a ValueError where no file can have this name
    parts = name.split("/")
    if len(parts) > 2 or not all(parts) or {".", ".."} & {*parts} or "\0" in name:
        raise ValueError(f"{name!r} is not the name of a file in a store")


def sealed(body: Mapping[str, Any]) -> str:
    """The text of a manifest with this body, with a digest of itself."""
    body = {key: value for key, value in body.items() if key != "digest"}
    return _text({"digest": _digest(body), **body})


def _text(body: Mapping[str, Any]) -> str:
    return json.dumps(body, indent=1) + "\n"


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(body).encode()).hexdigest()
