"""Which matrices outside the experts are kept in fewer bits: those that a recipe names, of those
that can be.

Knows a checkpoint's names and the model's modules; reads and quantizes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ..checkpoint.families import block_linears, vocabulary
from ..checkpoint.reader import Checkpoint
from ..checkpoint.tensors import torch_dtype
from ..errors import MoEColabError
from ..store import DenseMatrix
from ..store.blobs import DENSE, EMBEDDINGS
from .recipe import Recipe, expert_name


@dataclass(frozen=True)
class Source:
    """A matrix [out, in]: the tensor `key` of the checkpoint is the weight of `modules`, two where
    a head is tied to the embedding."""

    part: str
    modules: tuple[str, ...]
    key: str
    shape: tuple[int, int]


def low_bit(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, DenseMatrix]:
    """By the checkpoint's name of each. Raises MoEColabError where the recipe does not fit this
    model."""
    if recipe == Recipe():
        return {}
    found = sources(checkpoint)
    outside = [name for source in found for name in source.modules]
    recipe.check([*expert_names(checkpoint), *outside])
    out = {}
    for source in found:
        layout = recipe.dense_layout(source.part, source.modules, source.shape)
        if layout is not None:
            out[source.key] = DenseMatrix(source.part, source.modules, layout)
    if recipe.embeddings and not any(matrix.part == EMBEDDINGS for matrix in out.values()):
        raise MoEColabError(
            f"the embedding and head of this {checkpoint.config.model_type} model cannot be kept "
            "in fewer bits: they are of a class of their own, of a size that no group fits, or not "
            "stored as they are used; use embedding_bits=16."
        )
    return out


def sources(checkpoint: Checkpoint) -> list[Source]:
    """What can be kept in fewer bits: linear layers of the decoder's blocks, embedding and head
    whose weight is one tensor of the checkpoint as it is."""
    kinds = ((DENSE, block_linears(checkpoint.model)), (EMBEDDINGS, vocabulary(checkpoint.model)))
    parts = {f"{name}.weight": part for part, modules in kinds for name in modules}
    shared: dict[int, list[str]] = defaultdict(list)  # names of one parameter
    for name, parameter in checkpoint.model.named_parameters(remove_duplicate=False):
        shared[id(parameter)].append(name)
    found = []
    for names in shared.values():
        keys = {name: checkpoint.names.unchanged.get(name, []) for name in names}
        there = [name for name in names if keys[name]]
        if not all(name in parts for name in names) or any(len(k) > 1 for k in keys.values()):
            continue
        for name in there:  # tied weights may be there twice all the same: then each is its own
            users = names if len(there) == 1 else [name]
            source = _source(checkpoint, parts[name], users, keys[name][0])
            found += [source] if source is not None else []
    return found


def _source(checkpoint: Checkpoint, part: str, users: list[str], key: str) -> Source | None:
    """Raises MoEColabError for a tensor of another shape than the model's."""
    entry = checkpoint.entries[key]
    if not torch_dtype(entry).is_floating_point:
        return None
    needed = tuple(checkpoint.model.get_parameter(users[0]).shape)
    if entry.shape != needed:
        raise MoEColabError(
            f"{key} in {checkpoint.folder} is {entry.shape}; the model needs {needed}."
        )
    return Source(part, tuple(name.removesuffix(".weight") for name in users), key, needed)


def expert_names(checkpoint: Checkpoint) -> Iterable[str]:
    """Of every matrix of the experts, as a recipe calls them."""
    for layer, shapes in enumerate(checkpoint.shapes):
        for name, shape in shapes.items():
            if len(shape) == 2:
                yield expert_name(layer, name)
