"""The match of a store and a model: whether the experts and matrices that the manifest describes
are those that the model computes with. Knows layouts and shapes; reads no weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..checkpoint.families import expert_shapes, experts_modules
from ..errors import MoEColabError
from ..quantization.recipe import check_layout
from ..store import Store
from ..store.blobs import BLOB_ALIGNMENT, FIELD_ALIGNMENT


@dataclass(frozen=True)
class ModelLayer:
    """The experts of one MoE layer as the model has them. shapes: of one expert's parameters."""

    module: str
    experts: int
    shapes: dict[str, tuple[int, ...]]


def layers_of(model: nn.Module) -> list[ModelLayer]:
    """The MoE layers of a model that still has its experts' parameters."""
    return [
        ModelLayer(name, module.num_experts, expert_shapes(name, module))
        for name, module in experts_modules(model)
    ]


def check_match(store: Store, layers: list[ModelLayer]) -> None:
    """Raises MoEColabError unless the store has exactly the experts of these layers, each matrix in
    its shape and in a layout that packing would give it."""
    manifest = store.manifest
    stored = [
        ModelLayer(entry.module, entry.experts, {m.name: m.shape for m in entry.layout.matrices})
        for entry in manifest.layers
    ]
    if stored != layers:
        raise MoEColabError(
            f"{store.folder} does not hold the experts of the model that its config.json "
            "describes: make the store again."
        )
    for entry in manifest.layers:
        check_layout(entry.layout, manifest.dtype, BLOB_ALIGNMENT)
    for matrix in manifest.low_bit_matrices:
        check_layout(matrix.layout, manifest.dtype, FIELD_ALIGNMENT)
