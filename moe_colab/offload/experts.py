"""The experts function: what every MoE layer of an offloaded model computes.

Registered with transformers as "moe_colab". Knows the math of an experts module and the order in
which the eager implementation adds; takes each expert's weights from the layer. Knows nothing of
where they come from.

Legend: T tokens in this call (all rows), H hidden, I expert intermediate, E experts in the layer, K
top-k.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import MoEColabError
from ..machine.interrupts import deferred_interrupts
from ..quantization.kernels import LowBitWeight

NAME = "moe_colab"


@dataclass(frozen=True)
class TokensByExpert:
    """The tokens of a call, sorted by expert, as the expert's matrix products take them.

    experts: the distinct experts, ascending. rows: one (token, top-k position, rank) for every
    choice of the router, sorted by expert, then as eager sorts them: by position, then by token;
    expert i has rows[:, bounds[i] : bounds[i + 1]]. rank: where the expert stands among its token's
    experts sorted by id, the order in which eager adds.
    """

    experts: list[int]
    bounds: list[int]
    rows: np.ndarray  # int64 [3, rows]

    @classmethod
    def of(cls, index: np.ndarray, n_experts: int) -> TokensByExpert:
        """From the router's choice [T, K] on the host; ids past the last expert mean no expert."""
        T, K = index.shape
        flat = index.T.reshape(-1)  # position-major
        order = np.argsort(flat, kind="stable")
        order = order[flat[order] < n_experts]
        position, token = np.divmod(order, T)
        rank = np.argsort(np.argsort(index, axis=1, kind="stable"), axis=1)[token, position]
        experts, starts = np.unique(flat[order], return_index=True)
        return cls(
            experts.tolist(), [*starts.tolist(), len(order)], np.stack([token, position, rank])
        )


@torch.compiler.disable
def experts_forward(
    module: torch.nn.Module,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """hidden_states [T, H], top_k_index [T, K] int, top_k_weights [T, K] -> [T, H].

    Experts are computed in whatever order their weights arrive; their outputs are added in eager's
    order and dtype, so that the result equals that of the model with all experts in memory. Raises
    MoEColabError in a model that mc.load did not make, with gradients, and for an input of another
    dtype or device.
    """
    layer = getattr(module, "moe_colab_layer", None)
    if layer is None:
        raise MoEColabError(
            "this model's experts were never loaded: load it with moe_colab.load()."
        )
    if torch.is_grad_enabled() and (hidden_states.requires_grad or top_k_weights.requires_grad):
        raise MoEColabError(
            "an offloaded model cannot be trained: run it under torch.no_grad() or "
            "inference_mode()."
        )
    layer.check_input(hidden_states)
    layer.runtime.check_stop()
    with layer.runtime.lock, deferred_interrupts():
        layer.runtime.pool.check_open()
        routing = layer.routing(top_k_index)
        groups = TokensByExpert.of(routing.index, module.num_experts)
        rows = torch.from_numpy(groups.rows).to(hidden_states.device, non_blocking=True)
        outputs = hidden_states.new_zeros(
            (*top_k_index.shape, hidden_states.shape[1]), dtype=layer.sum_dtype(hidden_states.dtype)
        )
        parts = {
            expert: slice(*groups.bounds[i : i + 2]) for i, expert in enumerate(groups.experts)
        }
        for expert, weights in layer.weights(groups.experts, routing):
            if expert not in parts:  # loaded because the whole layer is
                continue
            token, position, rank = rows[:, parts[expert]]
            out = expert_mlp(module, hidden_states[token], weights)
            if layer.listener is not None:
                layer.listener.expert(expert, token, out)
            out = out * top_k_weights[token, position, None]
            outputs[token, rank] = out.to(outputs.dtype)
        total = torch.zeros_like(outputs[:, 0])
        for rank in range(outputs.shape[1]):
            total += outputs[:, rank]
        total = total.to(hidden_states.dtype)
        if layer.listener is not None:
            layer.listener.layer(hidden_states, top_k_index, top_k_weights, total)
    return total


def expert_mlp(
    module: torch.nn.Module, x: torch.Tensor, weights: dict[str, torch.Tensor | LowBitWeight]
) -> torch.Tensor:
    """One expert on its rows: x [rows, H] -> [rows, H], as the module's eager forward computes."""

    def product(x: torch.Tensor, name: str) -> torch.Tensor:
        weight = weights[name]
        if isinstance(weight, LowBitWeight):
            out = weight.linear(x)
        else:
            out = x @ weight if module.is_transposed else F.linear(x, weight)
        return out + weights[f"{name}_bias"] if module.has_bias else out

    if module.has_gate:
        x = module._apply_gate(product(x, "gate_up_proj"))
    else:
        x = module.act_fn(product(x, "up_proj"))
    x = product(x, "down_proj")
    # Only newer versions of transformers have a norm after an expert.
    return module.post_expert_norm(x) if getattr(module, "has_post_expert_norm", False) else x


def refuse_copies(*_) -> None:
    """Raises MoEColabError, for `copy` and `pickle`."""
    raise MoEColabError("an offloaded model cannot be copied or pickled: load it a second time.")


@functools.cache
def offloaded_class(experts_class: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """The class of an experts module that computes with `experts_forward`, whatever implementation
    the configuration names: `set_experts_implementation` changes nothing."""
    own = {
        "forward": experts_forward,
        "__reduce_ex__": refuse_copies,
        "__module__": experts_class.__module__,
    }
    return type(experts_class.__name__, (experts_class,), own)
