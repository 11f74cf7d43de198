"""Memory and disk of this machine, and how much of them moe_colab leaves free. Knows the system and
its containers; knows no GPU and no model."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psutil

VRAM_RESERVE = 3 << 29  # 1.5 GiB: key-value cache, activations, and what CUDA itself takes
RAM_RESERVE = 2 << 30
FORWARD_RESERVE = 1 << 28  # 256 MiB: activations, and what torch takes in a first forward
DISK_HEADROOM = 64 << 20


def available_memory() -> int:
    """Bytes of host memory that are free: on the machine, or in its container if that is less."""
    return min([psutil.virtual_memory().available, *(free for _, free in _container_limits())])


def total_memory() -> int:
    """Bytes of host memory of the machine, or of its container if that is less."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _container_limits())])


def free_disk(folder: Path) -> int:
    """Bytes free where `folder` is or will be."""
    while not os.path.exists(folder):
        folder = folder.parent
    return shutil.disk_usage(folder).free


# Linux: limits of control groups (containers), and the groups of this process.
CONTROL_GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def _container_limits() -> list[tuple[int, int]]:
    """(limit, free) bytes of every memory control group of this process."""
    out = []
    root = CONTROL_GROUPS
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:
        return out
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            names, base = ("memory.max", "memory.current"), root
        elif "memory" in controllers.split(","):
            names, base = ("memory.limit_in_bytes", "memory.usage_in_bytes"), root / "memory"
        else:
            continue
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            limit, used = (_read_number(folder / name) for name in names)
            if limit is not None and used is not None and limit < 1 << 60:
                out.append((limit, max(0, limit - used + _reclaimable(folder))))
            if folder == base:
                break
    return out


def _reclaimable(group: Path) -> int:
    """Bytes of a group's use that are cached file pages, which the kernel can free."""
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    cached = ("total_inactive_file", "total_active_file"), ("inactive_file", "active_file")
    pages = max(sum(int(stat.get(name, 0)) for name in names) for names in cached)
    return max(0, pages - int(stat.get("total_dirty", stat.get("file_dirty", 0))))


def _read_number(path: Path) -> int | None:
    """The number in a file, None where it is absent or "max", which is no limit."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
