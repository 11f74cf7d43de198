"""The store on disk: its layout is what safetensors reads, and not one altered byte goes unseen."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import zlib
from pathlib import Path

import pytest
import torch
from conftest import alter
from families import small_mixtral
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import moe_colab as mc
from moe_colab.checkpoint.reader import Checkpoint
from moe_colab.checkpoint.tensors import DTYPE_NAMES, as_bytes, read_tensor
from moe_colab.quantization.jobs import make_blob
from moe_colab.quantization.pack import pack
from moe_colab.quantization.recipe import Recipe
from moe_colab.store import BlobLayout, Manifest, Store, StoreWriter, is_store
from moe_colab.store.blobs import BLOB_ALIGNMENT, DTYPE_BYTES, FIELD_ALIGNMENT
from moe_colab.store.manifest import FORMAT, NAME
from moe_colab.store.safetensors import aligned_first, read_header
from moe_colab.store.writer import JOURNAL

EXPERTS = 12  # 10 sorts before 2 as text
SHAPES = {"gate_up_proj": (6, 5), "down_proj": (5, 3)}  # 120 and 60 bytes: holes between and after


def plain_layout(shapes: dict, dtype: str) -> BlobLayout:
    return Recipe().layout(0, shapes, dtype, transposed=False)


LAYOUT = plain_layout(SHAPES, "F32")
DENSE = "dense.safetensors"
FILES = [NAME, DENSE, "config.json", "experts-00000.safetensors", "experts-00001.safetensors"]


def expert_tensors(layer: int, expert: int) -> dict[str, torch.Tensor]:
    random_numbers = torch.Generator().manual_seed(100 * layer + expert)
    return {name: torch.randn(shape, generator=random_numbers) for name, shape in SHAPES.items()}


def dense_tensors() -> dict[str, torch.Tensor]:
    return {
        "b.odd": torch.arange(7, dtype=torch.float32),
        "a.weight": torch.arange(48, dtype=torch.bfloat16).view(6, 8),
        "c.weight": torch.arange(32, dtype=torch.float32).view(4, 8),
        "d.count": torch.tensor(3),
    }


def write_store(folder: Path, experts_in_order: bool = True, finish: bool = True) -> Path:
    """A store of two layers whose experts are all different, written in any order."""
    writer = StoreWriter(folder, {"fingerprint": "f", "dtype": "F32"})
    for layer in range(2):
        writer.add_layer(f"model.layers.{layer}.mlp.experts", EXPERTS, LAYOUT)
    jobs = [(layer, expert) for layer in range(2) for expert in range(EXPERTS)]
    if not experts_in_order:
        random.Random(0).shuffle(jobs)
    for layer, expert in jobs:
        blob = make_blob(expert_tensors(layer, expert), LAYOUT)[0]
        entry = writer.layers[layer]
        writer.write(entry.file, entry.part(expert), blob)
    save_file(dense_tensors(), folder / "source.safetensors")
    entries = aligned_first(read_header(folder / "source.safetensors").values())
    writer.add_file(DENSE, [(e.name, e.dtype, e.shape, e.nbytes) for e in entries])
    for entry in entries:
        writer.write(DENSE, entry.name, as_bytes(read_tensor(entry)))
    (folder / "source.safetensors").unlink()
    writer.write_file("config.json", [b'{"model_type": "mixtral"}\n'])
    if finish:
        source = {"id": "made here", "revision": None, "fingerprint": "f"}
        writer.finish(source, "mixtral", "F32", DENSE, ["config.json"])
    writer.close()
    return folder


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    return write_store(tmp_path_factory.mktemp("whole") / "store")


@pytest.fixture
def store(whole, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "store"))


# ---------------------------------------------------------------------- layout
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=4), st.lists(st.integers(1, 70), min_size=1, max_size=3)
    ).filter(bool),
    st.sampled_from(sorted(DTYPE_BYTES)),
)
def test_fields_are_aligned_apart_and_in_order_and_blobs_are_whole_pages(shapes, dtype):
    layout = plain_layout(shapes, dtype)
    assert [matrix.name for matrix in layout.matrices] == list(shapes)
    end = 0
    for matrix in layout.matrices:
        (field,) = matrix.fields
        assert field.offset % FIELD_ALIGNMENT == 0
        assert end <= field.offset < end + FIELD_ALIGNMENT
        assert field.shape == matrix.shape == tuple(shapes[matrix.name])
        end = field.offset + field.nbytes
    assert layout.nbytes % BLOB_ALIGNMENT == 0
    assert end <= layout.nbytes < end + BLOB_ALIGNMENT + FIELD_ALIGNMENT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_blob_holds_each_field_at_its_offset_and_zeros_between(dtype):
    layout = plain_layout(SHAPES, DTYPE_NAMES[dtype])
    tensors = expert_tensors(0, 0)
    blob = torch.frombuffer(bytearray(make_blob(tensors, layout)[0]), dtype=torch.uint8)
    for matrix in layout.matrices:
        (field,) = matrix.fields
        raw = blob[field.offset : field.offset + field.nbytes]
        assert torch.equal(raw.view(dtype).view(field.shape), tensors[matrix.name].to(dtype))
        raw.zero_()
    assert blob.count_nonzero() == 0


# ---------------------------------------------------------------------- what safetensors reads
@pytest.mark.parametrize("layer", [0, 1])
def test_the_safetensors_library_reads_every_expert(whole, layer):
    entry = Manifest.load(whole).layers[layer]
    with safe_open(whole / entry.file, framework="pt") as file:
        assert set(file.keys()) == {f"expert.{e}" for e in range(EXPERTS)}
        for expert in range(EXPERTS):
            blob = make_blob(expert_tensors(layer, expert), LAYOUT)[0]
            assert bytes(file.get_tensor(f"expert.{expert}").numpy()) == bytes(blob)


@pytest.mark.parametrize("layer", [0, 1])
def test_experts_lie_in_numeric_order_each_on_a_page(whole, layer):
    entry = Manifest.load(whole).layers[layer]
    tensors = read_header(whole / entry.file)
    assert list(tensors) == [f"expert.{e}" for e in range(EXPERTS)]
    for expert in range(EXPERTS):
        assert tensors[f"expert.{expert}"].start == entry.offset(expert)
        assert entry.offset(expert) % BLOB_ALIGNMENT == 0
    assert tensors[f"expert.{EXPERTS - 1}"].end == (whole / entry.file).stat().st_size


def test_the_order_of_writing_leaves_no_trace(whole, tmp_path):
    shuffled = write_store(tmp_path / "store", experts_in_order=False)
    assert all((shuffled / name).read_bytes() == (whole / name).read_bytes() for name in FILES)


def test_dense_tensors_are_read_equal_and_lie_on_64_bytes(whole):
    loaded, expected = load_file(whole / DENSE), dense_tensors()
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    for entry in read_header(whole / DENSE).values():
        if (entry.end - entry.start) % 64 == 0:
            assert entry.start % 64 == 0, entry.name


def test_the_dense_file_of_a_packed_model_lies_on_64_bytes(mixtral):
    entries = read_header(mixtral / DENSE).values()
    assert len(entries) > 10
    assert all(entry.start % 64 == 0 for entry in entries)


# ---------------------------------------------------------------------- the manifest
def test_a_store_is_these_files_and_no_other(whole):
    assert sorted(path.name for path in whole.iterdir()) == sorted(FILES)


def test_a_manifest_is_read_as_it_was_written(whole):
    manifest = Manifest.load(whole)
    assert manifest.dump().encode() == (whole / NAME).read_bytes()
    assert manifest.family == "mixtral"
    assert manifest.dtype == "F32"
    assert manifest.source == {"id": "made here", "revision": None, "fingerprint": "f"}
    assert [layer.module for layer in manifest.layers] == [
        "model.layers.0.mlp.experts",
        "model.layers.1.mlp.experts",
    ]
    assert all(layer.layout == LAYOUT for layer in manifest.layers)
    assert manifest.layers[0].parameters() == 6 * 5 + 5 * 3
    assert manifest.expert_bytes() == 2 * EXPERTS * LAYOUT.nbytes


def test_its_digests_are_those_of_the_bytes(whole):
    manifest = Manifest.load(whole)
    for entry in (manifest.dense, *manifest.files):
        data = (whole / entry.name).read_bytes()
        assert (entry.nbytes, entry.crc32) == (len(data), zlib.crc32(data))
        assert entry.sha256 == hashlib.sha256(data).hexdigest()
    for layer in manifest.layers:
        data = (whole / layer.file).read_bytes()
        header = data[: layer.data_offset]
        assert layer.header_sha256 == hashlib.sha256(header).hexdigest()
        for expert in range(layer.experts):
            blob = data[layer.offset(expert) : layer.offset(expert) + LAYOUT.nbytes]
            assert layer.crc32[expert] == zlib.crc32(blob)
            assert layer.sha256[expert] == hashlib.sha256(blob).hexdigest()


def test_verify_says_what_it_read(whole):
    report = mc.verify(whole)
    size = sum(path.stat().st_size for path in whole.iterdir())
    assert report.as_dict() == {
        "store": str(whole),
        "files": len(FILES),
        "experts": 2 * EXPERTS,
        "nbytes": size,
    }


def test_opening_gives_every_expert_a_home_on_disk(whole):
    store = Store(whole)
    for layer, homes in enumerate(store.homes):
        for expert, home in enumerate(homes):
            buffer = memoryview(bytearray(home.nbytes))
            assert sum(home.fill(buffer)) == home.nbytes == LAYOUT.nbytes
            assert buffer == make_blob(expert_tensors(layer, expert), LAYOUT)[0]
            assert home.tier == "disk"


# ---------------------------------------------------------------------- altered bytes
@pytest.mark.parametrize("name", FILES)
def test_verify_finds_any_altered_byte(store, name):
    path = store / name
    size = path.stat().st_size
    chance = random.Random(name)
    positions = {0, 1, 7, 8, size - 1, *(chance.randrange(size) for _ in range(120))}
    if name.startswith("experts"):  # the first pages: header, its padding, fields, holes, padding
        positions |= {
            4000,
            4095,
            4096,
            4096 + 119,
            4096 + 120,
            4096 + 255,
            4096 + 316,
            2 * 4096 - 1,
        }
    for position in sorted(positions):
        mask = chance.randrange(1, 256)
        alter(path, position, mask)
        with pytest.raises(mc.MoEColabError):
            mc.verify(store)
        alter(path, position, mask)
    mc.verify(store)


def test_verify_names_what_is_damaged(store):
    entry = Manifest.load(store).layers[1]
    alter(store / entry.file, entry.offset(10), 1)
    with pytest.raises(mc.MoEColabError, match=r"expert 10 in experts-00001\.safetensors"):
        mc.verify(store)


def test_verify_names_the_first_five_of_many(store):
    entry = Manifest.load(store).layers[0]
    for expert in range(7):
        alter(store / entry.file, entry.offset(expert), 1)
    with pytest.raises(mc.MoEColabError, match=r"expert 4 in .* and 2 more"):
        mc.verify(store)


def test_a_manifest_with_other_line_ends_is_altered(store):
    data = (store / NAME).read_bytes()
    (store / NAME).write_bytes(data.replace(b"\n", b"\r", 1))
    with pytest.raises(mc.MoEColabError, match="altered"):
        Store(store)


def test_a_manifest_that_says_something_else_is_altered(store):
    body = json.loads((store / NAME).read_text())
    body["family"] = "olmoe"
    (store / NAME).write_text(json.dumps(body, indent=1) + "\n")
    with pytest.raises(mc.MoEColabError, match="altered"):
        Store(store)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "{}", '{"digest": "x"}', "\xff", "1"])
def test_a_manifest_that_is_none_is_refused(store, text):
    (store / NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(mc.MoEColabError, match=NAME):
        Store(store)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("check", [Store, mc.verify], ids=["open", "verify"])
@pytest.mark.parametrize("damage", ["missing", "empty", "shorter", "longer", "a folder"])
def test_files_of_another_size_are_refused(store, name, check, damage):
    path = store / name
    data = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"empty": b"", "shorter": data[:-1], "longer": data + b"\n"}[damage])
    with pytest.raises(mc.MoEColabError, match=name):
        check(store)


@pytest.mark.parametrize("name", [NAME, DENSE, "config.json"])
def test_opening_refuses_an_altered_file_that_is_read_as_a_whole(store, name):
    alter(store / name, (store / name).stat().st_size // 2, 0x20)
    with pytest.raises(mc.MoEColabError, match=name):
        Store(store)


@pytest.mark.parametrize("position", [3, 20, 4095])
def test_opening_refuses_an_altered_header(store, position):
    alter(store / "experts-00001.safetensors", position, 1)
    with pytest.raises(mc.MoEColabError, match=r"header of .*experts-00001\.safetensors"):
        Store(store)


def test_opening_leaves_experts_for_their_first_use(store):
    entry = Manifest.load(store).layers[0]
    alter(store / entry.file, entry.offset(3), 1)
    home = Store(store).homes[0][3]
    with pytest.raises(mc.MoEColabError, match="expert 3 of MoE layer 0"):
        list(home.fill(memoryview(bytearray(home.nbytes))))


# ---------------------------------------------------------------------- other stores
def test_a_store_of_a_newer_format_asks_for_an_upgrade(store):
    body = json.loads((store / NAME).read_text())
    body["format"] = FORMAT + 1
    (store / NAME).write_text(json.dumps(body))
    with pytest.raises(mc.MoEColabError, match="upgrade moe_colab"):
        Store(store)


def test_a_store_of_an_older_format_is_to_be_made_anew(store):
    body = json.loads((store / NAME).read_text())
    body["format"] = FORMAT - 1
    (store / NAME).write_text(json.dumps(body))
    for open_it in (Store, mc.inspect, mc.verify, mc.load):
        with pytest.raises(mc.MoEColabError, match=r"older moe_colab .*: make the store again"):
            open_it(store)


def test_an_unfinished_store_is_none_yet(tmp_path):
    folder = write_store(tmp_path / "store", finish=False)
    assert (folder / JOURNAL).exists()
    assert is_store(folder)
    for check in (Store, mc.verify, mc.load):
        with pytest.raises(mc.MoEColabError, match="unfinished"):
            check(folder)


def test_what_is_no_store_is_named(tmp_path):
    assert not is_store(tmp_path)
    with pytest.raises(mc.MoEColabError, match="not a finished store"):
        Store(tmp_path)
    with pytest.raises(mc.MoEColabError, match="not a folder"):
        mc.verify(tmp_path / "nowhere")


# ---------------------------------------------------------------------- an altered expert, spoken?
@pytest.fixture(scope="session")
def mixtral(tmp_path_factory) -> Path:
    """The store of a tiny Mixtral."""
    folder = tmp_path_factory.mktemp("mixtral")
    small_mixtral().save_pretrained(folder / "checkpoint")
    pack(Checkpoint(folder / "checkpoint"), folder / "store", torch.float32, progress=False)
    return folder / "store"


class Ear:
    """A streamer that keeps every token it is given."""

    def __init__(self):
        self.heard: list[int] = []

    def put(self, tokens):
        self.heard += tokens.reshape(-1).tolist()

    def end(self):
        raise AssertionError("a generation that failed has no end")


def experts_of(model, token_ids: torch.Tensor, layer: int) -> list[set[int]]:
    """Which experts each token of a text uses in one layer."""
    seen = []
    gate = model.model.layers[layer].mlp.gate
    hook = gate.register_forward_hook(lambda _, __, output: seen.append(output[2]))
    model(token_ids)
    hook.remove()
    return [set(row) for row in seen[0].tolist()]


def damaged(mixtral: Path, tmp_path: Path, layer: int, expert: int) -> Path:
    store = Path(shutil.copytree(mixtral, tmp_path / "damaged"))
    entry = Manifest.load(store).layers[layer]
    alter(store / entry.file, entry.offset(expert) + 1000, 0x80)
    return store


@pytest.mark.parametrize("layer", [0, 1])
def test_an_altered_expert_is_refused_and_nothing_is_said(mixtral, tmp_path, layer):
    prompt = torch.arange(20)[None]
    intact, _ = mc.load(mixtral, slots=2)
    expert = min(experts_of(intact, prompt, layer)[0])
    model, _ = mc.load(damaged(mixtral, tmp_path, layer, expert), slots=2)
    for _ in range(2):  # asking again does not help
        ear = Ear()
        with pytest.raises(mc.MoEColabError, match=f"expert {expert} of MoE layer {layer} in"):
            model.generate(prompt, max_new_tokens=4, streamer=ear)
        assert ear.heard == prompt[0].tolist()


def test_an_expert_altered_for_a_later_token_stops_the_text_there(mixtral, tmp_path):
    prompt = torch.tensor([[5]])
    intact, _ = mc.load(mixtral, slots=2)
    text = intact.generate(prompt, max_new_tokens=24, do_sample=False, eos_token_id=None)
    used = experts_of(intact, text, layer=1)
    late = next(i for i, now in enumerate(used) if i > 2 and now - set().union(*used[:i]))
    expert = min(used[late] - set().union(*used[:late]))
    model, _ = mc.load(damaged(mixtral, tmp_path, 1, expert), slots=2)
    ear = Ear()
    with pytest.raises(mc.MoEColabError, match=f"expert {expert} of MoE layer 1 in"):
        model.generate(prompt, max_new_tokens=24, do_sample=False, eos_token_id=None, streamer=ear)
    assert ear.heard == text[0, : late + 1].tolist()


def test_other_experts_still_work_beside_an_altered_one(mixtral, tmp_path):
    model, _ = mc.load(damaged(mixtral, tmp_path, layer=0, expert=3), slots=2)
    intact, _ = mc.load(mixtral, slots=2)
    hidden, weights = torch.randn(6, 64), torch.rand(6, 2)

    def first_layer(model, experts: list[int]) -> torch.Tensor:
        return model.model.layers[0].mlp.experts(hidden, torch.tensor([experts] * 6), weights)

    for experts in ([0, 1], [3, 4], [2, 5], [3, 0], [6, 7]):
        if 3 in experts:
            with pytest.raises(mc.MoEColabError, match="expert 3 of MoE layer 0"):
                first_layer(model, experts)
        else:
            assert torch.equal(first_layer(model, experts), first_layer(intact, experts))


def test_a_repaired_expert_is_accepted(mixtral, tmp_path):
    store = damaged(mixtral, tmp_path, layer=1, expert=0)
    model, _ = mc.load(store, slots=2)
    intact, _ = mc.load(mixtral, slots=2)
    every = torch.arange(100)[None]
    with pytest.raises(mc.MoEColabError, match="damaged"):
        model(every)
    entry = Manifest.load(store).layers[1]
    alter(store / entry.file, entry.offset(0) + 1000, 0x80)
    assert torch.equal(model(every).logits, intact(every).logits)
