"""Packing jobs: each makes one part of a store from a checkpoint, an expert, a low-bit matrix or a
tensor as it is.

Knows the checkpoint, layouts and the quantizing of one matrix. Writes no weights, and does not know
the order of the work.
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
from ..store import BlobLayout, DenseMatrix, StoreWriter
from ..store.blobs import UNPACKED
from ..store.safetensors import aligned_first
from .bits import quantize_matrix
from .recipe import LOWBIT_TRANSPOSED, format_of
from .scales import choose_scales

# Not model.safetensors, which transformers alone would load, with random experts.
DENSE_FILE = "dense.safetensors"


@dataclass(frozen=True)
class Job:
    """Makes the tensor `part` of the store's `file`. `files`: the checkpoint's files that it reads;
    `nbytes`: its size in the store; `make` returns its bytes, and remarks for the journal."""

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
    """One job for every expert."""

    def make(layer: int, expert: int) -> tuple[memoryview, dict[str, Any]]:
        where = f"expert {expert} in layer {layer}"
        return make_blob(checkpoint.expert(layer, expert), layouts[layer], device, where)

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
    """One job for every low-bit matrix outside the experts; `matrices` by tensor name."""

    def make(name: str, matrix: DenseMatrix) -> tuple[memoryview, dict[str, Any]]:
        tensors = {"weight": read_tensor(checkpoint.entries[name])}
        return make_blob(tensors, matrix.layout, device, matrix.modules[0])

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
    """One job for every other tensor, which stays as it is: all but experts and `matrices`."""

    def make(name: str) -> tuple[memoryview, dict[str, Any]]:
        return as_bytes(read_tensor(checkpoint.entries[name])), {}

    entries = aligned_first(e for e in checkpoint.dense_entries() if e.name not in matrices)
    writer.add_file(DENSE_FILE, [(e.name, e.dtype, e.shape, e.nbytes) for e in entries])
    for entry in entries:
        files = frozenset([entry.path.name])
        yield Job(DENSE_FILE, entry.name, files, entry.nbytes, partial(make, entry.name))


def make_blob(
    tensors: dict[str, torch.Tensor],
    layout: BlobLayout,
    device: torch.device | None = None,
    where: str = "",
) -> tuple[memoryview, dict[str, Any]]:
    """The bytes of a blob, matrices in their layout and zeros between them, and remarks: the
    relative error of every low-bit matrix. Raises MoEColabError, which names `where`, for NaN or
    infinite weights that should be quantized."""
    blob, errors = torch.zeros(layout.nbytes, dtype=torch.uint8, device="cpu"), {}
    for matrix in layout.matrices:
        weight = tensors[matrix.name]
        fields = {"weight": weight}
        if matrix.packing != UNPACKED:
            if not torch.isfinite(weight).all():
                raise MoEColabError(
                    f"{matrix.name} of {where} holds NaN or infinite weights, which cannot be "
                    "quantized: download the checkpoint again, or ask its authors."
                )
            weight = weight.T if matrix.packing == LOWBIT_TRANSPOSED else weight
            fields, errors[matrix.name] = quantize_matrix(
                weight.to(device).contiguous(), format_of(matrix), choose_scales
            )
        for field in matrix.fields:
            raw = blob[field.offset : field.offset + field.nbytes]
            raw.view(TORCH_DTYPES[field.dtype]).view(field.shape).copy_(fields[field.name])
    return memoryview(blob.numpy()), {"errors": errors} if errors else {}
