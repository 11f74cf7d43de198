"""Prefetcher: guesses which experts the next layers will need, by running their routers early.

This is the paper's speculative prefetch (section 3.2), for any family: a layer adds little to the
residual stream, so the next layer's norm and router can already run on what enters this layer's
MoE norm, or leaves this layer. Knows transformers' modules from outside and finds a layer's norm by
watching one forward. Knows no pool: the caller decides what is loaded.

Legend: T tokens in this call (all rows), H hidden, E experts in the layer, n guesses.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..checkpoint import families

log = logging.getLogger("moe_colab")


class EarlyRouter:
    """The modules of one MoE layer that a guess runs through; they are not kept alive."""

    def __init__(self, block: nn.Module, router: nn.Module | None, experts: int):
        self.block = weakref.proxy(block)  # holds the router and the experts
        self.router = None if router is None else weakref.proxy(router)
        self.experts = experts
        self.norm: Callable[[], nn.Module | None] = lambda: None  # its output is the router's input
        self.known = False  # the norm was looked for; without one, guess from the router's input
        self.error = ""  # why its router cannot run early
        self.hooks: list[tuple] = []  # (norm, hook), until the right norm is known

    def watch(self, layer: nn.Module, on_norm: Callable) -> None:
        """Call the hook `on_norm` after every norm of the decoder layer."""
        for module in layer.modules():
            if "norm" in type(module).__name__.lower() and module is not layer:
                self.hooks.append((weakref.ref(module), module.register_forward_hook(on_norm)))

    def find_norm(self, router_input: torch.Tensor, passed: list) -> None:
        """Find the norm whose output shares the memory of the router's input, and remove the hooks
        from the others. passed: (norm, output, input) of every norm that ran."""
        address = router_input.untyped_storage().data_ptr()
        norms = [norm for norm, out, _ in passed if out.untyped_storage().data_ptr() == address]
        if norms:
            self.norm = weakref.ref(norms[-1])
        self.known = True
        for module, hook in self.hooks:
            if module() is not self.norm():
                hook.remove()
        self.hooks.clear()


class ForwardState(threading.local):
    """What one thread's forward has computed, by MoE layer."""

    def __init__(self):
        self.passed: dict[int, list] = {}  # (norm, output, input) of the norms that ran
        self.inputs: dict[int, tuple] = {}  # the router's input [T, H], its other arguments, and
        # the residual stream before the norm
        self.outputs: dict[int, torch.Tensor] = {}  # of the decoder layer


class Prefetcher:
    """Keeps the inputs of the routers in the running forward, and runs later routers on them.

    wanted(): whether guesses are made now. after(layer): called when a MoE layer's decoder layer
    has ended, for guesses from its output.
    """

    def __init__(
        self, model: nn.Module, wanted: Callable[[], bool], after: Callable[[int], None]
    ) -> None:
        self.wanted, self.after = wanted, after
        self.state = ForwardState()
        self.early_routers: list[EarlyRouter] = []
        for number, (name, module) in enumerate(families.experts_modules(model)):
            block = model.get_submodule(name.rpartition(".")[0])
            router = families.router_of(model, name)
            self.early_routers.append(EarlyRouter(block, router, module.num_experts))
            if router is not None:
                self._watch(number, families.decoder_layer(model, name), router)

    # ------------------------------------------------------------------ guess
    def guess(self, source: int, target: int, n: int, from_output: bool = False):
        """The n experts that MoE layer `target` will most probably need, from the residual stream
        at layer `source`: float [2, n] on the device, ids and probabilities (that at least one of
        the tokens needs it); None where there is no guess. Never waits for the device. A router
        that raises is not run early again, and logged: a guess changes speed, never output."""
        early, inputs = self.early_routers[target], self.state.inputs.get(source)
        if inputs is None or early.router is None or not early.known or early.error:
            return None
        hidden, args, kwargs, stream = inputs
        if from_output:
            stream = self.state.outputs.get(source)
        norm = early.norm()
        if norm is not None and stream is None:
            return None
        try:
            with torch.no_grad():
                if norm is not None:  # by forward(), which calls no hooks
                    hidden = norm.forward(stream).reshape(hidden.shape)
                elif from_output:
                    hidden = stream.reshape(hidden.shape)
                args, kwargs = self._own(source, target, args, kwargs)
                return likeliest(early.router.forward(hidden, *args, **kwargs), early.experts, n)
        except Exception as error:
            first = not self.errors
            early.error = f"{type(error).__name__}: {error}"
            if first:
                log.warning("%s; output does not change", self.describe_errors())
            return None

    def forget(self, number: int) -> None:
        """Let go of the input of this layer's router and of the layer's output."""
        self.state.inputs.pop(number, None)
        self.state.outputs.pop(number, None)

    @property
    def errors(self) -> dict[int, str]:
        """MoE layers whose routers cannot run early, and why."""
        return {i: early.error for i, early in enumerate(self.early_routers) if early.error}

    def describe_errors(self) -> str:
        """One clause that names the layers without prefetch and the first reason; "" for none."""
        errors = self.errors
        if not errors:
            return ""
        layers = f"layer{'s' * (len(errors) > 1)} {', '.join(map(str, errors))}"
        reason = next(iter(errors.values())).splitlines()[0]
        return f"no prefetch for MoE {layers}, whose router cannot run early ({reason})"

    # ------------------------------------------------------------------ watch
    def _watch(self, number: int, layer: nn.Module, router: nn.Module) -> None:
        early, state = self.early_routers[number], self.state

        def on_norm(norm, args, output) -> None:
            if (not early.known or self.wanted()) and args and torch.is_tensor(output):
                state.passed.setdefault(number, []).append((norm, output, args[0]))

        def on_router(router, args, kwargs) -> None:
            passed = state.passed.pop(number, [])
            if not args or not torch.is_tensor(args[0]):
                return
            if not early.known:
                early.find_norm(args[0], passed)
            if self.wanted():
                right = early.norm()
                stream = next((s for norm, _, s in reversed(passed) if norm is right), None)
                state.inputs[number] = (args[0], args[1:], kwargs, stream)

        def on_layer_end(layer, args, output) -> None:
            if number in state.inputs:
                output = output[0] if isinstance(output, tuple) else output
                if torch.is_tensor(output):
                    state.outputs[number] = output
                    self.after(number)
                self.forget(number)

        early.watch(layer, on_norm)
        router.register_forward_pre_hook(on_router, with_kwargs=True)
        layer.register_forward_hook(on_layer_end)

    def _own(self, source: int, target: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """A router's other arguments; a tensor of the source's block (a bias) is replaced by the
        same tensor of the target's block."""
        from_block, to_block = self.early_routers[source].block, self.early_routers[target].block

        def own(value: Any) -> Any:
            if torch.is_tensor(value):
                for name, tensor in (*from_block._buffers.items(), *from_block._parameters.items()):
                    if tensor is value:
                        return getattr(to_block, name)
            return value

        return tuple(map(own, args)), {name: own(value) for name, value in kwargs.items()}


def likeliest(output: Any, experts: int, n: int) -> torch.Tensor:
    """The n most likely experts in the output of a router's forward, over all tokens: float [2, n],
    ids and probabilities. The router's own choices come first, whatever rule it chooses by;
    probabilities are the softmax of its logits."""
    parts = output if isinstance(output, (tuple, list)) else (output,)
    index = next((p for p in parts if torch.is_tensor(p) and is_index(p)), None)
    logits = families.router_logits(output, experts)
    chosen = 0
    if index is not None:  # one column more: ids past the last expert mean no expert
        index = index.reshape(-1, index.shape[-1]).long()
        chosen = torch.zeros(len(index), experts + 1, device=index.device)
        chosen = chosen.scatter_(1, index.clamp(max=experts), 1.0)[:, :experts]
    probability = chosen if logits is None else logits.float().softmax(-1)
    needed = 1 - (1 - probability).prod(0)
    first = needed if index is None else needed + 2 * chosen.amax(0)
    best = first.topk(min(n, experts)).indices
    return torch.stack([best.float(), needed[best]])


def is_index(part: torch.Tensor) -> bool:
    return not part.is_floating_point() and part.dtype != torch.bool
