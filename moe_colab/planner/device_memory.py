"""Device memory of an offloaded model: how many slots fit into it, and how much it needs.

Knows bytes, layers and counts; knows no files and no torch. The preflight card asks it before a
download, `mc.load` when it places the model: one arithmetic for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..cache.spares import SPARES


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes that a model takes on its device, by MoE layer where it is a sequence.

    blobs: one expert in the store; experts: how many experts the layer has; dense: everything
    else of the model; pinned: how many experts always stay on the device, beside the slots;
    kernels: what the kernels keep beside one expert; working: what products with low-bit matrices
    of the dense part take.

    `kernels` is known only when the model is loaded, and 0 before. So `slots_within` may promise
    too much before, but only on a CPU, in bfloat16, for matrices of 2 to 4 bits: beside each of
    their weights the kernel int4pack keeps 5/8 byte at most. Plain checkpoints have none, but
    their headers lack the constants of a model, such as rotary frequencies: a few kilobytes.
    """

    blobs: Sequence[int]
    experts: Sequence[int]
    dense: int
    pinned: Sequence[int] = ()
    kernels: Sequence[int] = ()
    working: int = 0

    @property
    def blocks(self) -> tuple[int, ...]:
        """Bytes of one slot in each layer."""
        return tuple(map(sum, zip(self.blobs, self.kernels or [0] * len(self.blobs), strict=True)))

    def slot_bytes(self, slots: Sequence[int]) -> int:
        """All slots, of which every layer has so many."""
        return sum(n * block for n, block in zip(slots, self.blocks, strict=True))

    def pinned_bytes(self) -> int:
        return self.slot_bytes(self.pinned) if self.pinned else 0

    def spare_bytes(self) -> int:
        """The spare blocks: layers whose experts are of one size share them."""
        largest: dict[int, int] = {}
        for blob, block in zip(self.blobs, self.blocks, strict=True):
            largest[blob] = max(block, largest.get(blob, 0))
        return SPARES * sum(largest.values())

    def beside_dense(self, slots: Sequence[int]) -> int:
        """Everything that is allocated after the dense part, with so many slots in each layer."""
        return self.slot_bytes(slots) + self.pinned_bytes() + self.spare_bytes() + self.working

    def least(self) -> int:
        """The whole model with one slot in every layer."""
        return self.dense + self.beside_dense([1] * len(self.blobs))

    def slots_within(self, nbytes: int) -> list[int]:
        """Slots of each layer when the whole model may take `nbytes`: the same number everywhere,
        or all experts of a layer that has fewer. All 0 where not even one slot fits."""
        free = nbytes - self.dense - self.beside_dense([0] * len(self.blobs))
        slots = max(0, free // sum(self.blocks))
        return [min(slots, experts) for experts in self.experts]
