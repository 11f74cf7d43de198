"""The summary of a store, for people: bytes by part and real bits per weight, padding included.
Knows manifests and headers; reads no weights."""

from __future__ import annotations

import math
import os
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MoEColabError
from ..files import one_line, read_json
from ..units import human
from .blobs import DENSE, EMBEDDINGS, EXPERTS, Matrix
from .check import Check
from .manifest import REPORT, Manifest
from .reader import Store, store_folder
from .safetensors import read_header

if TYPE_CHECKING:
    import pandas

REST = "rest"
TITLES = {
    EXPERTS: "experts",
    DENSE: "attention and other layers in low bits",
    EMBEDDINGS: "embedding and head in low bits",
    REST: "everything else, unchanged",
}


@dataclass(frozen=True)
class Part:
    """One part of a model: its bytes on disk, padding included, and its number of weights."""

    nbytes: int
    weights: int
    bits_per_weight: float


@dataclass(frozen=True)
class Summary:
    """What one store holds. `parts`: "experts", "dense" and "embeddings" (linear layers, and
    embedding and head, in low bits), "rest" (all that is unchanged outside the experts);
    `dense_bytes` counts everything but the experts. `bits`: how many of the experts' matrices are
    stored in so many bits; `bits_per_weight`: of the experts. `relative_error`: that of quantizing,
    by matrix, the mean over layers and experts; an expert's matrix by its name, others by their
    path in a block. `check`: whether the quantized model still predicts text, None where it was not
    tried. `seconds`: the time of quantizing, from `mc.quantize` only."""

    store: str
    source: str
    family: str
    dtype: str
    layers: int
    experts: int
    expert_bytes: int
    blob_bytes: tuple[int, ...]
    dense_bytes: int
    total_bytes: int
    expert_parameters: int
    bits_per_weight: float
    bits: dict[int, int]
    parts: dict[str, Part]
    relative_error: dict[str, float]
    files: tuple[str, ...]
    check: Check | None = None
    seconds: float | None = field(default=None, compare=False)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def frame(self) -> pandas.DataFrame:
        """One row per tensor: part, layer and expert (if it is an expert's), matrix (its name in
        the expert; elsewhere its module, or its name in the checkpoint if it is unchanged), bits,
        group, axis, weights, bytes (without padding), bits_per_weight (with scales and zeros),
        relative_error (NaN where it was not quantized)."""
        import pandas as pd

        rows = list(_rows(Path(self.store)))
        return pd.DataFrame(rows).astype(
            dict.fromkeys(("layer", "expert", "group", "axis"), "Int64")
        )

    def text(self) -> str:
        blobs = " / ".join(human(n) for n in self.blob_bytes)
        bits = ", ".join(f"{count:,} at {bits} bits" for bits, count in sorted(self.bits.items()))
        errors = [f"{name} {error:.4f}" for name, error in self.relative_error.items()]
        errors = [f"  relative error by quantizing: {', '.join(errors)}"] if errors else []
        parts = (
            f"  {TITLES[name]}: {human(part.nbytes)}, {part.weights:,} weights in "
            f"{part.bits_per_weight:.3f} bits each"
            for name, part in self.parts.items()
        )
        return "\n".join(
            (
                f"{self.store}: {self.family} from {self.source}, computes in {self.dtype}",
                f"  {self.layers} MoE layers, {self.experts} experts of {blobs} each",
                f"  all {human(self.total_bytes)}, {human(self.dense_bytes)} of it not experts",
                *parts,
                f"  experts' tensors: {bits}",
                *errors,
                *([f"  check: {self.check.line()}"] if self.check else []),
                f"  other files: {', '.join(self.files)}",
                *([f"  quantized in {self.seconds:.0f} s"] if self.seconds is not None else []),
            )
        )


def inspect(store: str | os.PathLike[str]) -> Summary:
    """The summary of a store. Raises MoEColabError if it is not complete."""
    folder = store_folder(store)
    manifest = Store(folder).manifest
    layers = manifest.layers
    parts = dict(_parts(folder, manifest))
    bits: Counter[int] = Counter()
    for layer in layers:
        for matrix in layer.layout.matrices:
            bits[matrix.bits] += layer.experts
    return Summary(
        store=str(folder),
        source=manifest.source["id"],
        family=manifest.family,
        dtype=manifest.dtype,
        layers=len(layers),
        experts=sum(layer.experts for layer in layers),
        expert_bytes=manifest.expert_bytes(),
        blob_bytes=tuple(sorted({layer.layout.nbytes for layer in layers})),
        dense_bytes=manifest.dense_bytes(),
        total_bytes=manifest.total_bytes(),
        expert_parameters=parts[EXPERTS].weights,
        bits_per_weight=parts[EXPERTS].bits_per_weight,
        bits=dict(bits),
        parts=parts,
        relative_error=relative_errors(folder, manifest),
        files=tuple(entry.name for entry in manifest.files),
        check=found_by_check(folder, manifest),
    )


def _parts(folder: Path, manifest: Manifest) -> Iterator[tuple[str, Part]]:
    layouts = {EXPERTS: [layout for layer in manifest.layers for layout in layer.layouts()]}
    for matrix in manifest.low_bit_matrices:
        layouts.setdefault(matrix.part, []).append(matrix.layout)
    for name in filter(layouts.get, (EXPERTS, DENSE, EMBEDDINGS)):
        nbytes = sum(layout.nbytes for layout in layouts[name])
        weights = sum(layout.parameters() for layout in layouts[name])
        yield name, Part(nbytes, weights, 8 * nbytes / weights)
    rest = read_header(folder / manifest.dense.name).values()
    nbytes, weights = manifest.dense.nbytes, sum(math.prod(entry.shape) for entry in rest)
    yield REST, Part(nbytes, weights, 8 * nbytes / max(1, weights))


# ---------------------------------------------------------------------- every tensor
def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    manifest = Store(folder).manifest
    by_layer, outside = report(folder, manifest)
    for number, layer in enumerate(manifest.layers):
        for expert in range(layer.experts):
            errors = by_layer[number][expert] if by_layer else {}
            for matrix in layer.layout.matrices:
                row = _row(EXPERTS, matrix.name, matrix, errors.get(matrix.name))
                yield row | {"layer": number, "expert": expert}
    for entry in manifest.low_bit_matrices:
        name, (matrix,) = entry.modules[0], entry.layout.matrices
        yield _row(entry.part, name, matrix, outside.get(name))
    for entry in read_header(folder / manifest.dense.name).values():
        matrix = Matrix.unpacked(entry.name, entry.shape, entry.dtype)
        yield _row(REST, entry.name, matrix, None)


def _row(part: str, name: str, matrix: Matrix, error: float | None) -> dict[str, Any]:
    weights, nbytes = math.prod(matrix.shape), sum(field.nbytes for field in matrix.fields)
    return {
        "part": part,
        "layer": None,
        "expert": None,
        "matrix": name,
        "bits": matrix.bits,
        "group": matrix.group,
        "axis": matrix.axis,
        "weights": weights,
        "bytes": nbytes,
        "bits_per_weight": 8 * nbytes / max(1, weights),
        "relative_error": math.nan if error is None else error,
    }


# ---------------------------------------------------------------------- errors of quantizing
def relative_errors(folder: Path, manifest: Manifest) -> dict[str, float]:
    """{matrix: mean relative error}; empty where nothing was quantized."""
    by_name: defaultdict[str, list[float]] = defaultdict(list)
    by_layer, outside = report(folder, manifest)
    for layer in by_layer:
        for expert in layer:
            for name, error in expert.items():
                by_name[name].append(error)
    for module, error in outside.items():
        by_name[re.sub(r".*\.\d+\.", "", module)].append(error)
    return {name: statistics.fmean(errors) for name, errors in by_name.items()}


def found_by_check(folder: Path, manifest: Manifest) -> Check | None:
    """What a check of this store has found, None without one. Raises MoEColabError where that is
    damaged."""
    data = _report(folder, manifest).get("check")
    try:
        return None if data is None else Check.from_dict(data)
    except (ValueError, TypeError, AttributeError) as error:
        raise MoEColabError(
            f"{folder / REPORT} is damaged ({one_line(error)}): make the store again."
        ) from error


def _report(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The report of quantizing; empty where nothing was quantized."""
    if not any(entry.name == REPORT for entry in manifest.files):
        return {}
    body = read_json(folder / REPORT, "a report of quantizing")
    if not isinstance(body, dict):
        raise MoEColabError(f"{folder / REPORT} is no report of quantizing: make the store again.")
    return body


def report(
    folder: Path, manifest: Manifest
) -> tuple[list[list[dict[str, float]]], dict[str, float]]:
    """The relative errors of a store: by layer, expert and matrix; by module outside the experts.
    Both are empty where nothing was quantized. Raises MoEColabError for a report of another
    store."""
    body = _report(folder, manifest)
    if not body:
        return [], {}
    try:
        by_layer, outside = body["relative_errors"], body["dense"]
        right = [len(layer) for layer in by_layer] == [layer.experts for layer in manifest.layers]
        experts = [expert for layer in by_layer for expert in layer]
        for errors in (outside, *experts):
            right = right and all(0 <= error < 1e300 for error in errors.values())
    except (KeyError, TypeError, AttributeError) as error:
        raise MoEColabError(
            f"{folder / REPORT} is not a report of quantizing ({one_line(error)}): make the store "
            "again."
        ) from error
    if not right:
        raise MoEColabError(
            f"{folder / REPORT} is not the report of this store: make the store again."
        )
    return by_layer, outside
