"""The slots that the planner promises are the slots that `mc.load` takes."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY_MOE
from families import make_checkpoint

import moe_colab as mc
from moe_colab.cache.spares import SPARES
from moe_colab.checkpoint.reader import Checkpoint
from moe_colab.planner.device_memory import DeviceMemory
from moe_colab.planner.sizes import folder_sizes, store_sizes
from moe_colab.quantization.format import Format
from moe_colab.quantization.pack import cached_store, pack
from moe_colab.quantization.recipe import Recipe

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "vocab_size": 256}
LOW = Format(4, 16)
RECIPES = {
    "16 bits": Recipe(),
    "2 bits": Recipe(Format(2, 16)),
    "layers of different sizes": Recipe(
        Format(2, 16), overrides={"experts.1.*": None, "experts.2.*": Format(8, 16)}
    ),
    "a low-bit dense part": Recipe(Format(2, 16), LOW),
    "low-bit embeddings too": Recipe(None, LOW, LOW, overrides={"experts.0.*": Format(3, 16)}),
}


def loaded_slots(source, vram: int) -> int:
    """0 where loading refuses."""
    try:
        model, _ = mc.load(source, vram=vram, kernels="plain", progress=False)
    except mc.MoEColabError as error:
        assert "one slot a layer needs" in str(error)
        return 0
    with model.offload:
        return model.offload.slots


def agrees(memory: DeviceMemory, source) -> None:
    """In the middle between two numbers of slots: a file has a header more than the model has, and
    the model a few constants more than the file."""
    slot = sum(memory.blocks)
    for budget in range(memory.least() - slot // 2, memory.least() + 8 * slot, slot):
        slots = memory.slots_within(budget)
        assert len(set(slots)) == 1
        assert loaded_slots(source, budget) == slots[0]
    assert slots[0] == 8


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint("mixtral", tmp_path_factory.mktemp("models") / "m", changes=WIDE)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_manifest_promises_the_slots_that_loading_takes(checkpoint, tmp_path, recipe):
    manifest = pack(Checkpoint(checkpoint), tmp_path / "s", torch.float32, False, recipe)
    memory = store_sizes(manifest).memory
    agrees(memory, tmp_path / "s")
    assert loaded_slots(tmp_path / "s", memory.least()) == 1


def test_headers_promise_the_slots_that_loading_takes(checkpoint):
    for folder in (checkpoint, TINY_MOE):
        agrees(folder_sizes(folder).memory, folder)
        store = cached_store(Checkpoint(folder), progress=False)
        assert folder_sizes(folder).memory.blobs == store_sizes(store.manifest).memory.blobs


def test_layers_with_experts_of_one_size_share_spares():
    memory = DeviceMemory([50, 70, 50], [8, 4, 8], dense=200, kernels=[5, 0, 9], pinned=[0, 2, 1])
    assert memory.blocks == (55, 70, 59)
    assert memory.spare_bytes() == SPARES * (59 + 70)
    assert memory.pinned_bytes() == 2 * 70 + 59
    beside = memory.pinned_bytes() + memory.spare_bytes()
    assert memory.least() == 200 + beside + 184
    assert memory.slots_within(memory.least() + 6 * 184) == [7, 4, 7]
