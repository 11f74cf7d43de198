"""What goes where: how many slots fit, and which experts have their home in host memory.

Knows sizes and memory. Knows no transformers model; the pool uses what is made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..cache.homes import DiskHome, HostHome
from ..cache.spares import SPARES
from ..errors import MoEColabError
from ..machine.memory import RAM_RESERVE, VRAM_RESERVE, available_memory
from ..store import LayerEntry
from ..units import human
from .slots import host_slab, prepared_bytes

Resident = Sequence[Sequence[int]]
"""The experts of each layer whose home is the device."""


def block_bytes(
    layers: Sequence[LayerEntry], dtype: torch.dtype, device: torch.device, kernels: str
) -> list[int]:
    """What room for one expert takes in each layer: its blob, and what multiplying keeps beside
    it."""
    prepared = {
        layout: prepared_bytes(layout, dtype, device, kernels)
        for layout in {layer.layout for layer in layers}
    }
    return [layer.layout.nbytes + prepared[layer.layout] for layer in layers]


def fitting_slots(
    layers: Sequence[LayerEntry],
    blocks: Sequence[int],
    resident: Resident,
    vram: int | None,
    dense: int,
    top_k: int,
    device: torch.device,
    working: int = 0,
) -> list[int]:
    """As many slots a layer, of `blocks` bytes each, as `vram` bytes hold beside the `dense` bytes
    of the rest of the model and the `working` bytes that it takes besides; without a limit, what
    the GPU has left, or half the experts on a CPU. Raises MoEColabError where not even one
    fits."""
    if vram is None and device.type == "cpu":
        return [max(min(top_k, layer.experts), layer.experts // 2) for layer in layers]
    budget = free_memory(device) - VRAM_RESERVE if vram is None else vram - dense
    beside = beside_slots(blocks, resident) + working
    slots = (budget - beside) // sum(blocks)
    if slots < 1:
        need = dense + beside + sum(blocks)
        raise MoEColabError(
            f"one slot a layer needs {human(need)} with the {human(dense)} of everything else, "
            "more than there is: use a larger vram=..., or a checkpoint with fewer bits."
        )
    return [min(int(slots), layer.experts) for layer in layers]


def check_room(
    blocks: Sequence[int],
    slots: Sequence[int],
    resident: Resident,
    device: torch.device,
    working: int = 0,
) -> None:
    """Raises MoEColabError where the slots do not fit into the memory that is free now, with the
    `working` bytes that the rest of the model will take."""
    need = sum(n * block for n, block in zip(slots, blocks, strict=True))
    need += beside_slots(blocks, resident) + working
    free = free_memory(device)
    if need > free:
        raise MoEColabError(
            f"these slots need {human(need)} on {device} ({human(sum(blocks))} for one "
            f"slot in every layer), but {human(free)} are free: use fewer slots."
        )


def make_homes(
    disk: Sequence[Sequence[DiskHome]],
    ram: int | None,
    device: torch.device,
    resident: Resident | None = None,
) -> list[list]:
    """Copies in host memory of as many experts as `ram` bytes hold, spread over the layers; the
    others stay on disk, as do the `resident` ones, which need no copy. Without a limit: what is
    free beside a CUDA device, and nothing on a CPU, where the page cache serves."""
    if ram is None:
        ram = 0 if device.type == "cpu" else max(0, available_memory() - RAM_RESERVE)
    elif ram > available_memory():
        raise MoEColabError(
            f"ram={human(ram)} was asked for, but {human(available_memory())} are free."
        )
    homes: list[list] = [list(layer) for layer in disk]
    resident = resident or [()] * len(disk)
    for expert, number in sorted(
        (expert, number)
        for number, layer in enumerate(disk)
        for expert in range(len(layer))
        if expert not in resident[number]
    ):
        home = homes[number][expert]
        if home.nbytes > ram:
            break
        ram -= home.nbytes
        homes[number][expert] = in_host_memory(home, device)
    return homes


def in_host_memory(home: DiskHome, device: torch.device) -> HostHome:
    memory = host_memory(home.nbytes, device)
    buffer = memoryview(memory.numpy())
    for _ in home.fill(buffer):
        pass
    home.forget()  # or the expert would be in host memory twice
    return HostHome(buffer, memory)


def beside_slots(blocks: Sequence[int], resident: Resident) -> int:
    """Spares for every size of block, and the blocks of experts at home on the device."""
    pinned = sum(len(experts) * block for experts, block in zip(resident, blocks, strict=True))
    return pinned + SPARES * sum(set(blocks))


def host_memory(nbytes: int, device: torch.device) -> torch.Tensor:
    if device.type != "cuda":
        return host_slab(nbytes)
    from .cuda import pinned_memory

    return pinned_memory(nbytes)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device, what torch holds without using it included."""
    if device.type != "cuda":
        return available_memory()
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def places(
    blocks: Sequence[int],
    slots: Sequence[int],
    resident: Resident,
    homes: Sequence[Sequence[Any]],
    dense: int,
) -> list[dict[str, Any]]:
    """Where the bytes of a model lie: rows of place ("device", "host", "disk"), part and bytes; a
    part that has none is left out. blocks: what room for one expert takes, by layer; homes: of
    every expert; dense: bytes of all but the experts."""
    tiers = {"host": 0, "disk": 0}
    for number, layer in enumerate(homes):
        for expert, home in enumerate(layer):
            if expert not in resident[number]:  # the device is its home
                tiers[home.tier] += home.nbytes
    stay = beside_slots(blocks, resident) - (spares := beside_slots(blocks, [()] * len(blocks)))
    parts = (
        ("device", "all but the experts", dense),
        ("device", "slots", sum(n * block for n, block in zip(slots, blocks, strict=True))),
        ("device", "experts that stay", stay),
        ("device", "spares", spares),
        ("host", "experts", tiers["host"]),
        ("disk", "experts", tiers["disk"]),
    )
    names = ("place", "part", "bytes")
    return [dict(zip(names, part, strict=True)) for part in parts if part[2]]
