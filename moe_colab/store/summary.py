"""What a store holds, for people: bytes by part and real bits per weight, padding counted."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hardware import human
from .manifest import REPORT
from .reader import Store, store_folder

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Summary:
    """The facts of one store. `bits` counts experts' matrices by the bits they are stored in;
    `bits_per_weight` is all experts' bytes, padding included, over their weights; `relative_error`
    is what quantizing has cost by matrix, the mean over experts and layers."""

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
    relative_error: dict[str, float]
    files: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def frame(self) -> pandas.DataFrame:
        """One row per tensor of every expert: layer, expert, matrix, bits, group, axis, weights,
        bytes (padding to the next field left out), bits_per_weight (scales and zeros counted),
        relative_error (nothing where it was not quantized)."""
        import pandas as pd

        errors = report(Path(self.store))
        rows = []
        for number, layer in enumerate(Store(self.store).manifest.layers):
            for expert in range(layer.experts):
                lost = errors[number][expert] if errors else {}
                for matrix in layer.layout.matrices:
                    weights = math.prod(matrix.shape)
                    nbytes = sum(field.nbytes for field in matrix.fields)
                    rows.append(
                        {
                            "layer": number,
                            "expert": expert,
                            "matrix": matrix.name,
                            "bits": matrix.bits,
                            "group": matrix.group,
                            "axis": matrix.axis,
                            "weights": weights,
                            "bytes": nbytes,
                            "bits_per_weight": 8 * nbytes / weights,
                            "relative_error": lost.get(matrix.name, math.nan),
                        }
                    )
        return pd.DataFrame(rows).astype({"group": "Int64", "axis": "Int64"})

    def text(self) -> str:
        blobs = " / ".join(human(n) for n in self.blob_bytes)
        bits = ", ".join(f"{count:,} at {bits} bits" for bits, count in sorted(self.bits.items()))
        lost = [f"{name} {error:.4f}" for name, error in self.relative_error.items()]
        lost = [f"  relative error by quantizing: {', '.join(lost)}"] if lost else []
        return "\n".join(
            (
                f"{self.store}: {self.family} from {self.source}, computes in {self.dtype}",
                f"  {self.layers} MoE layers, {self.experts} experts of {blobs} each",
                f"  experts {human(self.expert_bytes)}, dense {human(self.dense_bytes)}, all "
                f"{human(self.total_bytes)}",
                f"  {self.expert_parameters:,} expert weights in {self.bits_per_weight:.3f} bits "
                "each",
                f"  experts' tensors: {bits}",
                *lost,
                f"  other files: {', '.join(self.files)}",
            )
        )


def inspect(store: str | os.PathLike[str]) -> Summary:
    """What a store holds, by bytes and bits. Raises MoEColabError if it is not whole."""
    folder = store_folder(store)
    manifest = Store(folder).manifest
    layers = manifest.layers
    weights = sum(layer.experts * layer.parameters() for layer in layers)
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
        dense_bytes=manifest.dense.nbytes,
        total_bytes=manifest.total_bytes(),
        expert_parameters=weights,
        bits_per_weight=8 * manifest.expert_bytes() / weights,
        bits=dict(bits),
        relative_error=relative_errors(folder),
        files=tuple(entry.name for entry in manifest.files),
    )


def relative_errors(folder: Path) -> dict[str, float]:
    """By matrix; empty for a store of which nothing was quantized."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for layer in report(folder):
        for expert in layer:
            for name, error in expert.items():
                found[name].append(error)
    return {name: statistics.fmean(errors) for name, errors in found.items()}


def report(folder: Path) -> list[list[dict[str, float]]]:
    """What quantizing has cost, by layer, expert and matrix; empty where nothing was quantized."""
    try:
        return json.loads((folder / REPORT).read_text(encoding="utf-8"))["relative_errors"]
    except FileNotFoundError:
        return []
