"""Models with several parts (pictures, sound) whose causal language model is the text part, or is
the whole: loaded and quantized as plain transformers loads them."""

from __future__ import annotations

import pytest
import torch
from families import reference, with_weights_of
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageTextToText

import moe_colab as mc
from moe_colab.checkpoint.reader import Checkpoint

IDS = torch.arange(5, 25)[None]
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}
LINEAR = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
PICTURES = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
    "num_position_embeddings": 16,
}
TOKENS = {
    "image_token_id": 60,
    "video_token_id": 61,
    "vision_start_token_id": 62,
    "vision_end_token_id": 63,
}
GEMMA_PICTURES = {
    **dict.fromkeys(("hidden_size", "intermediate_size"), 16),
    **{"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8},
}
MODELS = {
    "qwen3_5_moe": {"text_config": {**TEXT, **LINEAR}, "vision_config": PICTURES, **TOKENS},
    "qwen3_5_moe, tied": {
        "text_config": {**TEXT, **LINEAR, "tie_word_embeddings": True},
        "vision_config": PICTURES,
        "tie_word_embeddings": True,
        **TOKENS,
    },
    "gemma4": {
        "text_config": {
            **TEXT,
            **{"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
            **{"enable_moe_block": True, "hidden_size_per_layer_input": 0},
            "vocab_size_per_layer_input": 64,
        },
        "vision_config": GEMMA_PICTURES,
        "audio_config": None,
        "image_token_id": 60,
    },
}
NEWER = {  # families that not every version of transformers has
    "qwen4_exp": {
        "text_config": {
            **TEXT,
            **LINEAR,
            "indexer_budget": 16,
            "indexer_compress_ratio": 4,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
        },
        "vision_config": PICTURES,
        **TOKENS,
    }
}
pytestmark = [pytest.mark.slow, pytest.mark.colab]


@pytest.fixture(params=[*MODELS, *NEWER])
def source(request, tmp_path):
    """A checkpoint that was saved by the class with all parts, in bfloat16."""
    family = request.param.partition(",")[0]
    if family not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers has no {family}")
    config = CONFIG_MAPPING[family](**{**MODELS, **NEWER}[request.param])
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and parameter.dim() > 1:
                parameter.normal_(std=0.2)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_it_gives_the_logits_of_the_plain_model(source):
    plain = reference(source, dtype=torch.bfloat16)
    model, _ = mc.load(source, slots=2, progress=False)
    assert type(model) is type(plain) and model.dtype == torch.bfloat16
    assert torch.equal(model(IDS).logits, plain(IDS).logits)
    settings = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(IDS, **settings), plain.generate(IDS, **settings))
    with mc.record(model) as trace:
        model(IDS)
    assert trace.steps == 1 and mc.replay(trace, slots=2).accesses > 0


def test_a_quantized_store_of_it_loads(source, tmp_path):
    full = mc.quantize(source, tmp_path / "full", expert_bits=16, attention_bits=16, progress=False)
    mc.quantize(source, tmp_path / "low", expert_bits=8, attention_bits=8, progress=False)
    want = reference(source, dtype=torch.bfloat16)(IDS).logits
    assert torch.equal(mc.load(full.store, progress=False)[0](IDS).logits, want)
    low, _ = mc.load(tmp_path / "low", kernels="plain", progress=False)
    right = with_weights_of(tmp_path / "low", reference(source, dtype=torch.bfloat16))
    assert torch.equal(low(IDS).logits, right(IDS).logits)


def test_parts_that_are_not_run_are_not_stored(source):
    """Where the causal language model is the text part alone."""
    checkpoint = Checkpoint(source)
    plain = reference(source, dtype=torch.bfloat16)
    wanted = {name for name in plain.state_dict() if ".experts." not in name}
    if plain.config.tie_word_embeddings:
        wanted.discard("lm_head.weight")
    assert len(checkpoint.dense_entries()) == len(wanted)


def test_one_without_a_causal_language_model_is_refused_at_once(tmp_path):
    config = CONFIG_MAPPING["qwen3_vl_moe"]()
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "qwen3_vl_moe"
    with pytest.raises(mc.MoEColabError, match="'qwen3_vl_moe' is not a causal language model"):
        mc.load(tmp_path, progress=False)
