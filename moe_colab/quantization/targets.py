"""Target modules: the modules outside the experts whose weights a recipe keeps in low bits.

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
class Target:
    """A weight [out, in] outside the experts that could be in low bits: the tensor `key` of the
    checkpoint, used by `modules`, which are two where a head is tied to the embedding. `part` is
    "dense" or "embeddings"."""

    part: str
    modules: tuple[str, ...]
    key: str
    shape: tuple[int, int]


def low_bit_targets(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, DenseMatrix]:
    """The low-bit matrices that `recipe` asks for, by the names of their tensors in the checkpoint.
    Raises MoEColabError where the recipe does not fit this model."""
    if recipe == Recipe():
        return {}
    candidates = targets(checkpoint)
    modules = [name for target in candidates for name in target.modules]
    recipe.check([*expert_names(checkpoint), *modules])
    out = {}
    for target in candidates:
        layout = recipe.dense_layout(target.part, target.modules, target.shape)
        if layout is not None:
            out[target.key] = DenseMatrix(target.part, target.modules, layout)
    if recipe.embeddings and not any(matrix.part == EMBEDDINGS for matrix in out.values()):
        raise MoEColabError(
            f"the embedding and head of this {checkpoint.config.model_type} model cannot be kept "
            "in fewer bits: their class is unusual, no group fits their size, or they are not "
            "stored as they are used; use embedding_bits=16."
        )
    return out


def targets(checkpoint: Checkpoint) -> list[Target]:
    """All weights outside the experts that could be in low bits: of linear layers in the decoder's
    blocks, of embedding and head, where the checkpoint stores them as one tensor, unchanged."""
    kinds = ((DENSE, block_linears(checkpoint.model)), (EMBEDDINGS, vocabulary(checkpoint.model)))
    parts = {f"{name}.weight": part for part, modules in kinds for name in modules}
    shared: dict[int, list[str]] = defaultdict(list)  # by parameter: its names
    for name, parameter in checkpoint.model.named_parameters(remove_duplicate=False):
        shared[id(parameter)].append(name)
    out = []
    for names in shared.values():
        keys = {name: checkpoint.names.unchanged.get(name, []) for name in names}
        stored = [name for name in names if keys[name]]
        if not all(name in parts for name in names) or any(len(k) > 1 for k in keys.values()):
            continue
        for name in stored:  # a checkpoint may store tied weights twice: then they are two targets
            users = names if len(stored) == 1 else [name]
            target = _target(checkpoint, parts[name], users, keys[name][0])
            out += [target] if target is not None else []
    return out


def _target(checkpoint: Checkpoint, part: str, users: list[str], key: str) -> Target | None:
    """The target of the tensor `key`, None where it holds no floats. Raises MoEColabError where its
    shape is not the model's."""
    entry = checkpoint.entries[key]
    if not torch_dtype(entry).is_floating_point:
        return None
    needed = tuple(checkpoint.model.get_parameter(users[0]).shape)
    if entry.shape != needed:
        raise MoEColabError(
            f"{key} in {checkpoint.folder} is {entry.shape}; the model needs {needed}."
        )
    return Target(part, tuple(name.removesuffix(".weight") for name in users), key, needed)


def expert_names(checkpoint: Checkpoint) -> Iterable[str]:
    """The names of all the experts' matrices in a recipe."""
    for layer, shapes in enumerate(checkpoint.shapes):
        for name, shape in shapes.items():
            if len(shape) == 2:
                yield expert_name(layer, name)
