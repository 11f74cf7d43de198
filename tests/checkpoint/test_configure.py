"""Settings of a finished store, changed without making it again."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import TINY_MOE
from families import make_checkpoint, reference
from transformers import AutoTokenizer, GenerationConfig

import moe_colab as mc
from moe_colab.__main__ import main
from moe_colab.checkpoint.reader import Checkpoint
from moe_colab.quantization.pack import pack

IDS = torch.arange(5, 25)[None]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def stored(source, folder):
    checkpoint = Checkpoint(source)
    pack(checkpoint, folder, checkpoint.dtype(), progress=False)
    return folder


@pytest.fixture
def store(tmp_path):
    return stored(TINY_MOE, tmp_path / "store")


def weights(folder) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "hunyuan_v1_moe", "ernie4_5_moe"])
@pytest.mark.parametrize("top_k", [1, 4])
def test_top_k_is_that_of_the_plain_model_with_the_same_setting(tmp_path, family, top_k):
    source = make_checkpoint(family, tmp_path / "model")
    folder = stored(source, tmp_path / "store")
    before, files = mc.load(folder, progress=False)[0](IDS).logits, weights(folder)
    mc.configure(folder, top_k=top_k)
    plain = json.loads((source / "config.json").read_text())
    for name in ("num_experts_per_tok", "moe_topk", "moe_k"):
        if name in plain:
            both = isinstance(plain[name], list)
            plain[name] = [top_k] * len(plain[name]) if both else top_k
    (source / "config.json").write_text(json.dumps(plain))
    after = mc.load(folder, slots=2, progress=False)[0](IDS).logits
    assert torch.equal(after, reference(source)(IDS).logits) and not torch.equal(after, before)
    assert weights(folder) == files
    mc.verify(folder)


def test_a_chat_template_and_generation_settings(store):
    changes = {"temperature": 0.5, "do_sample": True, "max_new_tokens": 7}
    mc.configure(store, chat_template=TEMPLATE, generation=changes)
    model, tokenizer = mc.load(store, progress=False)
    hello = [{"role": "user", "content": "Hello"}]
    assert tokenizer.apply_chat_template(hello, tokenize=False) == "<user>Hello<assistant>"
    assert AutoTokenizer.from_pretrained(store).chat_template == TEMPLATE
    kept = GenerationConfig.from_pretrained(TINY_MOE).to_diff_dict()
    assert model.generation_config.to_diff_dict() == {**kept, **changes}
    mc.configure(store, generation={"temperature": None})
    assert mc.load(store, progress=False)[0].generation_config.temperature in (None, 1.0)
    mc.verify(store)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"top_k": 0}, "top_k must be 1 to 8"),
        ({"top_k": 9}, "top_k must be 1 to 8"),
        ({"top_k": True}, "top_k must be 1 to 8"),
        ({"chat_template": "{% for %}"}, "this chat template cannot be used"),
        ({"chat_template": "{{ raise_exception('no') }}"}, "cannot be used: no"),
        ({"chat_template": "always the same"}, "leaves the message out"),
        ({"generation": {"temprature": 1.0}}, "no generation setting 'temprature'"),
        ({"generation": {"temperature": "hot"}}, "these settings cannot be used"),
        ({"generation": {"eos_token_id": object()}}, "these settings cannot be used"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_used_changes_nothing(store, wrong, match):
    before = {path.name: path.read_bytes() for path in store.iterdir()}
    with pytest.raises(mc.MoEColabError, match=match):
        mc.configure(store, **wrong)
    assert {path.name: path.read_bytes() for path in store.iterdir()} == before


def test_only_a_finished_store_has_settings(tmp_path):
    shutil.copytree(TINY_MOE, tmp_path / "model", ignore=shutil.ignore_patterns("training"))
    with pytest.raises(mc.MoEColabError, match="not a finished store"):
        mc.configure(tmp_path / "model", top_k=1)


def test_on_the_command_line(store, tmp_path, capsys):
    (tmp_path / "template").write_text(TEMPLATE)
    arguments = ["--top-k", "1", "--chat-template", str(tmp_path / "template")]
    settings = ["--set", "temperature=0.25", "--set", "do_sample=true", "--json"]
    assert main(["configure", str(store), *arguments, *settings]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == 8
    model, tokenizer = mc.load(store, progress=False)
    assert model.config.num_experts_per_tok == 1 and tokenizer.chat_template == TEMPLATE
    assert model.generation_config.temperature == 0.25
    assert main(["configure", str(store), "--set", "temperature=very"]) == 2
    assert "cannot be used" in capsys.readouterr().err
