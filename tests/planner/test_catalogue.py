"""mc.models(): sizes from headers alone, told before torch is imported, with a hub or without."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY_MOE, python
from fake_hub import FakeHub
from families import PROMISED, make_checkpoint
from huggingface_hub import constants
from safetensors import safe_open

from moe_colab import MoEColabError
from moe_colab.cache.spares import SPARES
from moe_colab.checkpoint.reader import Checkpoint
from moe_colab.checkpoint.source import find_source
from moe_colab.machine import folders
from moe_colab.planner import catalogue
from moe_colab.planner.access import hub_access
from moe_colab.planner.catalogue import CATALOGUE, DOWNLOAD_SPEED, PACKING_SPEED, models
from moe_colab.planner.device_memory import DeviceMemory
from moe_colab.planner.sizes import Sizes, folder_sizes, measure
from moe_colab.planner.sources import SHIPPED, is_repo_id, source_of
from moe_colab.store import BlobLayout, FileEntry, LayerEntry, Manifest
from moe_colab.store.safetensors import TensorEntry

pytestmark = pytest.mark.colab
GRANITE, OLMOE = [source for source in CATALOGUE if source]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "granite"
    return make_checkpoint("granitemoe", folder, max_shard_size="60kB")


@pytest.fixture
def hub(sharded, monkeypatch, tmp_path):
    hub = FakeHub()
    hub.models = {GRANITE: sharded, OLMOE: TINY_MOE}
    with hub.reachable(monkeypatch, tmp_path):
        yield hub


def real_bytes(place) -> int:
    """Of the tensors in a file, or in those of a folder."""
    total = 0
    for path in [place] if place.is_file() else place.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
            total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return total


# ---------------------------------------------------------------------- sizes
@pytest.mark.parametrize("family", PROMISED)
def test_headers_say_what_the_checkpoint_knows(family, tmp_path):
    """By names and shapes alone, the same parts as by transformers' own mapping."""
    folder = make_checkpoint(family, tmp_path / "model")
    checkpoint, sizes = Checkpoint(folder), folder_sizes(folder)
    sources = checkpoint.names.sources.values()
    keys = {k for patterns in sources for ks in patterns.values() for k in ks}
    assert sizes.experts == sum(checkpoint.entries[k].nbytes for k in keys)
    assert sizes.memory.dense == sum(entry.nbytes for entry in checkpoint.dense_entries())
    assert sizes.download == real_bytes(folder)
    assert (sizes.layers, sizes.experts_per_layer) == (len(checkpoint.layers), 8)


def test_a_slot_is_what_placement_says_it_is(tmp_path):
    from moe_colab.quantization.pack import cached_store

    manifest = cached_store(Checkpoint(TINY_MOE), progress=False).manifest
    sizes = folder_sizes(TINY_MOE)
    assert sum(sizes.memory.blobs) == sum(layer.layout.nbytes for layer in manifest.layers)
    assert sizes.largest == max(layer.layout.nbytes for layer in manifest.layers)
    assert sizes.experts == manifest.expert_bytes()


def tensor(name: str, nbytes: int) -> TensorEntry:
    return TensorEntry(Path("x"), f"model.layers.{name}", "U8", (nbytes,), 0, nbytes)


def test_layers_that_are_not_run_are_downloaded_and_no_more():
    experts = [tensor(f"{n}.mlp.experts.{e}.w", 40) for n in (0, 1) for e in (0, 1)]
    files = [experts, [tensor("0.mlp.shared_experts.w", 40)]]
    sizes = measure(files, {"num_experts": 2, "num_hidden_layers": 1})
    assert sizes == Sizes(200, 80, DeviceMemory((4096,), (2,), 40), shards=200)
    assert (sizes.layers, sizes.experts_per_layer) == (1, 2)


def test_the_two_largest_files_are_what_lies_on_the_disk_at_once(sharded):
    files = [[tensor(f"0.mlp.experts.{n}.w", nbytes)] for n, nbytes in enumerate((30, 50, 40))]
    assert measure(files, {"num_experts": 2}).shards == 90
    assert measure(files[:1], {"num_experts": 2}).shards == 30
    largest = sorted(real_bytes(path) for path in sharded.glob("*.safetensors"))
    assert folder_sizes(sharded).shards == sum(largest[-2:]) < sum(largest)


def test_least_memory_and_the_slots_that_fit_agree():
    memory = DeviceMemory([50, 50], [8, 8], dense=200)
    assert memory.least() == 200 + 100 + SPARES * 50
    assert memory.slots_within(memory.least()) == [1, 1]
    assert memory.slots_within(memory.least() - 1) == [0, 0]
    assert memory.slots_within(memory.least() + 250) == [3, 3]
    assert memory.slots_within(10**9) == [8, 8]


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "cut", "dense"])
def test_what_is_no_checkpoint_is_one_sentence(tmp_path, damage):
    shutil.copytree(TINY_MOE, tmp_path / "model")
    folder = tmp_path / "model"
    if damage == "cut":
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").write_bytes(b"\xff" * 20)
    elif damage == "dense":
        (folder / "config.json").unlink()
        (folder / "config.json").write_text('{"model_type": "llama"}')
    else:
        (folder / damage).unlink()
    with pytest.raises(MoEColabError) as caught:
        folder_sizes(folder)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- the list
def test_the_hubs_sizes_are_the_real_sums_and_no_weights_move(hub, sharded):
    shipped, granite, olmoe = models()
    assert (shipped.source, granite.source, olmoe.source) == (None, GRANITE, OLMOE)
    for row, folder in ((granite, sharded), (olmoe, TINY_MOE)):
        assert row.sizes == folder_sizes(folder)
        assert row.sizes.download == row.download_bytes == real_bytes(folder)
        assert row.disk_bytes == real_bytes(folder) + row.sizes.shards
        wait = real_bytes(folder) / DOWNLOAD_SPEED + real_bytes(folder) / PACKING_SPEED
        assert row.wait_seconds == pytest.approx(wait)
    assert shipped.download_bytes == 0 and shipped.disk_bytes == real_bytes(TINY_MOE)
    assert 0 < hub.peeked["model.safetensors"] <= 100_001 < real_bytes(TINY_MOE)
    assert not [name for name in hub.sent if name.endswith(".safetensors")]


def test_what_was_asked_once_is_not_asked_again(hub):
    models()
    hub.asked.clear()
    models()
    assert not hub.asked
    models(refresh=True)
    assert hub.asked


def test_what_is_downloaded_or_packed_needs_no_hub(hub, sharded, tmp_path):
    import moe_colab as mc

    def granite():
        hub.asked.clear()
        row = models()[1]
        assert not [path for _, path in hub.asked if GRANITE in path]
        return row

    mc.load(GRANITE, slots=1, progress=False)[0].offload.close()
    row, real = granite(), folder_sizes(sharded)
    assert row.packed and not row.here
    assert (row.download_bytes, row.disk_bytes, row.wait_seconds) == (0, 0, 0)
    assert (row.sizes.layers, row.sizes.experts_per_layer) == (3, 8)
    assert 0 <= row.sizes.experts - real.experts < 24 * 4096  # each to the next page
    assert row.sizes.memory.blobs == real.memory.blobs
    assert 0 <= row.sizes.memory.dense - real.memory.dense < 10_000  # the header of its file
    hub_access().snapshot_download(GRANITE)
    assert granite().here and granite().packed
    shutil.rmtree(tmp_path / "stores")
    row = granite()
    assert row.here and not row.packed and row.disk_bytes == row.sizes.store()


def test_a_store_of_another_model_of_that_name_is_not_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_COLAB_CACHE", str(tmp_path))
    store = tmp_path / "org--model-Instruct-0123456789ab"
    store.mkdir()
    path, source = store / "moe_colab.json", {"id": "org/model-Instruct"}
    layer = LayerEntry("experts", 0, "", (), (), "moe", 8, BlobLayout((), 100))
    dense = FileEntry("dense", 7, 0, "")
    whole = Manifest(source, "mixtral", "F32", dense, (), (layer, layer)).dump()
    path.write_text(whole)
    expected = Sizes(1607, 1600, DeviceMemory((100, 100), (8, 8), 7))
    assert catalogue.packed_sizes("org/model-Instruct") == expected
    assert catalogue.packed_sizes("org/model") is None
    empty = Manifest(source, "mixtral", "F32", dense, (), ()).dump()
    for damaged in ("half a manif", whole.replace('"experts": 8', '"experts": 9'), empty):
        path.write_text(damaged)
        assert catalogue.packed_sizes("org/model-Instruct") is None


def test_rows_of_ones_own(hub, sharded):
    hub.gated.add("someone/gated")
    hub.models |= {"someone/gated": sharded, "someone/mine": sharded}
    mine, folder, gated, missing = models("someone/mine", str(sharded), "someone/gated", "a/b")[3:]
    assert mine.sizes == folder.sizes == folder_sizes(sharded)
    assert mine.download_bytes and not folder.download_bytes
    assert gated.problem.startswith("gated: accept its licence at https://huggingface.co/someone/")
    assert "no such model" in missing.problem


def test_an_address_is_the_model_that_it_names(hub, sharded):
    hub.models["someone/mine"] = sharded
    page = "https://huggingface.co"
    rows = models(f"{page}/{OLMOE}", "shipped", f"{page}/someone/mine/tree/main")
    assert [row.source for row in rows] == [*CATALOGUE, "someone/mine"]
    assert rows[3].sizes == folder_sizes(sharded)
    for wrong, word in (("/datasets/a/b", "a data set"), (f"/{OLMOE}/tree/v1", "main branch")):
        with pytest.raises(MoEColabError, match=word):
            models(page + wrong)


def test_without_a_hub_the_rows_say_so(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    shipped, granite, _ = listed = models()
    assert time.monotonic() - start < 8
    assert shipped.sizes and granite.sizes is None and granite.wait() == "?"
    for shown in (repr(listed), listed._repr_html_()):
        assert shown.count("size unknown: the hub cannot be reached") == 2
    assert granite.download_bytes is granite.disk_bytes is granite.memory_bytes is None


def test_in_offline_mode_the_hub_is_not_asked(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in models()[1].problem
    assert not hub.asked


def test_a_hub_that_hangs_costs_the_timeout_and_no_more(hub, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(catalogue, "hub_sizes", lambda repo_id: release.wait(30))
    start = time.monotonic()
    shipped, granite, olmoe = models(timeout=0.5)
    assert time.monotonic() - start < 5
    release.set()
    assert shipped.sizes and granite.sizes is olmoe.sizes is None
    assert "cannot be reached" in olmoe.problem


def test_the_list_shows_every_model_in_text_and_html(hub):
    listed = models("x/<b>")
    for shown in (repr(listed), listed._repr_html_()):
        assert all(source in shown for source in (GRANITE, OLMOE, "mc.load()"))
        assert "assumed" in shown and "estimate" in shown
    html = listed._repr_html_()
    assert "x/<b>" not in html and "http" not in html and "<script" not in html
    assert "data-jp-theme-light" in html and "html[theme=dark]" in html


def test_a_form_fields_text_is_a_source():
    assert source_of("shipped") is source_of(" ") is None
    assert source_of(f" {OLMOE} ") == OLMOE and source_of(None) is None
    assert source_of(Path("shipped")) == Path("shipped")
    assert find_source("shipped") == find_source(None)
    assert [source_of(row.choice) for row in models(timeout=0)] == list(CATALOGUE)


def test_form_fields_offer_the_list():
    """Every notebook's field of models names those of the list, in its order, and perhaps more
    of the hub."""
    offered = [SHIPPED, GRANITE, OLMOE]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            for line in "".join(cell["source"]).splitlines():
                if "@param" in line and f'"{SHIPPED}"' in line:
                    options = line.split("@param", 1)[1].strip()
                    found, _ = json.JSONDecoder().raw_decode(options)
                    assert found[: len(offered)] == offered, path.name
                    assert all(map(is_repo_id, found[len(offered) :])), path.name


def test_the_list_needs_no_torch():
    code = "import sys, moe_colab.planner.catalogue as m; m.models(); print('torch' in sys.modules)"
    assert python(code).strip() == "False"


def test_where_we_are(monkeypatch):
    for name in ("KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    assert folders.environment() == "local"
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    assert folders.environment() == "colab"
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert folders.environment() == "kaggle"
