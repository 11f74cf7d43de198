"""mc.needs: what models need, by their published numbers and by the small model's own file."""

from __future__ import annotations

import json
import struct

import pytest
from conftest import TINY_MOE

from moe_colab.planner import needs as module
from moe_colab.planner.needs import needs
from moe_colab.planner.preflight import Gpu

GIB = 1 << 30


@pytest.fixture
def rows(monkeypatch):
    """On a machine with 8 GiB of RAM, 3 of them in use, and the given GPU."""

    def rows(gpu: Gpu | None = None) -> dict[str, dict[str, int]]:
        monkeypatch.setattr(module, "available_memory", lambda: 5 * GIB)
        monkeypatch.setattr(module, "total_memory", lambda: 8 * GIB)
        monkeypatch.setattr(module, "find_gpu", lambda: gpu)
        found: dict[str, dict[str, int]] = {}
        for row in needs():
            found.setdefault(f"{row['kind']}: {row['name']}", {})[row["part"]] = row["bytes"]
        return found

    return rows


def test_mixtral_has_the_published_numbers(rows):
    """46.7 billion parameters, 12.9 of them active; 17.54 GiB in the paper."""
    full = rows()["model: Mixtral-8x7B in 16 bits"]
    assert sum(full.values()) / 2 == pytest.approx(46.7e9, rel=1e-3)
    active = full["used by every token"] + full["experts of one token"]
    assert active / 2 == pytest.approx(12.9e9, rel=2e-3)
    low = rows()["model: Mixtral-8x7B in 2 bits"]
    assert sum(low.values()) / GIB == pytest.approx(17.54)
    assert low["all other experts"] == pytest.approx(3 * low["experts of one token"])


def test_the_small_model_has_the_bytes_of_its_file(rows):
    data = (TINY_MOE / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    sizes = {
        name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items()
    }
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    small = rows()["model: the small model in 16 bits"]
    assert small["used by every token"] == sum(sizes.values()) - experts
    assert (
        small["experts of one token"] == experts / 4
        and small["all other experts"] == 3 * experts / 4
    )


@pytest.mark.parametrize(
    "gpu", [None, Gpu("T4", 15 * GIB, 14 * GIB), Gpu("shared memory", None, None)]
)
def test_the_memory_is_that_of_this_machine(rows, gpu):
    found = rows(gpu)
    memories = {name: parts for name, parts in found.items() if name.startswith("memory")}
    wanted = {"memory: RAM of this machine": {"free": 5 * GIB, "in use": 3 * GIB}}
    if gpu is not None and gpu.total is not None:
        wanted["memory: GPU of this machine"] = {"free": 14 * GIB, "in use": GIB}
    assert memories == wanted
