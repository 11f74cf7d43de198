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


class Stage:
    """The modules of one MoE layer that a guess runs through, by weak references."""

    def __init__(self, model: nn.Module, name: str, experts: nn.Module):
        self._block = weakref.ref(model.get_submodule(name.rpartition(".")[0]))
        self._layer = weakref.ref(families.decoder_layer(model, name))
        router = families.router_of(model, name)
        self._router = None if router is None else weakref.ref(router)
        self._norm: weakref.ref | None = None
        self.experts = experts.num_experts
        self.known = False  # the norm was looked for; without one, guess from the router's input
        self.error = ""  # why its router cannot run early
        self.hooks: list = []  # on norms, until the right one is known

    @property
    def block(self) -> nn.Module:
        """The module that holds the router and the experts."""
        return self._block()

    @property
    def layer(self) -> nn.Module:
        """The decoder layer around the block."""
        return self._layer()

    @property
    def router(self) -> nn.Module | None:
        return self._router and self._router()

    @property
    def norm(self) -> nn.Module | None:
        """The norm whose output is the router's input."""
        return self._norm and self._norm()

    def watch(self, on_norm: Callable) -> None:
        """Call the hook `on_norm` after every norm of the decoder layer."""
        for module in self.layer.modules():
            if "norm" in type(module).__name__.lower() and module is not self.layer:
                self.hooks.append((weakref.ref(module), module.register_forward_hook(on_norm)))

    def find_norm(self, router_input: torch.Tensor, passed: list) -> None:
        """Find the norm whose output shares the memory of the router's input, and remove the hooks
        from the others. passed: (norm, output, input) of every norm that ran."""
        address = router_input.untyped_storage().data_ptr()
        norms = [norm for norm, out, _ in passed if out.untyped_storage().data_ptr() == address]
        self._norm, self.known = (weakref.ref(norms[-1]) if norms else None), True
        for module, hook in self.hooks:
            if module() is not self.norm:
                hook.remove()
        self.hooks.clear()


class Prefetcher:
    """Keeps the inputs of the routers in the running forward, and runs later routers on them.

    wanted(): whether guesses are made now. after(layer): called when a MoE layer's decoder layer
    has ended, for guesses from its output.
    """

    def __init__(
        self, model: nn.Module, wanted: Callable[[], bool], after: Callable[[int], None]
    ) -> None:
        self.wanted, self.after = wanted, after
        self.stages = [
            Stage(model, name, module) for name, module in families.experts_modules(model)
        ]
        self._thread = threading.local()  # the forward of each thread
        for number, stage in enumerate(self.stages):
            if stage.router is not None:
                self._watch(number, stage)

    # ------------------------------------------------------------------ guess
    def guess(self, source: int, target: int, n: int, from_output: bool = False):
        """The n experts that MoE layer `target` will most probably need, from the residual stream
        at layer `source`: float [2, n] on the device, ids and probabilities (that at least one of
        the tokens needs it); None where there is no guess. Never waits for the device. A router
        that raises is not run early again, and logged: a guess changes speed, never output."""
        stage, inputs = self.stages[target], self._inputs.get(source)
        if inputs is None or stage.router is None or not stage.known or stage.error:
            return None
        hidden, args, kwargs, stream = inputs
        if from_output:
            stream = self._outputs.get(source)
        if stage.norm is not None and stream is None:
            return None
        try:
            with torch.no_grad():
                if stage.norm is not None:  # by forward(), which calls no hooks
                    hidden = stage.norm.forward(stream).reshape(hidden.shape)
                elif from_output:
                    hidden = stream.reshape(hidden.shape)
                args, kwargs = self._own(source, target, args, kwargs)
                return likeliest(stage.router.forward(hidden, *args, **kwargs), stage.experts, n)
        except Exception as error:
            first = not self.errors
            stage.error = f"{type(error).__name__}: {error}"
            if first:
                log.warning("%s; output does not change", self.describe_errors())
            return None

    def forget(self, number: int) -> None:
        """Let go of the input of this layer's router and of the layer's output."""
        self._inputs.pop(number, None)
        self._outputs.pop(number, None)

    @property
    def errors(self) -> dict[int, str]:
        """MoE layers whose routers cannot run early, and why."""
        return {i: stage.error for i, stage in enumerate(self.stages) if stage.error}

    def describe_errors(self) -> str:
        """One clause that names the layers without prefetch and the first reason; "" for none."""
        errors = self.errors
        if not errors:
            return ""
        layers = f"layer{'s' * (len(errors) > 1)} {', '.join(map(str, errors))}"
        reason = next(iter(errors.values())).splitlines()[0]
        return f"no prefetch for MoE {layers}, whose router cannot run early ({reason})"

    # ------------------------------------------------------------------ watch
    @property
    def _inputs(self) -> dict[int, tuple]:
        """By layer: the router's input [T, H], its other arguments, and the stream before the
        norm."""
        return self._thread.__dict__.setdefault("inputs", {})

    @property
    def _outputs(self) -> dict[int, torch.Tensor]:
        return self._thread.__dict__.setdefault("outputs", {})

    @property
    def _passed(self) -> dict[int, list]:
        """By layer: (norm, output, input) of the norms that ran."""
        return self._thread.__dict__.setdefault("passed", {})

    def _watch(self, number: int, stage: Stage) -> None:
        def on_norm(norm, args, output) -> None:
            if (not stage.known or self.wanted()) and args and torch.is_tensor(output):
                self._passed.setdefault(number, []).append((norm, output, args[0]))

        def on_router(router, args, kwargs) -> None:
            passed = self._passed.pop(number, [])
            if not args or not torch.is_tensor(args[0]):
                return
            if not stage.known:
                stage.find_norm(args[0], passed)
            if self.wanted():
                stream = next((s for norm, _, s in reversed(passed) if norm is stage.norm), None)
                self._inputs[number] = (args[0], args[1:], kwargs, stream)

        def on_layer_end(layer, args, output) -> None:
            if number in self._inputs:
                output = output[0] if isinstance(output, tuple) else output
                if torch.is_tensor(output):
                    self._outputs[number] = output
                    self.after(number)
                self.forget(number)

        stage.watch(on_norm)
        stage.router.register_forward_pre_hook(on_router, with_kwargs=True)
        stage.layer.register_forward_hook(on_layer_end)

    def _own(self, source: int, target: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """A router's other arguments; a tensor of the source's block (a bias) is replaced by the
        same tensor of the target's block."""
        from_block, to_block = self.stages[source].block, self.stages[target].block

        def own(value: Any) -> Any:
            if torch.is_tensor(value):
                for name, tensor in (*from_block._buffers.items(), *from_block._parameters.items()):
                    if tensor is value:
                        return getattr(to_block, name)
            return value

        return tuple(map(own, args)), {name: own(value) for name, value in kwargs.items()}


def likeliest(output: Any, experts: int, n: int) -> torch.Tensor:
    """The n likeliest experts in the output of a router's forward, over all tokens: float [2, n],
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
