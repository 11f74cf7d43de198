"""mc.load("org/name") and mc.quantize: a hub on 127.0.0.1 that breaks, refuses and is counted."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import struct
import sys
import threading
import types
from pathlib import Path
from random import Random

import pytest
import torch
from conftest import TINY_MOE
from fake_hub import COMMIT, FakeHub
from families import make_checkpoint, reference
from huggingface_hub import constants

import moe_colab as mc
from moe_colab.checkpoint import hub as hub_module
from moe_colab.machine.memory import DISK_HEADROOM
from moe_colab.quantization import pack
from moe_colab.store import Store, writer
from moe_colab.store.manifest import NAME

pytestmark = pytest.mark.colab
REPO = "someone/small-moe"
OPTIONS = {"expert_bits": 3, "group_size": 16, "progress": False}
IDS = torch.randint(3, 100, (1, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A sharded model with a tokenizer, and much beside it that must not be fetched."""
    changes = {"intermediate_size": 64}  # so that it can be quantized
    folder = tmp_path_factory.mktemp("hub") / "model"
    make_checkpoint("granitemoe", folder, changes=changes, max_shard_size="60kB")
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
    with hub.reachable(monkeypatch, tmp_path):
        monkeypatch.setattr(hub_module, "PAUSE", 0.01)
        monkeypatch.setattr(hub_module, "PIECE", 1000)  # so much is lost of what is cut
        yield hub


def load(repo=REPO, **settings):
    return mc.load(repo, slots=3, progress=False, **settings)


def refusal(repo=REPO, **settings) -> str:
    with pytest.raises(mc.MoEColabError) as caught:
        load(repo, **settings)
    message = str(caught.value)
    assert "\n" not in message.strip()
    return message


def test_a_model_of_the_hub_says_what_the_plain_one_says(hub, checkpoint):
    model, tokenizer = load()
    with model.offload, torch.no_grad():
        assert torch.equal(model(IDS).logits, reference(checkpoint)(IDS).logits)
        assert tokenizer is not None
        source = Store(model.offload.store).manifest.source
    assert (source["id"], source["revision"]) == (REPO, COMMIT)


def weights(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("model*.safetensors")}


def moved(hub) -> set[str]:
    """The files of weights of which more than the header was sent."""
    return {name for name in hub.sent if name.endswith((".safetensors", ".bin"))}


def on_disk(folder: Path, names) -> dict[str, int]:
    """Bytes by file of these names, whole or on their way, anywhere below."""
    found = {}
    for path in folder.rglob("model*"):
        with contextlib.suppress(FileNotFoundError):  # deleted just now
            if path.name.removesuffix(hub_module.PART) in names:
                found[path.name] = path.stat().st_blocks * 512
    return found


def test_only_what_is_needed_is_downloaded_and_only_once(hub, checkpoint):
    load()[0].offload.close()
    shards = weights(checkpoint)
    assert len(shards) > 3
    assert set(hub.sent) == shards.keys() | {path.name for path in checkpoint.glob("*.json")}
    assert all(hub.sent[name] == (checkpoint / name).stat().st_size for name in hub.sent)
    hub.sent.clear()
    hub.peeked.clear()
    load()[0].offload.close()
    assert not hub.sent and not hub.peeked


@pytest.mark.parametrize("wanted", ["load", "quantize"])
def test_each_shard_is_deleted_when_it_is_packed(hub, checkpoint, tmp_path, wanted):
    """Never more of a download on the disk than two shards; at the end nothing."""
    shards, seen = weights(checkpoint), []
    hub.watch = lambda: seen.append(on_disk(tmp_path, shards))
    if wanted == "load":
        load()[0].offload.close()
    else:
        mc.quantize(REPO, tmp_path / "store", **OPTIONS)
    assert not on_disk(tmp_path, shards)
    assert not list(tmp_path.rglob("shards"))
    assert len(seen) > 3 * len(shards) and max(map(len, seen)) <= 2
    block = 4096
    two = sum(sorted(shards.values())[-2:]) + 2 * block
    assert max(sum(held.values()) for held in seen) <= two < sum(shards.values())


@pytest.mark.parametrize("seed", range(3))
def test_a_broken_download_goes_on_where_it_stopped(hub, checkpoint, seed):
    dice, shards = Random(seed), weights(checkpoint)
    hub.break_at = {
        name: [dice.randrange(1, size) for _ in range(3)] for name, size in shards.items()
    }
    model, _ = load()
    with model.offload, torch.no_grad():
        assert torch.equal(model(IDS).logits, reference(checkpoint)(IDS).logits)
    assert all(size <= hub.sent[name] < size + 3000 for name, size in shards.items())


def test_a_hub_that_fails_midway_is_one_sentence_and_the_next_try_goes_on(hub, checkpoint):
    name = sorted(weights(checkpoint))[2]
    hub.break_at[name] = [20_000, *[0] * hub_module.TRIES]
    message = refusal()
    assert REPO in message and "continues where it stopped" in message
    hub.sent.clear()
    load()[0].offload.close()
    assert hub.begun[name][-1] == 20_000 and sorted(weights(checkpoint))[0] not in hub.sent


def quantize_from_hub(address: str, cache: Path, store: Path, done: Path, moment: float) -> None:
    """In a process of its own, killed `moment % 1` / 20 seconds after so many pieces have come;
    notes every expert that is done."""
    os.environ["HF_ENDPOINT"] = address
    constants.HF_HUB_OFFLINE, constants.HF_HUB_CACHE = False, str(cache)
    hub_module.PAUSE, hub_module.PIECE = 0.01, 1000
    write = writer.StoreWriter.write

    def noted(self, file, part, data, **remarks):
        write(self, file, part, data, **remarks)
        if part.startswith("expert."):
            with open(done, "a") as notes:
                notes.write(f"{file}/{part}\n")

    writer.StoreWriter.write = noted
    pieces, come = hub_module.pieces, itertools.count(1)

    def counted(*args):
        for piece in pieces(*args):
            if next(come) == int(moment):
                threading.Timer(moment % 1 / 20, os.kill, (os.getpid(), signal.SIGKILL)).start()
            yield piece

    hub_module.pieces = counted
    mc.quantize(REPO, store, **OPTIONS)
    os._exit(0)


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on_to_the_same_store(hub, checkpoint, tmp_path, run):
    """Five kills of one quantization, of its downloads and of its work: the same bytes, no expert
    quantized twice, no shard that was packed downloaded again."""
    whole, store, done = tmp_path / "whole", tmp_path / "store", tmp_path / "done"
    done.touch()
    mc.quantize(REPO, whole, **OPTIONS)
    hub.sent.clear()
    dice, shards, seen, left = Random(0), weights(checkpoint), [], []
    hub.watch = lambda: seen.append(on_disk(store, shards))
    cache = tmp_path / "other-hub"
    arguments = (quantize_from_hub, os.environ["HF_ENDPOINT"], cache, store, done)
    for _ in range(5):
        hub.pause = 0.01  # a second for all of it
        moment = dice.uniform(20, sum(shards.values()) / hub_module.PIECE / 5)
        assert run(*arguments, moment) == -signal.SIGKILL
        left.append((len(done.read_text().split()), *on_disk(store, shards).values()))
    hub.pause = 0
    assert run(*arguments, 10**6) == 0
    assert len(set(left)) >= 4 and 0 < left[-1][0] < 24, left
    experts = done.read_text().split()
    assert len(experts) == len(set(experts)) >= 24 - 5  # a kill may come before the note
    assert {path.name: path.read_bytes() for path in store.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }
    assert max(map(len, seen)) <= 2
    # What a kill costs: what was in the hub's, the network's and the file's buffers.
    assert sum(hub.sent[name] for name in shards) <= sum(shards.values()) + 5 * 65_536


def test_a_missing_repo_says_what_to_do(hub):
    message = refusal("someone/nothing")
    assert "someone/nothing" in message and "check its name" in message


def test_an_unknown_revision_is_named(hub):
    assert "'v9'" in refusal(revision="v9")
    model, _ = load(revision=COMMIT)
    model.offload.close()


def test_a_gated_repo_says_what_to_do_and_moves_no_weights(hub):
    hub.gated.add(REPO)
    message = refusal()
    assert message.startswith(
        f"{REPO} is gated: accept its licence at https://huggingface.co/{REPO},"
    )
    assert "`hf auth login`" in message and "HF_TOKEN" in message
    assert not hub.sent
    assert refusal(f"{os.environ['HF_ENDPOINT']}/{REPO}/tree/main") == message


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("COLAB_RELEASE_TAG", "as the secret HF_TOKEN (the key icon on the left)"),
        ("KAGGLE_KERNEL_RUN_TYPE", 'os.environ["HF_TOKEN"]'),
    ],
)
def test_a_gated_repo_says_how_a_token_is_given_here(hub, monkeypatch, variable, words):
    hub.gated.add(REPO)
    monkeypatch.setenv(variable, "test")
    message = refusal()
    assert words in message and f"https://huggingface.co/{REPO}," in message
    assert "hf auth login" not in message


def test_a_token_that_does_not_help_is_told_apart(hub, monkeypatch):
    hub.gated.add(REPO)
    hub.strangers.add("hf_stranger")
    hub.narrow.add("hf_narrow")
    for token, words in (
        ("hf_stranger", f"accept its licence at https://huggingface.co/{REPO} with that account"),
        ("hf_narrow", f"does not let your token read {REPO}"),
        ("hf_unknown", "does not know your token"),
    ):
        monkeypatch.setenv("HF_TOKEN", token)
        assert words in refusal()
    assert not hub.sent


def test_a_pasted_address_is_loaded(hub, tmp_path):
    page = f"{os.environ['HF_ENDPOINT']}/{REPO}/"
    model, _ = load(page)
    with model.offload:
        assert model.offload.name == REPO
    hub.sent.clear()
    load(f"https://huggingface.co/{REPO}/tree/{COMMIT}")[0].offload.close()
    assert not moved(hub)  # the same store
    report = mc.quantize(f"{page}tree/main", tmp_path / "store", **OPTIONS)
    assert Store(report.store).manifest.source["id"] == REPO
    assert "'v9'" in refusal(f"{page}tree/v9")
    asked = len(hub.asked)
    assert "is a data set" in refusal(f"https://huggingface.co/datasets/{REPO}")
    assert len(hub.asked) == asked


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


METHODS = ("fp8", "gptq", "awq", "mxfp4", "bitsandbytes", "compressed-tensors", "hqq", "fbgemm_fp8")


def changed(hub, folder: Path, **config) -> Path:
    """Another model of the hub, "someone/other": `checkpoint` with these words in its config."""
    shutil.copytree(hub.models[REPO], folder)
    words = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(words))
    hub.models["someone/other"] = folder
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_a_quantized_model_is_refused_before_any_weights_move(hub, tmp_path, method):
    changed(hub, tmp_path / "other", quantization_config={"quant_method": method})
    assert f"quantized with {method}" in refusal("someone/other")
    assert not moved(hub) and not hub.peeked


@pytest.mark.parametrize(("dtype", "ending"), [("F8_E4M3", ""), ("I8", ""), ("F32", "_blocks")])
def test_codes_that_no_configuration_names_are_refused_by_the_headers(hub, tmp_path, dtype, ending):
    folder = changed(hub, tmp_path / "other")
    path = sorted(folder.glob("model-*.safetensors"))[-1]
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    name = next(key for key in header if key.endswith("weight"))
    entry = header.pop(name)
    width = {"F8_E4M3": 1, "I8": 1, "F32": 4}[dtype]
    entry |= {
        "dtype": dtype,
        "shape": [(entry["data_offsets"][1] - entry["data_offsets"][0]) // width],
    }
    header[name + ending] = entry
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    assert name + ending in refusal("someone/other")
    with pytest.raises(mc.MoEColabError, match="use the original weights"):
        mc.quantize("someone/other", tmp_path / "store", **OPTIONS)
    assert not moved(hub)


def test_what_cannot_be_offloaded_is_refused_before_any_weights_move(hub, tmp_path):
    dense = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1}
    dense |= {"num_attention_heads": 4, "vocab_size": 64, "intermediate_size": 32}
    changed(hub, tmp_path / "dense", **dense)
    assert "'llama'" in refusal("someone/other")
    folder = changed(hub, tmp_path / "other")
    for path in folder.glob("model*safetensors*"):
        path.unlink()
    assert "model.safetensors" in refusal("someone/other")
    assert not moved(hub)


def test_too_little_disk_is_said_before_the_weights_move(hub, checkpoint, monkeypatch):
    shards = weights(checkpoint)
    load(revision=COMMIT)[0].offload.close()
    store = next(Path(os.environ["MOE_COLAB_CACHE"]).glob(f"*/{NAME}")).parent
    need = sum(shards.values())
    shutil.rmtree(store)
    hub.sent.clear()
    monkeypatch.setattr(pack, "free_disk", lambda folder: need)  # the store, without headroom
    message = refusal()
    assert "of disk" in message and "MOE_COLAB_CACHE" in message
    assert not moved(hub)
    two = sum(sorted(shards.values())[-2:])
    monkeypatch.setattr(pack, "free_disk", lambda folder: need + DISK_HEADROOM + two + (30 << 20))
    load()[0].offload.close()
    monkeypatch.setattr(pack, "free_disk", lambda folder: 0)
    load()[0].offload.close()  # packed


def test_offline_the_cache_is_enough(hub, monkeypatch):
    load()[0].offload.close()
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    load()[0].offload.close()  # the store
    assert not hub.asked
    assert "offline mode is on" in refusal("someone/never-seen")
    shutil.rmtree(os.environ["MOE_COLAB_CACHE"])
    assert "offline mode is on" in refusal()
    assert not hub.asked


def test_a_hub_that_is_not_there(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert REPO in refusal()


@pytest.mark.parametrize("name", ["a/b/c", "/x/y", "org/na me", "../models", "name"])
def test_what_is_no_repo_id_is_not_asked_for(hub, name):
    assert "does not exist" in refusal(name)
    assert not hub.asked
