"""A checkpoint becomes a store, exactly and once: changed, killed, raced for, short of disk."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import make_checkpoint as make_family
from families import small_mixtral
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import moe_colab as mc
from moe_colab.checkpoint.reader import Checkpoint
from moe_colab.checkpoint.tensors import TORCH_DTYPES
from moe_colab.quantization import pack as pack_module
from moe_colab.quantization.pack import cached_store, pack
from moe_colab.store import Manifest, Store, StoreWriter, verify, writer
from moe_colab.store.manifest import NAME
from moe_colab.store.writer import JOURNAL

pytestmark = pytest.mark.colab
LAYERS, EXPERTS = 2, 8
TOTAL = LAYERS * EXPERTS


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Path:
    """The same tiny Mixtral in one file ("one") and in shards ("shards")."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model = small_mixtral()
    model.save_pretrained(folder / "one")
    model.save_pretrained(folder / "shards", max_shard_size="150KB")
    assert len(list((folder / "shards").glob("*.safetensors"))) > 3
    return folder


@pytest.fixture
def checkpoint(checkpoints, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(checkpoints / "one", tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def uninterrupted(checkpoints, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "store"
    pack(Checkpoint(checkpoints / "one"), folder, torch.float32, progress=False)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MOE_COLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_experts(store: Path) -> list[list[dict[str, torch.Tensor]]]:
    """Every expert's matrices, as a store's homes give them."""
    opened = Store(store)
    out = []
    for entry, homes in zip(opened.manifest.layers, opened.homes, strict=True):
        experts = []
        for home in homes:
            blob = bytearray(home.nbytes)
            list(home.fill(memoryview(blob)))
            fields = {matrix.name: matrix.fields[0] for matrix in entry.layout.matrices}
            experts.append(
                {
                    name: torch.frombuffer(blob, dtype=torch.uint8)[f.offset :][: f.nbytes]
                    .view(TORCH_DTYPES[f.dtype])
                    .view(f.shape)
                    for name, f in fields.items()
                }
            )
        out.append(experts)
    return out


@pytest.fixture
def packings(monkeypatch) -> list[Path]:
    """The folders that were packed."""
    done = []
    real = pack_module.pack
    monkeypatch.setattr(
        pack_module, "pack", lambda c, f, *rest: (done.append(f), real(c, f, *rest))[1]
    )
    return done


@pytest.fixture
def written(monkeypatch) -> list[tuple[int, int]]:
    """The (layer, expert) pairs that were written."""
    done = []
    real = StoreWriter.write

    def write(self, file, part, data, **remarks):
        if part.startswith("expert."):
            done.append((int(file[8:13]), int(part[7:])))
        real(self, file, part, data, **remarks)

    monkeypatch.setattr(StoreWriter, "write", write)
    return done


# ---------------------------------------------------------------------- exactness
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["one", "shards"])
def test_packed_experts_are_the_models_own_parameters(checkpoints, tmp_path, kind, dtype):
    store = tmp_path / "store"
    pack(Checkpoint(checkpoints / kind), store, dtype, progress=False)
    model = AutoModelForCausalLM.from_pretrained(checkpoints / kind, dtype=torch.float32)
    for layer, experts in enumerate(read_experts(store)):
        module = model.model.layers[layer].mlp.experts
        for expert, matrices in enumerate(experts):
            for name in ("gate_up_proj", "down_proj"):
                assert torch.equal(matrices[name], getattr(module, name)[expert].to(dtype))
    mc.verify(store)


@pytest.mark.parametrize("kind", ["one", "shards"])
def test_everything_but_the_experts_is_kept_as_it_was(checkpoints, tmp_path, kind):
    store = tmp_path / "store"
    pack(Checkpoint(checkpoints / kind), store, torch.bfloat16, progress=False)
    source = {}
    for path in (checkpoints / kind).glob("*.safetensors"):
        source.update(load_file(path))
    dense = load_file(store / "dense.safetensors")
    assert dense.keys() == {name for name in source if ".experts." not in name}
    assert all(torch.equal(tensor, source[name]) for name, tensor in dense.items())
    assert all(dense[name].dtype == source[name].dtype for name in dense)
    for name in ("config.json", "generation_config.json"):
        assert (store / name).read_bytes() == (checkpoints / kind / name).read_bytes()


def test_one_file_and_shards_give_the_same_experts(checkpoints, tmp_path, uninterrupted):
    pack(Checkpoint(checkpoints / "shards"), tmp_path / "store", torch.float32, progress=False)
    for layer in range(LAYERS):
        name = f"experts-{layer:05}.safetensors"
        assert (tmp_path / "store" / name).read_bytes() == (uninterrupted / name).read_bytes()


def test_a_checkpoint_is_left_as_it_was(checkpoint):
    before = contents(checkpoint)
    cached_store(Checkpoint(checkpoint), None, progress=False)
    assert contents(checkpoint) == before


# ---------------------------------------------------------------------- once
def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_a_store_is_packed_once_and_used_again(checkpoint, own_cache, packings):
    store = cached_store(Checkpoint(checkpoint), None, progress=False).folder
    before = stamps(store)
    assert store.parent == own_cache
    assert cached_store(Checkpoint(checkpoint), None, progress=False).folder == store
    mc.load(checkpoint, progress=False)
    assert packings == [store]
    assert stamps(store) == before


def test_each_dtype_and_each_folder_has_a_store_of_its_own(checkpoint, tmp_path, packings):
    other = shutil.copytree(checkpoint, tmp_path / "elsewhere" / "checkpoint")
    stores = [
        cached_store(Checkpoint(source), dtype, progress=False).folder
        for source in (checkpoint, other)
        for dtype in (None, torch.float32, torch.float16)
    ]
    assert stores[0] == stores[1] and stores[3] == stores[4]  # float32 is its own dtype
    assert len(set(stores)) == len(packings) == 4


def test_a_changed_weight_file_is_packed_anew(checkpoint, packings):
    store = cached_store(Checkpoint(checkpoint), None, progress=False).folder
    weights = load_file(checkpoint / "model.safetensors")
    changed = next(name for name in weights if ".experts.5." in name)
    weights[changed] += 1
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    model, _ = mc.load(checkpoint, slots=2, progress=False)
    assert packings == [store, store]
    plain = AutoModelForCausalLM.from_pretrained(checkpoint, experts_implementation="eager")
    ids = torch.arange(60)[None]
    assert torch.equal(model(ids).logits, plain(ids).logits)
    mc.verify(store)


@pytest.mark.parametrize("file", [NAME, "config.json of the checkpoint"])
def test_a_damaged_manifest_or_a_changed_configuration_is_packed_anew(checkpoint, packings, file):
    store = cached_store(Checkpoint(checkpoint), None, progress=False).folder
    path = store / NAME if file == NAME else checkpoint / "config.json"
    path.write_text(path.read_text() + " ")
    assert cached_store(Checkpoint(checkpoint), None, progress=False).folder == store
    assert packings == [store, store]
    mc.verify(store)


def test_a_store_of_an_older_format_is_packed_anew(checkpoint, packings):
    folder = cached_store(Checkpoint(checkpoint), progress=False).folder
    body = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps({**body, "format": 1}))
    cached_store(Checkpoint(checkpoint), progress=False)
    assert len(packings) == 2
    verify(folder)


def test_changed_side_files_are_taken_over_without_packing_the_experts(checkpoint, packings):
    (checkpoint / "chat_template.jinja").write_text("old")
    (checkpoint / "notes.txt").write_text("gone tomorrow")
    store = cached_store(Checkpoint(checkpoint), None, progress=False).folder
    before = stamps(store)
    (checkpoint / "chat_template.jinja").write_text("new")
    (checkpoint / "notes.txt").unlink()
    (checkpoint / "added.json").write_text("{}")
    for _ in range(2):
        assert cached_store(Checkpoint(checkpoint), None, progress=False).folder == store
        mc.verify(store)
    assert packings == [store]
    assert (store / "chat_template.jinja").read_text() == "new"
    assert (store / "added.json").read_text() == "{}"
    assert not (store / "notes.txt").exists()
    after = stamps(store)
    assert {name for name in before if before[name] == after.get(name)} == {
        "dense.safetensors",
        "config.json",
        "generation_config.json",
        "experts-00000.safetensors",
        "experts-00001.safetensors",
    }


# ---------------------------------------------------------------------- killed
def die(*_args, **_kwargs) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before_call(owner, name: str, n: int) -> Callable[[], None]:
    """Die when `owner.name` is called for the n-th time, counted from 0."""

    def arm() -> None:
        real, calls = getattr(owner, name), []

        def counted(*args, **kwargs):
            if len(calls) == n:
                die()
            calls.append(1)
            return real(*args, **kwargs)

        setattr(owner, name, counted)

    return arm


def amid_the_bytes_of_part(n: int) -> Callable[[], None]:
    def arm() -> None:
        real, calls = writer.write_all, []

        def half(out, data):
            if len(calls) == n:
                out.write(data[: len(data) // 2])
                die()
            calls.append(1)
            real(out, data)

        writer.write_all = half

    return arm


def amid_a_line_of_the_journal(n: int) -> Callable[[], None]:
    def arm() -> None:
        real, calls = StoreWriter._note, []

        def torn(self, key, **record):
            if len(calls) == n:
                self.journal.write("\n" + json.dumps({"key": key, **record})[:25])
                self.journal.flush()
                die()
            calls.append(1)
            real(self, key, **record)

        StoreWriter._note = torn

    return arm


def at_the_naming_of(name: str) -> Callable[[], None]:
    def arm() -> None:
        real = os.replace
        os.replace = lambda old, new: die() if Path(new).name == name else real(old, new)

    return arm


MOMENTS = {  # when it dies: how, and how many experts are whole by then
    "before the first layer has room": (before_call(StoreWriter, "add_layer", 0), 0),
    "before the second layer has room": (before_call(StoreWriter, "add_layer", 1), 0),
    "before the first expert": (before_call(StoreWriter, "write", 0), 0),
    "amid the bytes of the first expert": (amid_the_bytes_of_part(0), 0),
    "between two experts": (before_call(StoreWriter, "write", 3), 3),
    "amid a line of the journal": (amid_a_line_of_the_journal(5), 5),
    "between the layers": (before_call(StoreWriter, "write", EXPERTS), EXPERTS),
    "amid the bytes of the last expert": (amid_the_bytes_of_part(TOTAL - 1), TOTAL - 1),
    "before the dense file has room": (before_call(StoreWriter, "add_file", LAYERS), 0),
    "before the dense file": (before_call(StoreWriter, "write", TOTAL), TOTAL),
    "amid the bytes of a dense tensor": (amid_the_bytes_of_part(TOTAL + 2), TOTAL),
    "amid the dense file": (before_call(StoreWriter, "write", TOTAL + 5), TOTAL),
    "before the configuration": (before_call(StoreWriter, "write_file", 0), TOTAL),
    "before the manifest has its name": (at_the_naming_of(NAME), TOTAL),
}


def pack_and_die(checkpoint: Path, folder: Path, moment: str) -> None:
    arm, _ = MOMENTS[moment]
    arm()
    pack(Checkpoint(checkpoint), folder, torch.float32, progress=False)


def unlink_and_die(checkpoint: Path, folder: Path, dtype: torch.dtype, n: int) -> None:
    before_call(Path, "unlink", n)()
    pack(Checkpoint(checkpoint), folder, dtype, progress=False)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_packing_is_no_store_and_goes_on(
    moment, run, checkpoints, uninterrupted, tmp_path, written
):
    folder, (_, whole) = tmp_path / "store", MOMENTS[moment]
    assert run(pack_and_die, checkpoints / "one", folder, moment) == -signal.SIGKILL
    for check in (Store, mc.verify, mc.load):
        with pytest.raises(mc.MoEColabError, match="unfinished"):
            check(folder)
    pack(Checkpoint(checkpoints / "one"), folder, torch.float32, progress=False)
    assert written == [divmod(i, EXPERTS) for i in range(whole, TOTAL)]
    assert contents(folder) == contents(uninterrupted)


def test_a_packing_that_is_killed_again_and_again_ends(run, checkpoints, uninterrupted, tmp_path):
    folder = tmp_path / "store"
    for moment in ("between two experts", "amid the bytes of the first expert") * 2:
        code = run(pack_and_die, checkpoints / "one", folder, moment)
        assert code == -signal.SIGKILL
    pack(Checkpoint(checkpoints / "one"), folder, torch.float32, progress=False)
    assert contents(folder) == contents(uninterrupted)


def test_killed_after_the_manifest_has_its_name_it_is_a_store(
    run, checkpoints, uninterrupted, tmp_path
):
    folder = tmp_path / "store"
    assert run(unlink_and_die, checkpoints / "one", folder, torch.float32, 1) == -signal.SIGKILL
    assert (folder / JOURNAL).exists()  # all that was left to do was to remove it
    mc.verify(folder)
    assert Manifest.load(folder) == Manifest.load(uninterrupted)


def test_an_expert_that_was_altered_after_the_kill_is_written_again(
    run, checkpoints, uninterrupted, tmp_path, written
):
    folder = tmp_path / "store"
    run(pack_and_die, checkpoints / "one", folder, "before the dense file")
    with open(folder / "experts-00001.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    pack(Checkpoint(checkpoints / "one"), folder, torch.float32, progress=False)
    assert written == [(1, EXPERTS - 1)]
    assert contents(folder) == contents(uninterrupted)


def test_what_was_left_of_another_checkpoint_is_not_gone_on_with(
    run, checkpoint, checkpoints, tmp_path, written
):
    folder = tmp_path / "store"
    run(pack_and_die, checkpoints / "one", folder, "before the dense file")
    manifest = pack(Checkpoint(checkpoint), folder, torch.float16, progress=False)
    assert len(written) == TOTAL
    assert manifest.dtype == "F16"
    mc.verify(folder)


@pytest.mark.parametrize("n", range(6))  # of six files
def test_killed_while_an_old_store_is_cleared_it_is_the_old_one_or_none(
    n, run, checkpoints, uninterrupted, tmp_path, written
):
    folder = Path(shutil.copytree(uninterrupted, tmp_path / "store"))
    in_use = Store(folder)  # by another process, say
    assert run(unlink_and_die, checkpoints / "one", folder, torch.float16, n) == -signal.SIGKILL
    if n == 0:  # nothing is gone yet
        mc.verify(folder)
    else:
        with pytest.raises(mc.MoEColabError, match="unfinished"):
            Store(folder)
    pack(Checkpoint(checkpoints / "one"), folder, torch.float16, progress=False)
    assert len(written) == TOTAL
    assert sorted(contents(folder)) == sorted(contents(uninterrupted))
    mc.verify(folder)
    for home in sum(in_use.homes, []):  # it still reads what it opened, or would raise
        assert sum(home.fill(memoryview(bytearray(home.nbytes)))) == home.nbytes


# ---------------------------------------------------------------------- two at once
def pack_slowly(checkpoint: Path, cache: Path, log: Path, start) -> None:
    os.environ["MOE_COLAB_CACHE"] = str(cache)
    real = StoreWriter.finish

    def finish(self, *args):
        log.write_text(log.read_text() + "packed\n")
        start.wait(10)  # the other one has been waiting for the lock since it found it taken
        return real(self, *args)

    def write(_text):
        start.wait(10)

    StoreWriter.finish = finish
    pack_module.tqdm.write = write
    cached_store(Checkpoint(checkpoint), None, progress=True)


def test_of_two_processes_one_packs_and_the_other_waits(processes, checkpoint, own_cache, tmp_path):
    log = tmp_path / "log"
    log.write_text("")
    barrier = processes.Barrier(2)
    both = [
        processes.Process(target=pack_slowly, args=(checkpoint, own_cache, log, barrier))
        for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert log.read_text() == "packed\n"
    (store,) = (path for path in own_cache.iterdir() if path.is_dir())
    mc.verify(store)


# ---------------------------------------------------------------------- no room, no right
def test_too_small_a_disk_is_met_before_anything_is_written(checkpoint, own_cache, monkeypatch):
    monkeypatch.setattr(pack_module, "free_disk", lambda folder: 10_000_000)
    with pytest.raises(mc.MoEColabError, match=r"needs .* MB of disk .* 10\.0 MB are free"):
        mc.load(checkpoint, progress=False)
    assert [path for path in own_cache.rglob("*") if path.suffix != ".lock"] == []


@pytest.mark.parametrize("killed", [False, True])
def test_the_need_is_counted_to_the_byte_and_what_was_written_counts_as_free(
    killed, run, checkpoints, uninterrupted, tmp_path, monkeypatch
):
    folder, checkpoint, taken = tmp_path / "store", Checkpoint(checkpoints / "one"), 0
    if killed:
        run(pack_and_die, checkpoints / "one", folder, "before the dense file")
        taken = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
        assert taken > TOTAL * 73_728
    dense = sum(tensor.nbytes for tensor in load_file(uninterrupted / "dense.safetensors").values())
    need = dense + LAYERS * (1 << 20) + pack_module.DISK_HEADROOM  # a layer's experts have 0.6 MB
    monkeypatch.setattr(pack_module, "free_disk", lambda folder: need - taken - 1)
    with pytest.raises(mc.MoEColabError, match="make room"):
        pack(checkpoint, folder, torch.float32, progress=False)
    monkeypatch.setattr(pack_module, "free_disk", lambda folder: need - taken)
    pack(checkpoint, folder, torch.float32, progress=False)
    assert contents(folder) == contents(uninterrupted)


def full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("owner", "name", "whole"),
    [
        (writer, "allocate", 0),
        (writer, "write_all", 0),
        (os, "fsync", TOTAL),
        (os, "replace", TOTAL),
    ],
)
def test_a_disk_that_fills_up_is_one_error_and_packing_goes_on_later(
    owner, name, whole, checkpoints, uninterrupted, tmp_path, written, monkeypatch
):
    folder, checkpoint = tmp_path / "store", Checkpoint(checkpoints / "one")
    with monkeypatch.context() as patch, pytest.raises(mc.MoEColabError, match=r"disk .* is full"):
        patch.setattr(owner, name, full)
        pack(checkpoint, folder, torch.float32, progress=False)
    written.clear()
    pack(checkpoint, folder, torch.float32, progress=False)
    assert written == [divmod(i, EXPERTS) for i in range(whole, TOTAL)]
    assert contents(folder) == contents(uninterrupted)


def test_a_full_disk_midway_keeps_what_was_written(
    checkpoints, uninterrupted, tmp_path, written, monkeypatch
):
    folder, checkpoint = tmp_path / "store", Checkpoint(checkpoints / "one")
    real = writer.write_all
    with monkeypatch.context() as patch, pytest.raises(mc.MoEColabError, match=r"disk .* is full"):
        patch.setattr(writer, "write_all", lambda *a: full() if len(written) > 6 else real(*a))
        pack(checkpoint, folder, torch.float32, progress=False)
    with pytest.raises(mc.MoEColabError, match="unfinished"):
        Store(folder)
    written.clear()
    pack(checkpoint, folder, torch.float32, progress=False)
    assert written == [divmod(i, EXPERTS) for i in range(6, TOTAL)]
    assert contents(folder) == contents(uninterrupted)


def test_a_journal_that_does_not_fit_is_the_same_error(checkpoints, tmp_path, monkeypatch):
    real = StoreWriter.write

    def write(self, file, part, data, **remarks):
        if part == "expert.2":
            self.journal.close()
            self.journal = open("/dev/full", "a")
        real(self, file, part, data, **remarks)

    monkeypatch.setattr(StoreWriter, "write", write)
    with pytest.raises(mc.MoEColabError, match=r"disk .* is full"):
        pack(Checkpoint(checkpoints / "one"), tmp_path / "store", torch.float32, progress=False)


@pytest.mark.parametrize(
    "found",
    ["README.md", "photos/", "model.safetensors", "journal.jsonl", "config.json", ".hidden"],
)
def test_a_folder_that_holds_something_else_is_never_written_to(checkpoints, tmp_path, found):
    folder = tmp_path / "mine"
    folder.mkdir()
    if found.endswith("/"):
        (folder / found).mkdir()
        (folder / found / "picture.jpg").write_text("precious")
    else:
        (folder / found).write_text("precious")
    with pytest.raises(mc.MoEColabError, match="holds something else"):
        pack(Checkpoint(checkpoints / "one"), folder, torch.float32, progress=False)
    (path,) = (path for path in folder.rglob("*") if path.is_file())
    assert path.read_text() == "precious"


@pytest.mark.parametrize("found", ["thesis.docx", "photos/"])
def test_an_old_store_beside_which_something_else_lies_is_not_cleared(
    checkpoints, uninterrupted, tmp_path, found
):
    folder = Path(shutil.copytree(uninterrupted, tmp_path / "store"))
    (folder / found).mkdir() if found.endswith("/") else (folder / found).touch()
    with pytest.raises(mc.MoEColabError, match=found.rstrip("/")):
        pack(Checkpoint(checkpoints / "one"), folder, torch.float16, progress=False)
    assert (folder / found).exists()
    mc.verify(uninterrupted)
    assert Manifest.load(folder) == Manifest.load(uninterrupted)


@pytest.mark.parametrize("place", ["cache", "cache/deeper"])
def test_a_cache_folder_that_cannot_be_written_is_named(checkpoint, tmp_path, monkeypatch, place):
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("MOE_COLAB_CACHE", str(tmp_path / place))
    with pytest.raises(mc.MoEColabError, match="MOE_COLAB_CACHE") as error:
        mc.load(checkpoint, progress=False)
    assert str(tmp_path / place) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_target_that_is_a_file_is_named(checkpoints, tmp_path):
    (tmp_path / "store").write_text("precious")
    with pytest.raises(mc.MoEColabError, match="cannot write the store"):
        pack(Checkpoint(checkpoints / "one"), tmp_path / "store", torch.float32, progress=False)
    assert (tmp_path / "store").read_text() == "precious"


@pytest.mark.parametrize(
    "damage", ["dense.safetensors", "experts-00000.safetensors", "config.json"]
)
@pytest.mark.parametrize("how", ["missing", "short"])
def test_a_cached_store_that_was_damaged_is_made_again(checkpoint, damage, how):
    store = cached_store(Checkpoint(checkpoint), None, progress=False).folder
    path = store / damage
    whole = path.read_bytes()
    path.unlink()
    if how == "short":
        path.write_bytes(whole[:-1])
    assert cached_store(Checkpoint(checkpoint), None, progress=False).folder == store
    verify(store)
    assert path.read_bytes() == whole


def test_experts_of_layers_that_are_not_run_are_left_out(tmp_path):
    """Some checkpoints carry a layer more than the model runs, for predicting two tokens at
    once."""
    folder = make_family("glm4_moe", tmp_path / "more")
    tensors = load_file(folder / "model.safetensors")
    extra = {
        name.replace("layers.2.", "layers.3."): tensor.clone()
        for name, tensor in tensors.items()
        if "layers.2." in name and ".experts." in name
    }
    assert extra
    save_file({**tensors, **extra}, folder / "model.safetensors", metadata={"format": "pt"})
    store = cached_store(Checkpoint(folder), None, progress=False).folder
    assert not [name for name in load_file(store / "dense.safetensors") if ".experts." in name]
