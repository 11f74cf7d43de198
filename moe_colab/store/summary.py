"""What a store holds, for people: bytes by part and real bits per weight, padding counted."""

from __future__ import annotations

import json
import os
import statistics
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..hardware import human
from .manifest import REPORT
from .reader import Store, store_folder


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


def summarize(store: str | os.PathLike[str]) -> Summary:
    """Raises MoEColabError where `store` is not a whole store."""
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
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    found: defaultdict[str, list[float]] = defaultdict(list)
    for layer in report["relative_errors"]:
        for expert in layer:
            for name, error in expert.items():
                found[name].append(error)
    return {name: statistics.fmean(errors) for name, errors in found.items()}
