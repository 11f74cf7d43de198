"""The tokenizer of mc.load: found before any work, and another one or none where it cannot be."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY_MOE
from fake_hub import FakeHub
from families import make_checkpoint, reference
from transformers import AutoTokenizer

import moe_colab as mc
from moe_colab.__main__ import main
from moe_colab.store.manifest import NAME

pytestmark = pytest.mark.colab
IDS = torch.arange(3, 40)[None]
FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def own_code(folder: Path) -> None:
    own = {"tokenizer_class": "HYTokenizer"}
    own["auto_map"] = {"AutoTokenizer": ["tokenization_hy.HYTokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    (folder / "tokenization_hy.py").write_text("raise SystemExit('it was run')")
    (folder / "hy.tiktoken").write_text("IQ== 0\n")


def own_code_by_the_configuration(folder: Path) -> None:
    own_code(folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": "tokenization_hy.HYTokenizer"}
    (folder / "config.json").write_text(json.dumps(config))


def damaged_sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"\x00" * 100)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')


def damaged(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("garbage")


def no_json(folder: Path) -> None:
    shutil.copy(TINY_MOE / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text("[]")


BAD = (own_code, own_code_by_the_configuration, damaged_sentencepiece, damaged, no_json)


@pytest.fixture(params=["mixtral", "hunyuan_v1_moe", "qwen3_moe"])
def folder(request, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MOE_COLAB_CACHE", str(tmp_path / "cache"))
    return make_checkpoint(request.param, tmp_path / "model")


@pytest.fixture
def other(tmp_path) -> Path:
    """A folder with nothing but a tokenizer."""
    (tmp_path / "other").mkdir()
    for name in FILES:
        shutil.copy(TINY_MOE / name, tmp_path / "other")
    return tmp_path / "other"


def stores() -> list[Path]:
    return list(Path(os.environ["MOE_COLAB_CACHE"]).rglob(NAME))


def refusal(*args, **kwargs) -> str:
    with pytest.raises(mc.MoEColabError) as caught:
        mc.load(*args, progress=False, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("spoil", BAD)
def test_one_that_cannot_be_loaded_is_found_before_the_packing_and_may_be_left_out(folder, spoil):
    spoil(folder)
    for _ in range(2):
        message = refusal(folder)
        assert "tokenizer" in message and "tokenizer=False" in message
        assert ("code of its own" in message) == (spoil in BAD[:2])
        assert not stores()
    model, tokenizer = mc.load(folder, tokenizer=False, progress=False)
    with model.offload, torch.no_grad():
        assert tokenizer is None
        assert torch.equal(model(IDS).logits, reference(folder)(IDS).logits)
    (store,) = stores()
    assert "tokenizer=False" in refusal(store.parent)
    mc.load(store.parent, tokenizer=False, progress=False)[0].offload.close()


@pytest.mark.parametrize("way", ["a path", "text", "an object", "a store"])
def test_another_one_may_be_given(folder, other, way):
    own_code(folder)
    given = AutoTokenizer.from_pretrained(other)
    source = folder
    if way == "a store":
        mc.load(folder, tokenizer=False, progress=False)[0].offload.close()
        (found,) = stores()
        source = found.parent
    choice = {"a path": other, "text": str(other), "an object": given, "a store": other}[way]
    model, tokenizer = mc.load(source, tokenizer=choice, progress=False)
    model.offload.close()
    assert tokenizer("I need a flight").input_ids == given("I need a flight").input_ids
    assert way != "an object" or tokenizer is given


@pytest.mark.parametrize("choice", [5, [], {}, "nowhere", Path("/nowhere"), object()])
def test_what_is_no_tokenizer_is_named_before_the_packing(folder, choice):
    refusal(folder, tokenizer=choice)
    assert not stores()


def test_a_folder_without_one_is_named(folder, tmp_path):
    bare = make_checkpoint("mixtral", tmp_path / "bare")
    assert "has no tokenizer" in refusal(folder, tokenizer=bare)
    model, tokenizer = mc.load(folder, progress=False)
    model.offload.close()
    assert tokenizer is None


def test_no_weights_move_before_the_tokenizer_is_found(folder, other, monkeypatch, tmp_path):
    own_code(folder)
    hub = FakeHub()
    hub.models |= {"org/model": folder, "org/tokenizer": other}
    with hub.reachable(monkeypatch, tmp_path):
        assert "code of its own" in refusal("org/model")
        assert "model.safetensors" not in hub.sent and "tokenization_hy.py" not in hub.sent
        model, tokenizer = mc.load("org/model", tokenizer="org/tokenizer", progress=False)
        with model.offload, torch.no_grad():
            assert torch.equal(model(IDS).logits, reference(folder)(IDS).logits)
        assert tokenizer("a flight").input_ids
        assert "org/nothing" in refusal("org/model", tokenizer="org/nothing")


def test_the_command_line_takes_another_one(other, tmp_path, capsys):
    spoilt = Path(shutil.copytree(TINY_MOE, tmp_path / "spoilt"))
    (spoilt / "tokenizer.json").unlink()
    own_code(spoilt)
    ask = ["chat", str(spoilt), "--prompt", "hi", "--max-new-tokens", "3"]
    assert main(ask) == 2 and "of its own" in capsys.readouterr().err
    assert main([*ask, "--tokenizer", str(other)]) == 0
    assert capsys.readouterr().out
