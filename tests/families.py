"""Tiny models of many families: 3 layers, 8 experts, top-2, with experts that are all different."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, MixtralConfig, MixtralForCausalLM

import moe_colab as mc
from moe_colab.bench import toys
from moe_colab.bench.toys import reference as reference
from moe_colab.bench.toys import save_random
from moe_colab.cache.homes import DiskHome
from moe_colab.checkpoint.families import experts_modules
from moe_colab.offload.slots import Block
from moe_colab.quantization import bits
from moe_colab.quantization.recipe import LOWBIT_TRANSPOSED, format_of
from moe_colab.store import BlobLayout

COMMON = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
LOCAL = {"num_local_experts": 8, "num_experts_per_tok": 2}
DEEPSEEK, LATENT = ({**of, "num_experts_per_tok": 2} for of in (toys.DEEPSEEK, toys.LATENT))
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
FULL = {"layer_types": ["full_attention"] * 3}

PROMISED = {
    "mixtral": LOCAL,
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**EXPERTS, "norm_topk_prob": True},
    "gpt_oss": {
        **LOCAL,
        "head_dim": 8,
        "sliding_window": 16,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    "granitemoe": LOCAL,
    "phimoe": LOCAL,
    "deepseek_v3": LATENT,
    "glm4_moe": {**DEEPSEEK, "n_group": 2, "topk_group": 1, "head_dim": 8},
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": 2, "head_dim": 8},
}
OTHERS = {
    "deepseek_v2": {**LATENT, "topk_method": "group_limited_greedy"},
    "granitemoeshared": {**LOCAL, "shared_intermediate_size": 16},
    "minimax_m2": {**LOCAL, "head_dim": 8},
    "ernie4_5_moe": {
        "moe_num_experts": 8,
        "moe_k": 2,
        "moe_intermediate_size": 16,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
    },
    "lfm2_moe": {
        **EXPERTS,
        "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention", "conv"],
    },
    "jamba": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 1,
        "expert_layer_offset": 0,
        "use_mamba_kernels": False,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "flex_olmo": {"num_experts": 8, "num_experts_per_tok": 2},
    "dots1": {**DEEPSEEK, "n_group": 1, "topk_group": 1, "head_dim": 8},
    "afmoe": {**EXPERTS, **FULL, "num_dense_layers": 1, "num_shared_experts": 1},
    "qwen3_next": {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 16},
    "nemotron_h": {
        **DEEPSEEK,
        "n_group": 2,
        "topk_group": 1,
        "moe_shared_expert_intermediate_size": 16,
        "head_dim": 8,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 2,
        "layers_block_type": ["moe", "attention", "moe"],
    },
    "solar_open": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "n_shared_experts": 1,
        "head_dim": 8,
    },
    "granitemoehybrid": {
        **LOCAL,
        "shared_intermediate_size": 16,
        "layer_types": ["attention"] * 3,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
    },
    "glm4_moe_lite": LATENT,
}
FAMILIES = {**PROMISED, **OTHERS}


def small_mixtral(**changes) -> MixtralForCausalLM:
    """2 layers, 8 experts, top-2, fp32; the same weights every time."""
    torch.manual_seed(0)
    config = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }
    return MixtralForCausalLM(MixtralConfig(**{**config, **changes}))


def tiny_config(family: str, **changes):
    return CONFIG_MAPPING[family](**{**COMMON, **FAMILIES[family], **changes})


def make_checkpoint(
    family: str,
    folder: Path,
    dtype=torch.float32,
    seed: int = 0,
    changes: dict | None = None,
    **save,
) -> Path:
    """A saved model of random weights, wide enough apart that every expert and every route
    counts; `changes` of its tiny configuration."""
    return save_random(tiny_config(family, **(changes or {})), folder, dtype, seed, **save)


def with_weights_of(store: Path, plain: torch.nn.Module) -> torch.nn.Module:
    """The plain model with a store's dequantized weights, of experts and of everything else, in the
    place of its own."""
    store = mc.Store(store)
    for (_, module), entry, homes in zip(
        experts_modules(plain), store.manifest.layers, store.homes, strict=True
    ):
        for expert, home in enumerate(homes):
            for name, weight in weights_in(home, entry.layout).items():
                getattr(module, name).data[expert].copy_(weight)
    outside = store.manifest.low_bit.matrices if store.manifest.low_bit else ()
    for matrix, home in zip(outside, store.dense_homes, strict=True):
        (weight,) = weights_in(home, matrix.layout).values()
        for name in matrix.modules:
            into = plain.get_submodule(name).weight.data
            assert matrix.modules[0] != name or not torch.equal(into, weight)
            into.copy_(weight)
    return plain


def weights_in(home: DiskHome, layout: BlobLayout) -> dict[str, torch.Tensor]:
    """What a blob holds, dequantized in float32, as the module keeps it."""
    raw = torch.empty(home.nbytes, dtype=torch.uint8)
    for _ in home.fill(memoryview(raw.numpy())):
        pass
    block, out = Block(raw, None), {}
    for matrix in layout.matrices:
        fields = {field.name: block._view(field) for field in matrix.fields}
        if matrix.packing == "none":
            out[matrix.name] = fields["weight"]
            continue
        transposed = matrix.packing == LOWBIT_TRANSPOSED
        shape = tuple(reversed(matrix.shape)) if transposed else matrix.shape
        weight = bits.dequantize(fields, format_of(matrix), shape, torch.float32)
        out[matrix.name] = weight.T if transposed else weight
    return out
