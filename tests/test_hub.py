"""mc.load("org/name"): a hub on 127.0.0.1 that breaks, refuses and is counted."""

from __future__ import annotations

import json
import shutil
import sys
import types

import pytest
import torch
from conftest import TINY_MOE
from fake_hub import COMMIT, FakeHub
from families import make_checkpoint, reference
from huggingface_hub import constants

import moe_colab as mc
from moe_colab import hub as hub_room
from moe_colab.store import Store

REPO = "someone/small-moe"
IDS = torch.randint(3, 100, (1, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A sharded model with a tokenizer, and much beside it that must not be fetched."""
    folder = make_checkpoint(
        "granitemoe", tmp_path_factory.mktemp("hub") / "model", max_shard_size="60kB"
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY_MOE / name, folder)
    (folder / "original").mkdir()
    for name in ("pytorch_model.bin", "consolidated.00.pth", "model.gguf", "original/params.json"):
        (folder / name).write_bytes(b"x" * 1000)
    (folder / "onnx.safetensors").write_bytes(b"x" * 1000)
    return folder


@pytest.fixture
def hub(checkpoint, monkeypatch, tmp_path):
    hub = FakeHub()
    hub.models[REPO] = checkpoint
    with hub.serving() as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("MOE_COLAB_CACHE", str(tmp_path / "stores"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield hub


def load(repo=REPO, **settings):
    return mc.load(repo, slots=3, progress=False, **settings)


def refusal(repo=REPO, **settings) -> str:
    with pytest.raises(mc.MoEColabError) as caught:
        load(repo, **settings)
    said = str(caught.value)
    assert "\n" not in said.strip()
    return said


def test_a_model_of_the_hub_says_what_the_plain_one_says(hub, checkpoint):
    model, tokenizer = load()
    with model.offload, torch.no_grad():
        assert torch.equal(model(IDS).logits, reference(checkpoint)(IDS).logits)
        assert tokenizer is not None
        source = Store(model.offload.store).manifest.source
    assert (source["id"], source["revision"]) == (REPO, COMMIT)


def test_only_what_is_needed_is_downloaded_and_only_once(hub, checkpoint):
    load()[0].offload.close()
    shards = {path.name for path in checkpoint.glob("model-*.safetensors")}
    assert len(shards) > 3
    small = {path.name for path in checkpoint.glob("*.json")}
    assert set(hub.sent) == shards | small
    assert all(hub.sent[name] == (checkpoint / name).stat().st_size for name in hub.sent)
    hub.sent.clear()
    load()[0].offload.close()
    assert not hub.sent


def test_a_broken_download_goes_on_where_it_stopped(hub, checkpoint, monkeypatch):
    name = sorted(path.name for path in checkpoint.glob("model-*.safetensors"))[0]
    size = (checkpoint / name).stat().st_size
    hub.break_at[name] = [size // 2]
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is kept of a broken one
    model, _ = load()
    with model.offload, torch.no_grad():
        assert torch.equal(model(IDS).logits, reference(checkpoint)(IDS).logits)
    assert size <= hub.sent[name] < size + 2000


def test_a_hub_that_fails_midway_is_one_sentence_and_the_next_try_works(hub, monkeypatch):
    real = hub_room.HfApi.snapshot_download
    calls = []

    def fails(self, *args, **settings):
        calls.append(1)
        hub.down = len(calls) == 2
        return real(self, *args, **settings)

    monkeypatch.setattr(hub_room.HfApi, "snapshot_download", fails)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the library's own tries
    said = refusal()
    assert REPO in said and "goes on where it stopped" in said
    hub.down = False
    load()[0].offload.close()


def test_a_missing_repo_says_what_to_do(hub):
    said = refusal("someone/nothing")
    assert "someone/nothing" in said and "check its name" in said


def test_an_unknown_revision_is_named(hub):
    assert "'v9'" in refusal(revision="v9")
    model, _ = load(revision=COMMIT)
    model.offload.close()


def test_a_gated_repo_says_what_to_do_and_moves_no_weights(hub):
    hub.gated.add(REPO)
    said = refusal()
    assert "gated" in said and f"/{REPO}" in said and "hf auth login" in said
    assert not hub.sent


def test_the_users_own_token_opens_it(hub, monkeypatch):
    hub.gated.add(REPO)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    load()[0].offload.close()


def test_on_colab_the_secret_is_read_once_and_only_if_needed(hub, monkeypatch):
    reads = []

    def get(name):
        reads.append(name)
        return hub.token

    colab = types.ModuleType("google.colab")
    colab.userdata = types.SimpleNamespace(get=get)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    load()[0].offload.close()
    assert reads == []
    hub.gated.add(REPO)
    load(revision="main")[0].offload.close()
    assert reads == ["HF_TOKEN"]

    def denied(name):
        raise RuntimeError("NotebookAccessError")

    colab.userdata = types.SimpleNamespace(get=denied)
    assert "gated" in refusal()


@pytest.mark.parametrize("kind", ["dense", "fp8", "no safetensors"])
def test_what_cannot_be_offloaded_is_refused_before_any_weights_move(hub, tmp_path, kind):
    folder = tmp_path / "other"
    shutil.copytree(hub.models[REPO], folder)
    config = json.loads((folder / "config.json").read_text())
    if kind == "dense":
        config = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1}
        config |= {"num_attention_heads": 4, "vocab_size": 64, "intermediate_size": 32}
    elif kind == "fp8":
        config["quantization_config"] = {"quant_method": "fp8"}
    else:
        for path in folder.glob("model*safetensors*"):
            path.unlink()
    (folder / "config.json").write_text(json.dumps(config))
    hub.models["someone/other"] = folder
    said = refusal("someone/other")
    assert {"dense": "'llama'", "fp8": "fp8", "no safetensors": "model.safetensors"}[kind] in said
    assert not [name for name in hub.sent if name.endswith((".safetensors", ".bin"))]


def test_too_little_disk_is_said_before_the_weights_move(hub, checkpoint, monkeypatch):
    weights = sum(path.stat().st_size for path in checkpoint.glob("model-*.safetensors"))
    monkeypatch.setattr(hub_room, "free_disk", lambda folder: 2 * weights - 1)
    said = refusal()
    assert "of disk" in said and "HF_HUB_CACHE" in said
    assert not [name for name in hub.sent if name.endswith(".safetensors")]
    monkeypatch.setattr(hub_room, "free_disk", lambda folder: 2 * weights)
    load()[0].offload.close()
    monkeypatch.setattr(hub_room, "free_disk", lambda folder: 0)
    load()[0].offload.close()  # all of it is here, and packed


def test_offline_the_cache_is_enough(hub, monkeypatch):
    load()[0].offload.close()
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    load()[0].offload.close()
    assert not hub.asked
    assert "must not be asked" in refusal("someone/never-seen")


def test_a_hub_that_is_not_there(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert REPO in refusal()


@pytest.mark.parametrize("name", ["a/b/c", "/x/y", "org/na me", "../models", "name"])
def test_what_is_no_repo_id_is_not_asked_for(hub, name):
    assert "does not exist" in refusal(name)
    assert not hub.asked
