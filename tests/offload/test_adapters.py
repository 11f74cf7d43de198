"""Adapters of peft on an offloaded model, compared with the same adapter on the plain model."""

from __future__ import annotations

import pytest
import torch
from families import make_checkpoint, reference
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import moe_colab as mc

IDS = torch.arange(5, 25)[None]
EXPERTS = ["experts.gate_up_proj"]
pytestmark = [pytest.mark.slow, pytest.mark.colab]


def make_adapter(source, folder, **wanted):
    torch.manual_seed(1)
    settings = LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, **wanted)
    get_peft_model(AutoModelForCausalLM.from_pretrained(source), settings).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "wanted"),
    [
        ("mixtral", {"target_modules": ["q_proj", "o_proj"]}),
        ("mixtral", {"target_modules": ["gate"]}),  # the router
        ("qwen3_moe", {"target_modules": ["lm_head"], "modules_to_save": ["embed_tokens"]}),
        ("qwen2_moe", {"target_modules": ["shared_expert.down_proj"]}),
        ("deepseek_v3", {"target_modules": ["o_proj", "q_a_proj"]}),
    ],
)
def test_adapters_outside_the_experts_give_the_same_logits(tmp_path, family, wanted):
    source = make_checkpoint(family, tmp_path / "model")
    adapter = make_adapter(source, tmp_path / "adapter", **wanted)
    with torch.no_grad():
        plain = PeftModel.from_pretrained(reference(source), adapter).eval()(IDS).logits
        model, _ = mc.load(source, slots=2, progress=False)
        by_peft = PeftModel.from_pretrained(model, adapter).eval()(IDS).logits
        other, _ = mc.load(source, slots=2, progress=False)
        other.load_adapter(adapter)
        assert not torch.equal(plain, reference(source)(IDS).logits), "the adapter does something"
        assert torch.equal(by_peft, plain)
        assert torch.equal(other(IDS).logits, plain)


@pytest.mark.parametrize(
    ("family", "wanted"),
    [
        ("mixtral", {"target_modules": "all-linear", "target_parameters": EXPERTS}),
        ("qwen3_moe", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
        ("gpt_oss", {"target_modules": ["v_proj"], "target_parameters": EXPERTS}),
        ("deepseek_v3", {"target_modules": ["o_proj"], "target_parameters": EXPERTS}),
    ],
)
def test_adapters_of_experts_are_refused_by_name(tmp_path, family, wanted):
    source = make_checkpoint(family, tmp_path / "model")
    adapter = make_adapter(source, tmp_path / "adapter", **wanted)
    model, _ = mc.load(source, slots=2, progress=False)
    with torch.no_grad():
        before = model(IDS).logits
        with pytest.raises(mc.MoEColabError, match=r"routed experts \(.*layers\.\d\..*experts"):
            model.load_adapter(adapter)
        assert torch.equal(model(IDS).logits, before)
        with pytest.raises(mc.MoEColabError, match="merge it into the checkpoint"):
            PeftModel.from_pretrained(mc.load(source, progress=False)[0], adapter)


def test_an_adapter_made_for_experts_one_by_one_is_refused_too(tmp_path):
    """As older versions of transformers name them."""
    source = make_checkpoint("qwen3_moe", tmp_path / "model")
    model, _ = mc.load(source, slots=2, progress=False)
    name = "model.layers.0.mlp.experts.3.up_proj.lora_A.default.weight"
    with pytest.raises(mc.MoEColabError, match=r"experts\.3\.up_proj"):
        model.load_state_dict({name: torch.zeros(1)}, strict=False)


@pytest.mark.parametrize("with_model", [True, False])
def test_an_adapter_where_a_model_is_expected_is_refused_before_packing(
    tmp_path, cache_folder, with_model
):
    source = make_checkpoint("mixtral", tmp_path / "model")
    adapter = make_adapter(source, tmp_path / "adapter", target_modules=["q_proj"])
    if with_model:
        for path in adapter.glob("adapter*"):
            path.rename(source / path.name)
    stores = set(cache_folder.iterdir()) if cache_folder.exists() else set()
    match = "beside the weights: move" if with_model else "is an adapter .* not a model"
    with pytest.raises(mc.MoEColabError, match=match):
        mc.load(source if with_model else adapter, progress=False)
    assert (set(cache_folder.iterdir()) if cache_folder.exists() else set()) == stores
