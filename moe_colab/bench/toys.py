"""Tiny models of random weights, and what they compute: offloaded by moe_colab, and plain.

Knows configurations of a few families; knows no benchmark.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig

import moe_colab as mc

from ..checkpoint.reader import Checkpoint
from ..quantization.pack import pack
from ..store.journal import JOURNAL
from ..store.manifest import NAME

COMMON = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DEEPSEEK = {  # its experts
    "n_routed_experts": 8,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
LATENT = {  # and its attention
    **DEEPSEEK,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 2,
    "topk_group": 1,
    "num_key_value_heads": 4,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 8},
    "olmoe": {"num_experts": 8},
    "qwen3_moe": {"num_experts": 8, "moe_intermediate_size": 16, "head_dim": 8},
    "gpt_oss": {
        "num_local_experts": 8,
        "head_dim": 8,
        "sliding_window": 16,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "deepseek_v3": LATENT,
}
IDS = torch.arange(3, 20)[None]
NEW_TOKENS = 6


# ---------------------------------------------------------------------- files
def make_checkpoint(family: str, folder: Path, **save: Any) -> Path:
    """A checkpoint of 2 layers, 8 experts, top-2; `save`: arguments of `save_pretrained`."""
    return save_random(CONFIG_MAPPING[family](**{**COMMON, **FAMILIES[family]}), folder, **save)


def save_random(
    config: PretrainedConfig,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **save: Any,
) -> Path:
    """A saved model of random weights, wide enough apart that every expert and every route
    counts."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and parameter.dim() > 0:
                parameter.normal_(std=0.2)
    model.to(dtype).save_pretrained(folder, **save)
    return folder


def make_store(checkpoint: Path, folder: Path) -> Path:
    """A store of the checkpoint, in its own dtype."""
    source = Checkpoint(checkpoint)
    pack(source, folder, source.dtype(), progress=False)
    return folder


def quantize(checkpoint: Path, folder: Path) -> Path:
    """A store of the checkpoint in few bits; the one that is there if it is finished."""
    if not (folder / NAME).exists():
        options = {"expert_bits": 4, "attention_bits": 8, "check": False, "progress": False}
        mc.quantize(checkpoint, folder, **options)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a store by name. A finished one may have a journal: a packing that was killed
    could not remove it."""
    paths = (path for path in folder.iterdir() if path.name != JOURNAL)
    return {path.name: path.read_bytes() for path in paths}


# ---------------------------------------------------------------------- results
def reference(folder: Path, **load: Any) -> transformers.PreTrainedModel:
    """The plain model, its experts computed by transformers' eager code, its weights in memory of
    their own: mapped views are not aligned, and products on them may differ in the last bit."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, experts_implementation="eager", **load
    ).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.requires_grad_(False)


def plain_logits(folder: Path) -> torch.Tensor | None:
    """The plain model's logits of IDS; None where it does not load, or cannot compute."""
    try:
        model = reference(folder)
        with torch.no_grad():
            return model(IDS).logits
    except Exception:
        return None


def logits(folder: Path) -> torch.Tensor | None:
    """The offloaded model's logits of IDS; None where transformers' own code cannot compute."""
    model, _ = mc.load(folder, progress=False, speculate=0)
    with model.offload, torch.no_grad():
        try:
            return model(IDS).logits
        except mc.MoEColabError:
            raise
        except Exception:
            return None


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two results are equal bit by bit; NaNs are."""
    if one is None or other is None:
        return one is other
    return torch.equal(one.nan_to_num(7), other.nan_to_num(7))


def tokens(model: transformers.PreTrainedModel) -> list[int]:
    """NEW_TOKENS greedy tokens after IDS."""
    out = model.generate(
        IDS,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )
    return out[0, IDS.shape[1] :].tolist()
