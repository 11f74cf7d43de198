"""Low-bit modules: linear layers and embeddings whose weight stays quantized in memory.

Knows transformers' modules from outside, blobs and kernels. A module's blob is a buffer that no
checkpoint holds, so that it is counted and freed with the model. Legend: N rows (out, or tokens of
the vocabulary), K columns (in, or hidden).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..cache.homes import DiskHome
from ..errors import CLOSED, MoEColabError
from ..quantization.format import Shape
from ..quantization.kernels import LowBitWeight
from ..quantization.kernels.dispatch import AUTO
from ..store import BlobLayout, Store
from .slots import Block, allocate, host_slab, prepared_bytes


class LowBitModule(nn.Module):
    """A module with a low-bit matrix [N, K], empty until `hold`."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.dtype: torch.dtype | None = None
        self.layout: BlobLayout | None = None
        self.matrix: LowBitWeight | None = None
        self.register_buffer("blob", None, persistent=False)
        self._is_hf_initialized = True  # transformers has nothing to initialize

    def hold(
        self, blob: torch.Tensor, layout: BlobLayout, matrix: LowBitWeight, dtype: torch.dtype
    ) -> None:
        """Compute in `dtype` with `matrix`, the view of `blob` by `layout`."""
        self.blob, self.layout, self.matrix, self.dtype = blob, layout, matrix, dtype

    def release(self) -> None:
        """Drop the views of the blob and what was prepared from it; the buffer stays, and is freed
        with the model's tensors."""
        self.matrix = None

    @property
    def weight(self) -> torch.Tensor:
        """The dequantized matrix [N, K], computed at each access: for families that read weights
        themselves."""
        return self._held().dequantized(self.dtype)

    def bits(self) -> str:
        """The bits of its matrix, for its repr."""
        return "empty" if self.matrix is None else f"{self.matrix.fmt.bits} bits"

    def _held(self) -> LowBitWeight:
        if self.matrix is None:
            raise MoEColabError(CLOSED)
        return self.matrix


class LowBitLinear(LowBitModule):
    """Replaces an nn.Linear and keeps its bias."""

    def __init__(self, linear: nn.Linear):
        super().__init__((linear.out_features, linear.in_features))
        self.out_features, self.in_features = self.shape
        self.register_parameter("bias", linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., K] -> [..., N]"""
        out = self._held().linear(x)
        return out if self.bias is None else out + self.bias

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.bits()}"
        )


class LowBitEmbedding(LowBitModule):
    """Replaces an nn.Embedding; dequantizes only the rows that are looked up."""

    def __init__(self, embedding: nn.Embedding):
        super().__init__((embedding.num_embeddings, embedding.embedding_dim))
        self.num_embeddings, self.embedding_dim = self.shape
        self.padding_idx = embedding.padding_idx

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [...] -> [..., K]"""
        rows = self._held().rows(ids.reshape(-1), self.dtype)
        return rows.view(*ids.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.bits()}"


KINDS = {nn.Linear: LowBitLinear, nn.Embedding: LowBitEmbedding}
"""The low-bit class for each exact class: a subclass may compute something else."""


def low_bit_modules(model: nn.Module) -> list[LowBitModule]:
    return [module for module in model.modules() if isinstance(module, LowBitModule)]


def release(model: nn.Module) -> None:
    """Call `release` of all low-bit modules of the model."""
    for module in low_bit_modules(model):
        module.release()


def swap(model: nn.Module, names: Iterable[str]) -> None:
    """Replace each named module by an empty low-bit module. Raises MoEColabError where this version
    of transformers has no such linear layer or embedding."""
    for name in names:
        try:
            module = model.get_submodule(name)
        except AttributeError:
            module = None
        if type(module) not in KINDS:
            raise MoEColabError(
                f"the store holds a matrix for {name}, but this version of transformers has no "
                "linear layer or embedding of that name: make the store again."
            )
        model.set_submodule(name, KINDS[type(module)](module))


def fill(
    model: nn.Module, store: Store, dtype: torch.dtype, device: torch.device, kernels: str = AUTO
) -> None:
    """Read the store's low-bit matrices into the modules that `swap` made. Raises MoEColabError
    where a blob is damaged or has another size than its module."""
    for matrix, home in zip(store.manifest.low_bit_matrices, store.dense_homes, strict=True):
        (block,) = allocate(1, home.nbytes, device, kernels)
        read(home, block)
        weight = block.views(matrix.layout, None)["weight"]
        blob = block.tensor.data  # no view: emptying the buffer must free the memory
        for name in matrix.modules:
            module = model.get_submodule(name)
            stored = matrix.layout.matrices[0].shape
            if module.shape != stored:
                raise MoEColabError(
                    f"the store's {name} is {stored}, but config.json says {module.shape}: make "
                    "the store again."
                )
            module.hold(blob, matrix.layout, weight, dtype)


def read(home: DiskHome, block: Block) -> None:
    """Read a blob into its block; for a GPU, with one copy."""
    stage = block.tensor if block.buffer else host_slab(home.nbytes)
    for _ in home.fill(memoryview(stage.numpy())):
        pass
    if stage is not block.tensor:
        block.tensor.copy_(stage)


def working_bytes(model: nn.Module, kernels: str = AUTO) -> int:
    """Bytes that products with low-bit modules take beside the blobs, at most: what kernels
    prepare from them, and one dequantized matrix."""
    prepared = largest = 0
    for module in low_bit_modules(model):
        if isinstance(module, LowBitLinear):
            prepared += prepared_bytes(module.layout, module.dtype, module.blob.device, kernels)
            largest = max(largest, module.out_features * module.in_features * module.dtype.itemsize)
    return prepared + largest
