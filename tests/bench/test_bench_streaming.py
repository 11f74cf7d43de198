"""The benchmark of memory and disk, at toy size: its checkpoint, its report, its limits."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from fake_hub import FakeHub
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import moe_colab as mc
from moe_colab.bench import streaming

REPO = "someone/mixtral-shapes"


@pytest.fixture
def small(monkeypatch):
    shapes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    shapes |= {"num_key_value_heads": 1, "vocab_size": 128}
    monkeypatch.setattr(streaming, "SHAPES", shapes)
    monkeypatch.setattr(streaming, "SHARD", 60_000)


def test_it_makes_a_whole_mixtral(small, tmp_path):
    streaming.make_checkpoint(tmp_path)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 3 and all(path.stat().st_size <= 60_000 + 4096 for path in files)
    model, said = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(said.values())
    assert (model.config.num_hidden_layers, model.config.num_local_experts) == (2, 3)
    gate_up = model.model.layers[1].mlp.experts.gate_up_proj
    assert gate_up.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert (model.model.norm.weight == 1).all()


@pytest.mark.slow
def test_every_stage_reports_what_it_did(small, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint"
    streaming.make_checkpoint(folder)
    hub = FakeHub()
    hub.models[REPO] = folder
    with hub.reachable(monkeypatch, tmp_path):
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # for the processes of the stages
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        report = streaming.measure(REPO, tmp_path / "store")
    json.dumps(report)
    nbytes, largest, sizes = 0, 0, []
    for path in folder.glob("*.safetensors"):
        sizes.append(path.stat().st_size)
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                size = file.get_tensor(name).nbytes
                nbytes, largest = nbytes + size, max(largest, size)
    of_folder = {
        "kind": "folder",
        "bytes": nbytes,
        "files": len(sizes),
        "largest_tensor_bytes": largest,
        "two_largest_files": sum(sorted(sizes)[-2:]),
    }
    assert streaming.source_sizes(str(folder)) == of_folder
    assert report["source"] == {**of_folder, "kind": "hub"}
    assert report["limit_over_start_up"] == streaming.LIMIT + largest
    summary, found = mc.inspect(tmp_path / "store"), report["quantize"]["found"]
    assert found["total_bytes"] == summary.total_bytes and found["experts"] == 6
    assert report["verify"]["found"]["experts"] == 6
    assert report["load and generate"]["found"]["tokens"] == streaming.NEW_TOKENS
    for stage in streaming.STAGES:
        assert 0 <= report[stage]["peak_over_start_up"] < 1 << 30
    assert report["within_limits"] is True


def test_a_stage_that_takes_too_much_is_seen(small, tmp_path, monkeypatch):
    streaming.make_checkpoint(tmp_path / "checkpoint")
    peaks = dict.fromkeys(streaming.STAGES, 0)
    monkeypatch.setattr(
        streaming, "in_process", lambda name, *rest: ({"peak_over_start_up": peaks[name]}, 0)
    )

    def within() -> bool:
        report = streaming.measure(str(tmp_path / "checkpoint"), tmp_path / "store")
        return report["within_limits"]

    limit = (
        streaming.LIMIT
        + streaming.source_sizes(str(tmp_path / "checkpoint"))["largest_tensor_bytes"]
    )
    assert within()
    for name in streaming.STAGES:
        peaks[name] = limit
        assert not within()
        peaks[name] = limit - 1
        assert within()


def test_memory_is_read_off_the_process():
    before = streaming.resident_peak(reset=True)
    held = torch.ones(101 << 20, dtype=torch.uint8)  # the system counts in batches of pages
    after = streaming.resident_peak()
    del held
    assert 100 << 20 <= after - before < 150 << 20
    assert streaming.resident_peak() >= after - (4 << 20)
    assert streaming.resident_peak(reset=True) < after - (90 << 20)


@pytest.mark.slow
def test_a_stage_that_fails_says_why(small, tmp_path):
    with pytest.raises(mc.MoEColabError, match=r"verify failed: .* is not a folder"):
        streaming.in_process("verify", "", tmp_path / "nothing")


def test_what_is_deleted_while_it_is_counted_is_left_out(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(bytes(100))
    assert streaming.folder_bytes(tmp_path) == 200
    real = os.scandir

    def scandir(path):
        if Path(path).name == "b":
            os.rename(path, tmp_path.with_suffix(".gone"))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert streaming.folder_bytes(tmp_path) == 100
