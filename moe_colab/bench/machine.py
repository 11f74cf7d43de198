"""The machine that a measurement ran on: processor, memory, GPU, versions of the packages; and the
peak of memory of this process. Knows the machine; knows nothing of the measurement.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

CPU = torch.device("cpu")
PACKAGES = ("torch", "transformers", "safetensors", "numpy")


def describe(device: torch.device = CPU) -> dict[str, Any]:
    """Facts about this machine, of the GPU too where `device` is one; sizes in bytes."""
    facts = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ram_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": str(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": properties.name,
            "vram_bytes": properties.total_memory,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return facts


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            named = [line for line in lines if line.startswith("model name")]
    except OSError:
        named = []
    return named[0].partition(":")[2].strip() if named else platform.processor()


def resident_peak(reset: bool = False) -> int:
    """Peak of this process's resident memory since its start or the last reset, in bytes. reset:
    first lower the peak to what is resident now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10
