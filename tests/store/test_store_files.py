"""Files that a store does not expect: others beside it, odd kinds of files, reads that bring
little, journals that took damage, and a second process."""

from __future__ import annotations

import errno
import fcntl
import importlib
import io
import json
import os
import shutil
import socket
import stat
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from families import make_checkpoint
from transformers import AutoTokenizer

import moe_colab as mc
from moe_colab import files
from moe_colab.checkpoint.reader import Checkpoint
from moe_colab.machine.folders import shipped_model
from moe_colab.quantization.pack import cached_store, pack
from moe_colab.store import Manifest, Store, StoreWriter
from moe_colab.store.journal import JOURNAL
from moe_colab.store.manifest import NAME, sealed
from moe_colab.store.update import update_files

NOBODY = 65534
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder, changes = tmp_path_factory.mktemp("checkpoint") / "mixtral", {"intermediate_size": 64}
    make_checkpoint("mixtral", folder, changes=changes)
    os.chmod(folder / "model.safetensors", 0o644)
    for name in TOKENIZER:
        shutil.copy(shipped_model() / name, folder)
    return folder


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "store"
    source = Checkpoint(checkpoint)
    pack(source, folder, source.dtype(), progress=False)
    return folder


@pytest.fixture
def store(whole, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(whole, tmp_path / "store"))


@pytest.fixture
def source(checkpoint, tmp_path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "mixtral"))


def refusal(call: Callable, *args, **kwargs) -> str:
    with pytest.raises(mc.MoEColabError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def load(path: Path):
    return mc.load(path, progress=False)


# ---------------------------------------------------------------------- files that are not listed
UNLISTED = (
    "added_tokens.json",
    "special_tokens_map.json",
    "generation_config.jsonld.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.bpe",
    "additional_chat_templates/default.jinja",
    "adapter_config.json",
    "model.safetensors",
    "pytorch_model.bin",
)


@pytest.mark.parametrize("name", UNLISTED)
@pytest.mark.parametrize("call", [load, mc.verify, mc.inspect])
def test_a_file_that_the_manifest_does_not_list_is_refused(store, name, call):
    (store / name).parent.mkdir(exist_ok=True)
    (store / name).write_text("{}")
    message = refusal(call, store)
    assert name in message and "delete it" in message


@pytest.mark.parametrize("name", ["README.md", ".gitattributes", "._config.json", "photo.jpg"])
def test_a_file_that_transformers_does_not_read_may_be_there(store, name):
    (store / name).write_text("{}")
    mc.verify(store)


def test_of_a_cached_store_such_a_file_is_removed(checkpoint):
    folder = cached_store(Checkpoint(checkpoint), progress=False).folder
    (folder / "added_tokens.json").write_text('{"music": 9}')
    assert cached_store(Checkpoint(checkpoint), progress=False).folder == folder
    assert not (folder / "added_tokens.json").exists()
    mc.verify(folder)


# ---------------------------------------------------------------------- folders of side files
def with_named_templates(folder: Path, *names: str) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    templates = {name: f"{name.upper()} {tokenizer.chat_template}" for name in names}
    tokenizer.chat_template = {"default": tokenizer.chat_template, **templates}
    tokenizer.save_pretrained(folder)
    return folder


def test_named_chat_templates_come_along_and_follow_their_checkpoint(source, tmp_path):
    for names in (["tool_use", "rag"], ["rag"], ["rag", "short"], []):
        shutil.rmtree(source / "additional_chat_templates", ignore_errors=True)
        shutil.copy(shipped_model() / "chat_template.jinja", source)
        with_named_templates(source, *names) if names else None
        plain = AutoTokenizer.from_pretrained(source).chat_template
        store = cached_store(Checkpoint(source), progress=False).folder
        found = AutoTokenizer.from_pretrained(store).chat_template
        assert found == plain and isinstance(plain, dict) == bool(names)
        mc.verify(store)
    assert not (store / "additional_chat_templates").exists()


def test_a_quantized_store_has_them_too_and_can_be_made_anew(source, tmp_path):
    with_named_templates(source, "tool_use")
    folder = tmp_path / "quantized"
    for _ in range(2):
        mc.quantize(source, folder, expert_bits=8, group_size=16, progress=False)
        mc.verify(folder)
        assert (folder / "additional_chat_templates" / "tool_use.jinja").is_file()
        shutil.move(folder / NAME, folder / "moved.json")  # no store any more
        (folder / "moved.json").unlink()
        (folder / JOURNAL).write_text("")
        StoreWriter(folder, {"another": 1}).close()
        assert sorted(path.name for path in folder.iterdir()) == [JOURNAL]
        (folder / JOURNAL).unlink()


OUTSIDE = (
    "../victim.txt",
    "../../victim.txt",
    "/victim.txt",
    "a/../../victim.txt",
    "a/b/c.json",
    "",
)


@pytest.mark.parametrize("name", [*OUTSIDE, "x\0.json", "\ud800.json", "."])
def test_a_manifest_that_names_a_file_outside_is_refused(store, name):
    body = json.loads((store / NAME).read_text())
    body.pop("digest")
    body["files"].append({"name": name, "nbytes": 4, "crc32": 0, "sha256": ""})
    (store / NAME).write_text(sealed(body))
    assert "is not the name of a file" in refusal(Store, store) or "surrogates" in refusal(
        Store, store
    )
    refusal(update_files, store, {})


def test_nothing_outside_is_written_or_deleted_through_a_link(source, tmp_path):
    """A folder of the store is a symbolic link to another folder."""
    with_named_templates(source, "tool_use")
    folder = cached_store(Checkpoint(source), progress=False).folder
    outside = tmp_path / "outside"
    shutil.move(folder / "additional_chat_templates", outside)
    (folder / "additional_chat_templates").symlink_to(outside)
    mine = (outside / "tool_use.jinja").read_bytes()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("other")
    assert "outside the store" in refusal(cached_store, Checkpoint(source), progress=False)
    shutil.rmtree(source / "additional_chat_templates")
    assert "outside the store" in refusal(cached_store, Checkpoint(source), progress=False)
    assert (outside / "tool_use.jinja").read_bytes() == mine


# ---------------------------------------------------------------------- odd kinds of files
def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)  # the address is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)
        os.close(here)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def folder(path: Path) -> None:
    path.mkdir()


def gone(path: Path) -> None:
    path.symlink_to("nowhere")


KINDS = (fifo, unix_socket, device, loop, folder, gone)
STORED = (NAME, "dense.safetensors", "experts-00001.safetensors", "tokenizer.json", "config.json")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", STORED)
def test_an_odd_file_in_a_store_is_named_at_once(store, name, kind):
    (store / name).unlink()
    kind(store / name)
    for call in (load, mc.verify, mc.inspect):
        assert str(store) in refusal(call, store)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "model.safetensors.index.json"]
)
def test_an_odd_file_in_a_checkpoint_is_named_at_once(source, name, kind):
    (source / name).unlink(missing_ok=True)
    if "index" in name:
        (source / "model.safetensors").unlink()
    kind(source / name)
    for call in (load, lambda path: mc.quantize(path, path / "q", progress=False)):
        assert str(source) in refusal(call, source)


# ---------------------------------------------------------------------- files that may not be read
def as_nobody(call: Callable, path: Path, said: Path) -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    try:
        call(path)
        said.write_text("it came out well")
    except mc.MoEColabError as error:
        said.write_text(str(error))
    except BaseException as error:
        said.write_text(f"raw {type(error).__name__}: {error}")


def quantize(path: Path) -> None:
    mc.quantize(path, path.parent / "q", expert_bits=8, group_size=16, progress=False)


@pytest.fixture
def for_all(monkeypatch, tmp_path):
    """Another user may read and write the test's folder."""
    if os.geteuid():
        pytest.skip("only root can become another user")
    monkeypatch.setenv("MOE_COLAB_CACHE", str(tmp_path / "cache"))
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_mode & stat.S_IXOTH == 0:
            os.chmod(path, path.stat().st_mode | stat.S_IXOTH)
    os.chmod(tmp_path, 0o777)
    said = tmp_path / "said"
    said.touch()
    os.chmod(said, 0o666)
    return said


@pytest.mark.parametrize(
    ("call", "name"),
    [
        *((call, name) for call in (load, mc.verify, mc.inspect) for name in (*STORED, ".")),
    ],
)
def test_what_may_not_be_read_in_a_store_is_named(store, for_all, run, call, name):
    os.chmod(store / name, 0)
    assert run(as_nobody, call, store, for_all) == 0
    assert "Permission denied" in for_all.read_text() or "is not" in for_all.read_text()
    assert str(store) in for_all.read_text() and not for_all.read_text().startswith("raw")


@pytest.mark.parametrize("call", [load, quantize])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "."])
def test_what_may_not_be_read_in_a_checkpoint_is_named(source, for_all, run, call, name):
    os.chmod(source / name, 0)
    assert run(as_nobody, call, source, for_all) == 0
    message = for_all.read_text()
    assert str(source) in message and not message.startswith("raw")


@pytest.mark.parametrize("mode", [0, 0o555])
def test_a_cache_folder_that_may_not_be_written_is_named(source, for_all, run, mode, tmp_path):
    (tmp_path / "cache").mkdir()
    os.chmod(tmp_path / "cache", mode)
    assert run(as_nobody, load, source, for_all) == 0
    assert "MOE_COLAB_CACHE" in for_all.read_text()


def test_an_error_of_the_disk_is_one_sentence(store, monkeypatch):
    def broken(self, *args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    class Broken(io.FileIO):
        read = readinto = readall = broken

    real = files.open_file
    monkeypatch.setattr(files, "open_file", lambda path: Broken(real(path).name))
    assert "Input/output error" in refusal(Manifest.load, store)


# ---------------------------------------------------------------------- reads that bring little
class Stingy(io.FileIO):
    """One read brings at most 100 bytes, as on some network file systems."""

    def read(self, size=-1):
        return super().read(100 if size < 0 else min(size, 100))

    def readinto(self, buffer):
        return super().readinto(memoryview(buffer)[:100])

    def readall(self):
        return b"".join(iter(self.read, b""))


@pytest.fixture
def stingy(monkeypatch):
    real, real_preadv = files.open_file, os.preadv

    def open_file(path):
        with real(path) as file:
            return Stingy(file.name)

    for name in ("files", "store.files", "store.reader", "store.verify", "store.safetensors"):
        module = importlib.import_module(f"moe_colab.{name}")
        monkeypatch.setattr(module, "open_file", open_file)
    monkeypatch.setattr(os, "preadv", lambda f, parts, at: real_preadv(f, [parts[0][:100]], at))


def test_reads_that_bring_less_than_asked_for_go_on(whole, checkpoint, tmp_path, stingy):
    mc.verify(whole)
    for home in sum(Store(whole).homes, []):
        assert sum(home.fill(memoryview(bytearray(home.nbytes)))) == home.nbytes
    again = Checkpoint(checkpoint)
    pack(again, tmp_path / "again", again.dtype(), progress=False)
    assert contents(tmp_path / "again") == contents(whole)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---------------------------------------------------------------------- the journal
@pytest.fixture
def half(checkpoint, tmp_path, monkeypatch) -> Path:
    """A store that lacks its manifest only."""

    def stop(*args):
        raise KeyboardInterrupt

    source = Checkpoint(checkpoint)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StoreWriter, "finish", stop)
        pack(source, tmp_path / "half", source.dtype(), progress=False)
    return tmp_path / "half"


def lines_of(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line]


def checked(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x} {text}"


def damaged(number: int, change: Callable[[str], str]) -> Callable[[list[str]], list[str]]:
    return lambda lines: [change(x) if i == number else x for i, x in enumerate(lines)]


JOURNALS = {
    "one digit of a sha256": damaged(3, lambda x: x[:-3] + ("0" if x[-3] != "0" else "1") + x[-2:]),
    "a number": lambda lines: [*lines, "5", checked("5")],
    "an object without a key": lambda lines: [*lines, "{}", checked("{}")],
    "a key that is a list": lambda lines: [*lines, checked('{"key": [1]}'), '{"key": [1]}'],
    "a key that no part has": lambda lines: [
        *lines,
        checked('{"key": "x", "crc32": 1, "sha256": ""}'),
    ],
    "a crc that is text": damaged(
        4, lambda x: checked(x[9:].replace('"crc32": ', '"crc32": "x", "y": '))
    ),
    "many brackets": lambda lines: [*lines, checked("[" * 10_000), "{" * 10_000],
    "half of it": lambda lines: lines[: len(lines) // 2],
    "lines twice": lambda lines: [*lines, *lines],
    "another order": lambda lines: [lines[0], *reversed(lines[1:])],
}


@pytest.mark.parametrize("kind", JOURNALS)
def test_a_line_of_the_journal_that_took_damage_does_not_count(half, whole, checkpoint, kind):
    lines = JOURNALS[kind](lines_of(half / JOURNAL))
    (half / JOURNAL).write_text("\n".join(lines) + "\n")
    source = Checkpoint(checkpoint)
    pack(source, half, source.dtype(), progress=False)
    assert contents(half) == contents(whole)
    mc.verify(half)


def test_a_journal_without_its_first_line_starts_again_or_says_so(half, whole, checkpoint):
    (half / JOURNAL).write_bytes(b"\xff" * 100 + (half / JOURNAL).read_bytes()[100:])
    source = Checkpoint(checkpoint)
    message = refusal(pack, source, half, source.dtype(), False, may_clear=False)
    assert "is not empty" in message
    pack(source, half, source.dtype(), progress=False)
    assert contents(half) == contents(whole)


# ---------------------------------------------------------------------- two at once
def test_a_second_writer_is_refused_in_one_sentence(checkpoint, tmp_path):
    first = StoreWriter(tmp_path / "store", {"of": "this"})
    for identity in ({"of": "this"}, {"of": "another"}):
        message = refusal(StoreWriter, tmp_path / "store", identity)
        assert "another process is writing the store" in message
    before = contents(tmp_path / "store")
    assert "another process" in refusal(
        mc.quantize, checkpoint, tmp_path / "store", expert_bits=8, group_size=16, progress=False
    )
    assert contents(tmp_path / "store") == before
    first.close()
    StoreWriter(tmp_path / "store", {"of": "this"}).close()


def quantize_there(checkpoint: Path, folder: Path, said: Path, start) -> None:
    start.wait(20)
    try:
        mc.quantize(checkpoint, folder, expert_bits=8, group_size=16, progress=False)
        said.write_text("done")
    except mc.MoEColabError as error:
        said.write_text(f"refused: {error}")


def test_of_processes_that_quantize_into_one_folder_each_is_done_or_refused(
    processes, checkpoint, tmp_path
):
    start, folder = processes.Barrier(3), tmp_path / "store"
    said = [tmp_path / f"said-{number}" for number in range(3)]
    all_of_them = [
        processes.Process(target=quantize_there, args=(checkpoint, folder, path, start))
        for path in said
    ]
    for process in all_of_them:
        process.start()
    for process in all_of_them:
        process.join(60)
    answers = sorted(path.read_text() for path in said)
    assert answers[0] == "done" and all(a == "done" or a.startswith("refused") for a in answers)
    assert answers.count("done") == 1
    mc.verify(folder)
    assert not (folder / JOURNAL).exists()


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    StoreWriter(tmp_path / "store", {"of": "this"}).close()
    assert (tmp_path / "store" / JOURNAL).exists()


@pytest.mark.parametrize("number", [2**63, -(2**63), 10**30])
def test_a_number_that_no_table_can_hold_is_damage(checkpoint, tmp_path, number):
    store = tmp_path / "store"
    mc.quantize(checkpoint, store, expert_bits=4, check=False, progress=False)
    body = json.loads((store / NAME).read_bytes())
    body["layers"][0]["layout"]["matrices"][0]["group"] = number
    (store / NAME).write_text(sealed(body))
    for use in (lambda: mc.inspect(store).frame(), lambda: mc.load(store, progress=False)):
        with pytest.raises(mc.MoEColabError, match="too large a number"):
            use()
