"""What a store is made of, and how each part is made from a checkpoint: experts, low-bit matrices,
and tensors as they are.

Knows the checkpoint, layouts and the quantizing of one matrix. Writes nothing, and does not know in
which order the parts are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..checkpoint.reader import Checkpoint
from ..checkpoint.tensors import TORCH_DTYPES, as_bytes, read_tensor
from ..errors import MoEColabError
from ..store import BlobLayout, DenseMatrix, Matrix, StoreWriter
from ..store.safetensors import aligned_first
from .bits import quantize as quantize_matrix
from .hqq import choose
from .recipe import LOWBIT_TRANSPOSED, PLAIN, format_of

# Never model.safetensors: plain transformers would load it, with random experts.
DENSE_FILE = "dense.safetensors"


@dataclass(frozen=True)
class Job:
    """One tensor of one of the store's files. `files`: those of the checkpoint that it is made
    from; `nbytes`: its size in the store; `make` gives its bytes, and remarks to be kept."""

    file: str
    part: str
    files: frozenset[str]
    nbytes: int
    make: Callable[[], tuple[memoryview, dict[str, Any]]]


def expert_jobs(
    checkpoint: Checkpoint,
    writer: StoreWriter,
    layouts: list[BlobLayout],
    device: torch.device | None,
) -> Iterator[Job]:
    def make(layer: int, expert: int) -> tuple[memoryview, dict[str, Any]]:
        where = f"expert {expert} in layer {layer}"
        return checked_blob(checkpoint.expert(layer, expert), layouts[layer], device, where)

    for number, ((module, experts), layout) in enumerate(
        zip(checkpoint.layers, layouts, strict=True)
    ):
        entry = writer.add_layer(module, experts.num_experts, layout)
        for expert in range(entry.experts):
            files = checkpoint.expert_files(number, expert)
            work = partial(make, number, expert)
            yield Job(entry.file, entry.part(expert), files, layout.nbytes, work)


def low_bit_jobs(
    checkpoint: Checkpoint,
    writer: StoreWriter,
    matrices: dict[str, DenseMatrix],
    device: torch.device | None,
) -> Iterator[Job]:
    """The matrices outside the experts that get fewer bits."""

    def make(name: str, matrix: DenseMatrix) -> tuple[memoryview, dict[str, Any]]:
        tensors = {"weight": read_tensor(checkpoint.entries[name])}
        return checked_blob(tensors, matrix.layout, device, matrix.modules[0])

    if not matrices:
        return
    entry = writer.add_low_bit(tuple(matrices.values()))
    for number, (name, matrix) in enumerate(matrices.items()):
        files = frozenset([checkpoint.entries[name].path.name])
        work = partial(make, name, matrix)
        yield Job(entry.file, entry.part(number), files, matrix.layout.nbytes, work)


def dense_jobs(
    checkpoint: Checkpoint, writer: StoreWriter, matrices: dict[str, DenseMatrix]
) -> Iterator[Job]:
    """Everything but the experts and these `matrices`, as it is."""

    def make(name: str) -> tuple[memoryview, dict[str, Any]]:
        return as_bytes(read_tensor(checkpoint.entries[name])), {}

    entries = aligned_first(e for e in checkpoint.dense_entries() if e.name not in matrices)
    writer.add_file(DENSE_FILE, [(e.name, e.dtype, e.shape, e.nbytes) for e in entries])
    for entry in entries:
        files = frozenset([entry.path.name])
        yield Job(DENSE_FILE, entry.name, files, entry.nbytes, partial(make, entry.name))


def checked_blob(
    tensors: dict[str, torch.Tensor], layout: BlobLayout, device: torch.device | None, where: str
) -> tuple[memoryview, dict[str, Any]]:
    """`make_blob`, and what is to be remarked of it."""
    check_numbers(tensors, layout, where)
    errors: dict[str, float] = {}
    blob = make_blob(tensors, layout, device, errors)
    return blob, {"errors": errors} if errors else {}


def make_blob(
    tensors: dict[str, torch.Tensor],
    layout: BlobLayout,
    device: torch.device | None = None,
    errors: dict[str, float] | None = None,
) -> memoryview:
    """Matrices laid out as the layout says, zeros between. `errors` is given
    what quantizing has cost: by matrix, the norm of the difference over that of the weights."""
    blob = torch.zeros(layout.nbytes, dtype=torch.uint8)
    for matrix in layout.matrices:
        weight = tensors[matrix.name]
        parts = {"weight": weight}
        if matrix.packing != PLAIN:
            parts, error = low_bits(weight, matrix, device)
            if errors is not None:
                errors[matrix.name] = error
        for field in matrix.fields:
            raw = blob[field.offset : field.offset + field.nbytes]
            raw.view(TORCH_DTYPES[field.dtype]).view(field.shape).copy_(parts[field.name])
    return memoryview(blob.numpy())


def check_numbers(tensors: dict[str, torch.Tensor], layout: BlobLayout, where: str) -> None:
    """Raises MoEColabError where a matrix that is to be quantized holds what is no number."""
    for matrix in layout.matrices:
        if matrix.packing != PLAIN and not torch.isfinite(tensors[matrix.name]).all():
            raise MoEColabError(
                f"{matrix.name} of {where} holds NaN or infinite weights, which cannot be "
                "quantized: download the checkpoint again, or tell whoever made it."
            )


def low_bits(
    weight: torch.Tensor, matrix: Matrix, device: torch.device | None
) -> tuple[dict[str, torch.Tensor], float]:
    """(fields, relative error)."""
    if matrix.packing == LOWBIT_TRANSPOSED:
        weight = weight.T
    return quantize_matrix(weight.to(device).contiguous(), format_of(matrix), choose)
