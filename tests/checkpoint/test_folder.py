"""A checkpoint's folder: its name, the weights it may hold, and when they count as changed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from families import make_checkpoint, reference

import moe_colab as mc
from moe_colab.checkpoint import digests
from moe_colab.checkpoint.reader import Checkpoint
from moe_colab.quantization import pack as pack_module
from moe_colab.quantization.pack import cached_store, pack
from moe_colab.store.safetensors import INDEX, SINGLE

IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module", params=["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3"])
def family(request) -> str:
    return request.param


@pytest.fixture
def folder(family, tmp_path) -> Path:
    return make_checkpoint(family, tmp_path / "model")


def logits(folder: Path) -> torch.Tensor:
    model, _ = mc.load(folder, progress=False)
    with model.offload, torch.no_grad():
        return model(IDS).logits


def expected(folder: Path) -> torch.Tensor:
    return reference(folder)(IDS).logits


# ---------------------------------------------------------------------- changed weights
def in_place(old: Path, new: Path) -> None:
    before = old.stat()
    with open(old, "r+b") as file:
        file.write(new.read_bytes())
    os.utime(old, ns=(before.st_atime_ns, before.st_mtime_ns))


def by_another_file(old: Path, new: Path) -> None:
    before = old.stat()
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(new, old)


def by_a_copy_that_keeps_times(old: Path, new: Path) -> None:
    before = old.stat()
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    old.unlink()
    shutil.copy2(new, old)


@pytest.mark.parametrize("change", [in_place, by_another_file, by_a_copy_that_keeps_times])
def test_weights_that_change_at_the_same_size_and_time_are_noticed(
    family, folder, change, tmp_path
):
    before = logits(folder)
    other = make_checkpoint(family, tmp_path / "other", seed=1)
    assert (other / SINGLE).stat().st_size == (folder / SINGLE).stat().st_size
    change(folder / SINGLE, other / SINGLE)
    assert torch.equal(logits(folder), expected(folder))
    assert not torch.equal(logits(folder), before)


def test_weights_are_noticed_where_all_times_stay(family, tmp_path, monkeypatch):
    """As in images of file systems, and on some network file systems."""
    real = os.fstat

    def frozen(fd):
        status = list(real(fd))
        return os.stat_result([*status[:7], 0, 0, 0])

    stamps = []
    for seed in (0, 1):
        folder = make_checkpoint(family, tmp_path / f"{seed}", seed=seed)
        with monkeypatch.context() as patch:
            patch.setattr(digests.os, "fstat", frozen)
            stamps.append(digests.stamp(folder / SINGLE))
    assert stamps[0].split()[:3] == stamps[1].split()[:3]  # size and times
    assert stamps[0] != stamps[1]


def test_weights_that_stay_are_packed_once(folder, monkeypatch):
    calls, real = [], pack_module.pack
    monkeypatch.setattr(pack_module, "pack", lambda *a, **k: calls.append(1) or real(*a, **k))
    for _ in range(3):
        cached_store(Checkpoint(folder), progress=False)
    assert len(calls) == 1


def test_weights_that_change_while_they_are_packed_are_packed_again(family, folder, tmp_path):
    other = make_checkpoint(family, tmp_path / "other", seed=1)
    source = Checkpoint(folder)
    real = source.shards.deliver

    def deliver(jobs, place):
        for number, job in enumerate(real(jobs, place)):
            if number == len(jobs) // 2:
                in_place(folder / SINGLE, other / SINGLE)
            yield job

    source.shards.deliver = deliver
    with pytest.raises(mc.MoEColabError, match="has changed while it was packed"):
        pack(source, tmp_path / "store", torch.float32, progress=False)
    again = Checkpoint(folder)
    pack(again, tmp_path / "store", torch.float32, progress=False)
    assert torch.equal(logits(tmp_path / "store"), expected(folder))


def test_an_index_that_changes_counts(tmp_path):
    folder = make_checkpoint("mixtral", tmp_path / "model", max_shard_size="60kB")
    before = Checkpoint(folder).fingerprint()
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, "metadata": {}}))
    assert Checkpoint(folder).fingerprint() != before


# ---------------------------------------------------------------------- names
SHA = "c0ffee" + "0" * 34


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (
            f"hub/models--mistralai--Mixtral-8x7B-v0.1/snapshots/{SHA}",
            "mistralai/Mixtral-8x7B-v0.1",
        ),
        (f"models--org--a--b/snapshots/{SHA}", "org/a--b"),
        ("models--org--name", "models--org--name"),
        ("models--org/snapshots/x", "x"),
        ("Mixtral-8x7B", "Mixtral-8x7B"),
        (f"datasets--org--name/snapshots/{SHA}", SHA),
    ],
)
def test_a_folder_in_the_hubs_cache_is_called_after_its_repository(tmp_path, path, name):
    folder = make_checkpoint("mixtral", tmp_path / path)
    assert Checkpoint(folder).name == name
    model, _ = mc.load(folder, progress=False)
    with model.offload:
        assert model.offload.name == name
        assert os.sep not in model.offload.store.name


# ---------------------------------------------------------------------- other weights
@pytest.mark.parametrize(
    "name",
    [
        "consolidated.safetensors",
        "model.fp16.safetensors",
        "consolidated.00.pth",
        "consolidated.00.pt",
        "pytorch_model.bin",
        "model-q4.gguf",
    ],
)
@pytest.mark.parametrize("source", ["load", "quantize"])
def test_a_folder_with_other_weights_is_told_what_it_has(tmp_path, name, source):
    folder = make_checkpoint("mixtral", tmp_path / "model")
    (folder / SINGLE).rename(folder / name)
    with pytest.raises(mc.MoEColabError, match=f"it has only {name}"):
        if source == "load":
            mc.load(folder, progress=False)
        else:
            mc.quantize(folder, tmp_path / "store", progress=False)


# ---------------------------------------------------------------------- how to generate
@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "5",
        '"text"',
        '{"cache_implementation": "int8"}',
        '{"watermarking_config": 5}',
        "[" * 100_000,
        '{"num_beams": "many"}',
        '{"temperature": NaN}',
        "{",
        "",
        "{}",
        '{"max_new_tokens": 5}',
    ],
)
def test_any_generation_config_gives_what_plain_gives_or_one_sentence(tmp_path, text):
    folder = make_checkpoint("mixtral", tmp_path / "model")
    (folder / "generation_config.json").write_text(text)
    try:
        plain = reference(folder).generation_config.to_dict()
    except Exception:
        plain = None
    try:
        model, _ = mc.load(folder, progress=False)
    except mc.MoEColabError as error:
        assert "generation_config.json" in str(error) and "\n" not in str(error)
        return
    with model.offload:
        assert model.generation_config.to_dict() == plain
