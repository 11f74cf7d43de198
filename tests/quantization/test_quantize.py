"""mc.quantize: what a quantized store says, runs as, refuses, and survives."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from random import Random

import pandas as pd
import pytest
import torch
from conftest import TINY_MOE
from families import make_checkpoint, reference, with_weights_of

import moe_colab as mc
from moe_colab.checkpoint.families import experts_modules
from moe_colab.quantization.recipe import format_of
from moe_colab.store import writer
from moe_colab.store.manifest import NAME

pytestmark = pytest.mark.colab
WIDE = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64, "head_dim": 16}
FAMILIES = ("mixtral", "qwen3_moe", "gpt_oss", "granitemoe")
IDS = torch.tensor([[5, 17, 3, 99, 41, 8, 77]])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    made = {}

    def checkpoint(family: str):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            made[family] = make_checkpoint(family, folder, changes=WIDE)
        return made[family]

    return checkpoint


@pytest.mark.parametrize("bits", (2, 3, 4, 8))
@pytest.mark.parametrize("family", FAMILIES)
def test_it_says_what_the_plain_model_says_with_these_weights(family, bits, checkpoints, tmp_path):
    folder = checkpoints(family)
    options = {"attention_bits": 16, "group_size": 32, "axis": bits % 2, "progress": False}
    mc.quantize(folder, tmp_path / "store", expert_bits=bits, **options)
    plain = with_weights_of(tmp_path / "store", reference(folder))
    expected = plain.generate(IDS, max_new_tokens=24, do_sample=False, min_new_tokens=24)
    model, _ = mc.load(tmp_path / "store", slots=3, progress=False)
    with model.offload:
        got = model.generate(IDS, max_new_tokens=24, do_sample=False, min_new_tokens=24)
        assert torch.equal(got, expected)
        torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, rtol=1e-4, atol=1e-4)
        model.offload.slots = 2
        model.offload.policy = "none"
        again = model.generate(IDS, max_new_tokens=24, do_sample=False, min_new_tokens=24)
        assert torch.equal(again, expected)


def test_the_small_model_in_few_bits(tmp_path):
    """Real bits, counted again from the files; perplexity rises as bits fall, 8 bits lose nothing
    worth naming."""
    perplexities, bits_per_weight = {}, {}
    for bits in (16, 8, 4, 2):
        store = tmp_path / f"{bits}"
        options = {"attention_bits": 16, "dtype": "float32", "progress": False}
        summary = mc.quantize(None, store, expert_bits=bits, **options)
        on_disk = sum(p.stat().st_size for p in store.glob("experts-*.safetensors"))
        assert 0 <= on_disk - summary.expert_bytes <= 8 * 8192  # the headers
        assert summary.bits_per_weight == 8 * summary.expert_bytes / 9_437_184
        errors = summary.relative_error.values()
        assert len(errors) == (0 if bits == 16 else 2)
        assert all(
            {8: 0.003, 4: 0.05, 2: 0.2}[bits] < e < {8: 0.01, 4: 0.13, 2: 0.5}[bits] for e in errors
        )
        assert summary.bits == {32 if bits == 16 else bits: 2 * 64}
        bits_per_weight[bits] = summary.bits_per_weight
        mc.verify(store)
        model, tokenizer = mc.load(store, slots=8, progress=False)
        with model.offload:
            texts = mc.evaluation_texts(tokenizer)["task_dialogues"][:6]
            perplexities[bits] = mc.perplexity(model, tokenizer, texts).perplexity
    assert perplexities[8] == pytest.approx(perplexities[16], rel=0.005)
    assert perplexities[4] == pytest.approx(perplexities[16], rel=0.05)
    assert perplexities[2] > perplexities[4] > 0.99 * perplexities[16]
    assert bits_per_weight[2] < bits_per_weight[4] < bits_per_weight[8] < 10


def test_overrides_give_some_matrices_other_bits(tmp_path):
    overrides = {
        "experts.0.*": mc.Format(8, 64),
        "experts.*.down_proj": mc.Format(4),
        "experts.7.gate_up_proj": None,
        "model.layers.3.self_attn.[qk]_proj": mc.Format(8, 32, axis=0),
        "*.o_proj": None,
        "lm_head": mc.Format(4),
    }
    mc.quantize(
        None, tmp_path / "s", expert_bits=2, overrides=overrides, dtype="float16", progress=False
    )
    manifest = mc.Store(tmp_path / "s").manifest
    layers, outside = manifest.layers, {m.modules: m.layout for m in manifest.low_bit.matrices}
    formats = {modules: format_of(layout.matrices[0]) for modules, layout in outside.items()}
    assert formats.pop(("model.embed_tokens", "lm_head")) == mc.Format(4, 64)
    assert formats == {
        (f"model.layers.{layer}.self_attn.{name}_proj",): mc.Format(8, 32, 0)
        if layer == 3 and name in "qk"
        else mc.Format(4, 64)
        for layer in range(8)
        for name in "qkv"
    }
    bits = [[matrix.bits for matrix in layer.layout.matrices] for layer in layers]
    assert bits == [[8, 8], *[[2, 4]] * 6, [16, 4]]
    assert len({layer.layout.nbytes for layer in layers}) == 3
    model, tokenizer = mc.load(tmp_path / "s", slots=3, progress=False)
    with model.offload:
        out = model.generate(**tokenizer("Hello", return_tensors="pt"), max_new_tokens=8)
    assert out.shape[1] > 2


# ---------------------------------------------------------------------- killed, refused
def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


OPTIONS = {
    **{"attention_bits": 2, "expert_bits": 3, "embedding_bits": 8},
    **{"group_size": 32, "check": False, "progress": False},
}
QUANTIZED = 3 * 8 + 3 * 4 + 2  # experts, attention, embedding and head: a part each


def quantize_and_die(source, store, seconds: float) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
    mc.quantize(source, store, **OPTIONS)
    os._exit(0)


def quantize_and_time(source, store, seconds) -> None:
    start = time.monotonic()
    mc.quantize(source, store, **OPTIONS)
    seconds.write_text(str(time.monotonic() - start))
    os._exit(0)


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on_to_the_same_bytes(
    checkpoints, tmp_path, run, monkeypatch
):
    """Twenty kills, each of another run; every finished part is quantized once."""
    source, whole = checkpoints("mixtral"), tmp_path / "whole"
    assert run(quantize_and_time, source, whole, tmp_path / "seconds") == 0
    length, random = float((tmp_path / "seconds").read_text()), Random(0)
    calls, write = [], writer.StoreWriter.write

    def count(self, file, part, data, **remarks):
        calls.extend([part] if "errors" in remarks else [])
        write(self, file, part, data, **remarks)

    monkeypatch.setattr(writer.StoreWriter, "write", count)
    left = []
    for number in range(20):
        folder = tmp_path / f"killed{number}"
        if run(quantize_and_die, source, folder, random.uniform(0, 1.2 * length)) == 0:
            continue  # it was done before
        noted = 0
        if (folder / writer.JOURNAL).exists():
            with pytest.raises(mc.MoEColabError, match="unfinished"):
                mc.Store(folder)
            noted = (folder / writer.JOURNAL).read_text().count('"errors"')
        calls.clear()
        if not (folder / NAME).exists():
            mc.quantize(source, folder, **OPTIONS)
            assert 0 <= noted + len(calls) - QUANTIZED <= 1  # a line that was torn
        assert files(folder) == files(whole)
        left.append(noted)
    assert len(left) >= 10 and len(set(left)) >= 4, left


def test_other_options_do_not_mix_with_what_was_begun(checkpoints, tmp_path, monkeypatch):
    source, folder = checkpoints("mixtral"), tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(writer.StoreWriter, "write_file", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mc.quantize(source, folder, **OPTIONS)
    begun = files(folder)
    with pytest.raises(mc.MoEColabError, match="same options again"):
        mc.quantize(source, folder, **{**OPTIONS, "expert_bits": 4})
    with pytest.raises(mc.MoEColabError, match="same options again"):
        mc.quantize(source, folder, **{**OPTIONS, "attention_bits": 4})
    assert files(folder) == begun
    mc.quantize(source, folder, **OPTIONS)
    mc.verify(folder)
    with pytest.raises(mc.MoEColabError, match="finished store already"):
        mc.quantize(source, folder, **OPTIONS)


def test_the_order_of_overrides_is_an_option_too(checkpoints, tmp_path, monkeypatch):
    """The first that fits counts."""
    source, folder = checkpoints("mixtral"), tmp_path / "store"
    overrides = {"experts.0.*": mc.Format(8), "experts.*": mc.Format(4)}
    with monkeypatch.context() as patch:
        patch.setattr(writer.StoreWriter, "write_file", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mc.quantize(source, folder, **OPTIONS, overrides=overrides)
    other = dict(reversed(overrides.items()))
    with pytest.raises(mc.MoEColabError, match="same options again"):
        mc.quantize(source, folder, **OPTIONS, overrides=other)
    mc.quantize(source, folder, **OPTIONS, overrides=overrides)
    layers = mc.Store(folder).manifest.layers
    assert [layer.layout.matrices[0].bits for layer in layers] == [8, 4, 4]


def test_the_report_as_a_frame(checkpoints, tmp_path):
    """Every number again, from the file and the weights themselves."""
    source, folder = checkpoints("mixtral"), tmp_path / "s"
    overrides = {"experts.1.down_proj": None}
    mc.quantize(source, folder, **OPTIONS, overrides=overrides)
    frame = mc.inspect(folder).frame()
    frame = frame[frame.part == "experts"].set_index(["layer", "expert", "matrix"])
    assert len(frame) == 3 * 8 * 2 and frame.index.is_unique and (frame.bits == 3).sum() == 40
    kept = frame.loc[(1, 5, "down_proj")]
    assert kept.bits == 32 and kept.bits_per_weight == 32 and pd.isna(kept.relative_error)
    plain = reference(source)
    weights = {
        (layer, expert, name): getattr(module, name).data[expert].clone()
        for layer, (_, module) in enumerate(experts_modules(plain))
        for expert in range(8)
        for name in ("gate_up_proj", "down_proj")
    }
    modules = experts_modules(with_weights_of(folder, plain))
    for (layer, expert, name), row in frame[frame.bits == 3].iterrows():
        before = weights[layer, expert, name]
        lost = (getattr(modules[layer][1], name).data[expert] - before).norm() / before.norm()
        assert row.relative_error == pytest.approx(lost.item(), rel=1e-4)
        groups = before.numel() / 32
        assert row.bytes == before.numel() * 3 / 8 + 2 * groups + 8 * len(before)
        assert (row.bits, row.group, row.axis, row.weights) == (3, 32, 1, before.numel())


def test_a_full_disk_is_told_and_it_goes_on_after_room_is_made(checkpoints, tmp_path, monkeypatch):
    source = checkpoints("mixtral")
    write = writer.write_all
    left = [6]

    def full(out, data):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(out, data)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_all", full)
        with pytest.raises(mc.MoEColabError, match="make room and start again"):
            mc.quantize(source, tmp_path / "s", group_size=32, progress=False)
    mc.quantize(source, tmp_path / "s", group_size=32, progress=False)
    mc.verify(tmp_path / "s")


def test_a_folder_with_something_else_is_left_alone(checkpoints, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(mc.MoEColabError, match="is not empty"):
        mc.quantize(checkpoints("mixtral"), tmp_path, group_size=32, progress=False)
    assert files(tmp_path) == {"thesis.txt": b"years of work"}


def test_weights_that_are_no_numbers_are_named(tmp_path):
    folder = make_checkpoint("mixtral", tmp_path / "bad", changes=WIDE)
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if ".layers.0." in name and ".experts.1.w1" in name)
    weights[name].view(-1)[7] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(mc.MoEColabError, match="gate_up_proj of expert 1 in layer 0 holds NaN"):
        mc.quantize(folder, tmp_path / "store", group_size=32, progress=False)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"expert_bits": 5}, "5 bits along axis 1: choose bits"),
        ({"attention_bits": 5}, "choose bits"),
        ({"embedding_bits": 5}, "embedding_bits must be one of"),
        ({"embedding_bits": 2}, "embedding_bits must be one of"),
        ({"group_size": 48}, "choose bits"),
        ({"axis": 2}, "choose bits"),
        ({"group_size": 128}, "gate_up_proj of layer 0 is 512 x 192: groups of 128"),
        (
            {"expert_bits": 16, "group_size": 128},
            "model.layers.0.self_attn.q_proj is 192 x 192: groups of 128",
        ),
        (
            {"expert_bits": 16, "overrides": {"*.k_proj": mc.Format(2, 128)}},
            "k_proj is 64 x 192: groups of 128",
        ),
        (
            {"overrides": {"0.*": None}},
            "'0.*' matches no matrix: name an expert's matrix as in 'exp",
        ),
        ({"overrides": {"*.gate": mc.Format(4)}}, "matches no matrix"),
        ({"overrides": {"lm_head": mc.Format(4, 16, 0)}}, "is looked up by rows"),
        ({"overrides": {"lm_head": mc.Format(6)}}, "6 bits along axis 1: choose bits"),
        ({"device": "tpu"}, "is not a device"),
        ({"dtype": "int8"}, "cannot compute in"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(options, words, tmp_path):
    with pytest.raises(mc.MoEColabError, match=words):
        mc.quantize(None, tmp_path / "store", progress=False, **options)
    assert not (tmp_path / "store").exists()


def test_a_store_is_no_checkpoint(tmp_path):
    mc.quantize(None, tmp_path / "s", progress=False)
    with pytest.raises(mc.MoEColabError, match="is a store already"):
        mc.quantize(tmp_path / "s", tmp_path / "t", progress=False)


@pytest.mark.slow
def test_in_a_shell(tmp_path):
    command = [sys.executable, "-m", "moe_colab", "quantize", str(TINY_MOE), str(tmp_path / "s")]
    command += ["--attention-bits", "3", "--expert-bits", "4", "--embedding-bits", "8"]
    command += ["--group-size", "32", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["bits"] == {"4": 128} and report["bits_per_weight"] < 5.6
    assert list(report["parts"]) == ["experts", "dense", "embeddings", "rest"]
    assert 3 < report["parts"]["dense"]["bits_per_weight"] < 4.1
    assert 8 < report["parts"]["embeddings"]["bits_per_weight"] < 10.1
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2 and "finished store already" in again.stderr
