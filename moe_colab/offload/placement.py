"""Placement: how many slots fit on the device, and which experts have their home in host memory.

Knows sizes, memory and homes; knows no transformers model and no pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..cache.homes import DiskHome, Home, HostHome
from ..errors import MoEColabError
from ..machine.memory import FORWARD_RESERVE, RAM_RESERVE, VRAM_RESERVE, available_memory
from ..planner.device_memory import DeviceMemory
from ..store import LayerEntry
from ..units import human
from .slots import host_slab, prepared_bytes

Pinned = Sequence[Sequence[int]]
"""The experts of each layer whose home is the device."""


def device_memory(
    layers: Sequence[LayerEntry],
    pinned: Pinned,
    dense: int,
    working: int,
    dtype: torch.dtype,
    device: torch.device,
    kernels: str,
) -> DeviceMemory:
    """What the model takes on the device, with what `kernels` keep beside each expert; `dense` and
    `working` are the bytes of everything else and of its products."""
    layouts = {layer.layout for layer in layers}
    prepared = {layout: prepared_bytes(layout, dtype, device, kernels) for layout in layouts}
    return DeviceMemory(
        blobs=[layer.layout.nbytes for layer in layers],
        experts=[layer.experts for layer in layers],
        dense=dense,
        pinned=[len(experts) for experts in pinned],
        kernels=[prepared[layer.layout] for layer in layers],
        working=working,
    )


def fitting_slots(
    memory: DeviceMemory, vram: int | None, top_k: int, device: torch.device
) -> list[int]:
    """As many slots per layer as fit when the whole model takes `vram` bytes. Without a limit: as
    many as fit into what is free, and on a CPU at most half the experts, or `top_k`. Raises
    MoEColabError where not even one fits."""
    on_cpu = device.type == "cpu"
    reserve = FORWARD_RESERVE if on_cpu else VRAM_RESERVE
    budget = free_memory(device) - reserve + memory.dense if vram is None else vram
    slots = memory.slots_within(budget)
    if vram is None and on_cpu:
        wanted = (max(min(top_k, experts), experts // 2) for experts in memory.experts)
        slots = [min(pair) for pair in zip(slots, wanted, strict=True)]
    if not any(slots):
        raise MoEColabError(
            f"one slot a layer needs {human(memory.least())} with the {human(memory.dense)} of "
            "everything else, more than there is: use a larger vram=..., or a checkpoint with "
            "fewer bits."
        )
    return slots


def check_before_loading(
    memory: DeviceMemory, slots: Sequence[int] | str, device: torch.device
) -> None:
    """Raises MoEColabError where a model does not fit into the memory that is free now, with one
    slot in every layer if `slots` is "auto". What kernels take beside is not known yet:
    `check_free_memory` counts it too."""
    auto, ones = isinstance(slots, str), [1] * len(memory.blobs)
    need = memory.dense + memory.beside_dense(ones if auto else slots) + FORWARD_RESERVE
    free = free_memory(device)
    if need > free:
        what = "one slot in every layer" if auto else "these slots"
        advice = "choose a checkpoint with fewer bits" if auto else "use fewer slots"
        dense, one = human(memory.dense), human(memory.slot_bytes(ones))
        raise MoEColabError(
            f"with {what} this model needs {human(need)} on {device} ({dense} without its "
            f"experts, {one} for one slot in every layer), but {human(free)} are free: {advice}."
        )


def check_free_memory(memory: DeviceMemory, slots: Sequence[int], device: torch.device) -> None:
    """Raises MoEColabError where the slots do not fit into the memory that is free now. The dense
    part is loaded already; the rest is not."""
    need, free = memory.beside_dense(slots) + FORWARD_RESERVE, free_memory(device)
    if need > free:
        one = human(memory.slot_bytes([1] * len(slots)))
        raise MoEColabError(
            f"these slots need {human(need)} on {device} ({one} for one slot in every layer), but "
            f"{human(free)} are free: use fewer slots."
        )


def make_homes(
    disk: Sequence[Sequence[DiskHome]],
    ram: int | None,
    device: torch.device,
    pinned: Pinned | None = None,
) -> list[list]:
    """The homes of all experts by layer: copies in host memory of as many as `ram` bytes hold,
    spread over the layers, and the disk for the others, and for `pinned` ones, which need no
    copy. Without a limit, the copies take what is free beside a GPU, and nothing on a CPU, where
    the page cache does the same."""
    if ram is None:
        ram = 0 if device.type == "cpu" else max(0, available_memory() - RAM_RESERVE)
    elif ram > available_memory():
        raise MoEColabError(
            f"ram={human(ram)} was asked for, but {human(available_memory())} are free."
        )
    homes: list[list] = [list(layer) for layer in disk]
    pinned = pinned or [()] * len(disk)
    for expert, number in sorted(
        (expert, number)
        for number, layer in enumerate(disk)
        for expert in range(len(layer))
        if expert not in pinned[number]
    ):
        home = homes[number][expert]
        if home.nbytes > ram:
            break
        ram -= home.nbytes
        homes[number][expert] = in_host_memory(home, device)
    return homes


def in_host_memory(home: DiskHome, device: torch.device) -> HostHome:
    """A copy of an expert in host memory, which is page-locked for a GPU."""
    memory = host_memory(home.nbytes, device)
    buffer = memoryview(memory.numpy())
    for _ in home.fill(buffer):
        pass
    home.forget()  # else the page cache holds it as well
    return HostHome(buffer, memory)


def host_memory(nbytes: int, device: torch.device) -> torch.Tensor:
    """uint8 [nbytes] of host memory, page-locked if `device` is a GPU."""
    if device.type != "cuda":
        return host_slab(nbytes)
    from .cuda import pinned_memory

    return pinned_memory(nbytes)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device, with what torch has reserved and does not use."""
    if device.type != "cuda":
        return available_memory()
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def memory_table(
    memory: DeviceMemory, slots: Sequence[int], pinned: Pinned, homes: Sequence[Sequence[Home]]
) -> list[dict[str, Any]]:
    """Where the bytes of a model are: rows of place ("device", "host", "disk"), part and bytes; a
    part without bytes is left out. homes: of every expert, by layer."""
    tiers = {"host": 0, "disk": 0}
    for number, layer in enumerate(homes):
        for expert, home in enumerate(layer):
            if expert not in pinned[number]:  # its home is the device
                tiers[home.tier] += home.nbytes
    parts = (
        ("device", "all but the experts", memory.dense),
        ("device", "slots", memory.slot_bytes(slots)),
        ("device", "pinned experts", memory.pinned_bytes()),
        ("device", "spares", memory.spare_bytes()),
        ("host", "experts", tiers["host"]),
        ("disk", "experts", tiers["disk"]),
    )
    names = ("place", "part", "bytes")
    return [dict(zip(names, part, strict=True)) for part in parts if part[2]]
