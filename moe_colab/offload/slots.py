"""Blocks of device memory for experts: slabs of equal blocks, and typed views into a block.

Knows layouts and devices; knows no policies and no loads. The pool decides what a block holds.
"""

from __future__ import annotations

import mmap

import torch

from ..checkpoint.tensors import TORCH_DTYPES
from ..errors import MoEColabError
from ..quantization.format import Shape
from ..quantization.kernels import Dispatcher, LowBitWeight, dispatcher_for
from ..quantization.kernels.dispatch import AUTO
from ..quantization.recipe import LOWBIT_TRANSPOSED, format_of
from ..store.blobs import UNPACKED, BlobLayout, Field, Matrix
from ..units import human


class Block:
    """Memory for one expert: `tensor` uint8 [nbytes] on the device; `buffer` is the same memory for
    the host to write to, None on a GPU. `dispatcher` chooses the kernels for low-bit matrices."""

    def __init__(self, tensor: torch.Tensor, dispatcher: Dispatcher):
        self.tensor, self._dispatcher = tensor, dispatcher
        self.buffer = memoryview(tensor.numpy()) if tensor.device.type == "cpu" else None
        self._views: dict[BlobLayout, dict[str, torch.Tensor | LowBitWeight]] = {}
        self._expert: object = None

    def views(self, layout: BlobLayout, expert: object) -> dict[str, torch.Tensor | LowBitWeight]:
        """The block's matrices by name, as views that are made once per layout. When `expert`
        differs from the last call's, kernels prepare the low-bit matrices again."""
        views = self._views.get(layout)
        if views is None:
            views = {matrix.name: self._matrix(matrix) for matrix in layout.matrices}
            self._views[layout] = views
        if expert != self._expert:
            self._expert = expert
            for matrices in self._views.values():
                for view in matrices.values():
                    if isinstance(view, LowBitWeight):
                        view.renew()
        return views

    def _matrix(self, matrix: Matrix) -> torch.Tensor | LowBitWeight:
        fields = {field.name: self._view(field) for field in matrix.fields}
        if matrix.packing == UNPACKED:
            return fields["weight"]
        return LowBitWeight(fields, format_of(matrix), across(matrix), self._dispatcher)

    def _view(self, field: Field) -> torch.Tensor:
        raw = self.tensor[field.offset : field.offset + field.nbytes]
        return raw.view(TORCH_DTYPES[field.dtype]).view(field.shape)


def host_slab(nbytes: int) -> torch.Tensor:
    """uint8 [nbytes] of host memory, aligned to pages; a page is taken when it is first written."""
    try:
        return torch.frombuffer(mmap.mmap(-1, nbytes), dtype=torch.uint8)
    except OSError as error:
        raise MoEColabError(
            f"the system refused {human(nbytes)} of memory ({error.strerror}): use fewer slots."
        ) from error


def across(matrix: Matrix) -> Shape:
    """[out, in] of a low-bit matrix; its module may have [in, out]."""
    transposed = matrix.packing == LOWBIT_TRANSPOSED
    return tuple(reversed(matrix.shape)) if transposed else matrix.shape


def prepared_bytes(
    layout: BlobLayout, dtype: torch.dtype, device: torch.device, kernels: str = AUTO
) -> int:
    """Bytes that kernels keep beside a block of this layout, at most. Runs the kernels'
    self-tests, if this process has not yet."""
    dispatcher = dispatcher_for(kernels)
    return sum(
        dispatcher.prepared_bytes(format_of(matrix), across(matrix), dtype, device)
        for matrix in layout.matrices
        if matrix.packing != UNPACKED
    )


def allocate(count: int, nbytes: int, device: torch.device, kernels: str = AUTO) -> list[Block]:
    """`count` blocks of `nbytes` in one slab, which a CPU takes only when it is written. `kernels`:
    "auto" or "plain"."""
    dispatcher = dispatcher_for(kernels)
    if count == 0:
        return []
    with torch.inference_mode(False):  # a slot made inside a generation must outlive it
        if device.type == "cpu":
            slab = host_slab(count * nbytes)
        else:
            slab = torch.empty(count * nbytes, dtype=torch.uint8, device=device)
        return [Block(part, dispatcher) for part in slab.split(nbytes)]
