"""Model families of transformers: finds experts, routers and linear layers in any of them.

Knows the attributes with which transformers marks an experts module, which holds the fused
parameters of all experts of a layer; the router is the `gate` or `router` beside it. Knows no class
names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import MoEColabError

MARKS = ("has_gate", "has_bias", "is_transposed", "is_concatenated")
ROUTING = ("gate", "router")  # the names of a router
LEAST_ROWS = 32  # of a linear layer in low bits: fewer are not worth their scales
TOP_K = "num_experts_per_tok moe_k moe_topk top_k_experts num_experts_per_token".split()
# Model types whose eager experts sum in float32, whatever the dtype.
ACCUMULATES_IN_FP32 = frozenset({"nemotron_h"})


def experts_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, experts module) of every MoE layer, in execution order."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if all(hasattr(module, mark) for mark in MARKS)
    ]


def parameter_names(experts: nn.Module) -> list[str]:
    """The names of the module's fused parameters [E, ...]; each expert has one part of each."""
    up = "gate_up_proj" if experts.has_gate else "up_proj"
    names = [up, "down_proj"]
    return names + [f"{name}_bias" for name in names] if experts.has_bias else names


def expert_shapes(name: str, experts: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of one expert. Raises MoEColabError for a module with other
    parameters than moe_colab knows."""
    own = {
        key: parameter for key, parameter in experts._parameters.items() if parameter is not None
    }
    wanted = parameter_names(experts)
    if set(own) != set(wanted):
        raise MoEColabError(
            f"the experts of {name} hold {sorted(own)} where moe_colab knows {sorted(wanted)}."
        )
    return {key: tuple(own[key].shape[1:]) for key in wanted}


def router_of(model: nn.Module, experts_name: str) -> nn.Module | None:
    """The router of these experts, None where it is not found; its forward returns (logits,
    weights, indices, ...)."""
    block = model.get_submodule(experts_name.rpartition(".")[0])
    candidates = (getattr(block, name, None) for name in ROUTING)
    return next((module for module in candidates if isinstance(module, nn.Module)), None)


def decoder_layer(model: nn.Module, experts_name: str) -> nn.Module:
    """The numbered layer that contains these experts; their MoE block where no name is a number."""
    parts = experts_name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return model.get_submodule(".".join(parts[: numbers[-1] + 1] if numbers else parts[:-1]))


def block_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the decoder's blocks by name: attention, dense layers, shared experts;
    without routers, gates and layers of few rows."""
    names = experts_modules(model)[0][0].split(".")
    paths = (".".join(names[:length]) for length in range(1, len(names)))
    blocks = next((p for p in paths if isinstance(model.get_submodule(p), nn.ModuleList)), None)
    if blocks is None:
        return {}
    return {
        f"{blocks}.{name}": module
        for name, module in model.get_submodule(blocks).named_modules()
        if type(module) is nn.Linear
        and module.out_features >= LEAST_ROWS
        and not any(part in ROUTING or part.endswith("_gate") for part in name.split("."))
    }


def vocabulary(model: nn.Module) -> dict[str, nn.Linear | nn.Embedding]:
    """The input embedding and the output head by name, where they are of torch's own classes."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, nn.Embedding) and any(module is end for end in ends)
    }


def router_logits(output: Any, experts: int) -> torch.Tensor | None:
    """The logits [T, E] in a router's output: its first floating tensor with one column per
    expert."""
    parts = output if isinstance(output, (tuple, list)) else (output,)
    for part in parts:
        if torch.is_tensor(part) and part.is_floating_point() and part.shape[-1] == experts:
            return part.reshape(-1, experts)
    return None


def sum_dtype(model_type: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which transformers' eager code adds up the experts' outputs."""
    return torch.float32 if model_type in ACCUMULATES_IN_FP32 else dtype


def top_k(config: Any) -> int:
    """Experts per token, under any name that a family uses; 1 where there is none."""
    text = config.get_text_config()
    for name in TOP_K:
        value = getattr(text, name, None)
        if value is not None:
            return max(value) if isinstance(value, (list, tuple)) else int(value)
    return 1
