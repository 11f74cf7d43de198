"""Speculation: which experts the next layers will need, asked of their own routers ahead of time.

A layer adds little to the residual stream, so what enters this layer's MoE norm (or leaves this
layer) is shown to the next layer's norm and router already now: section 3.2 of the paper, for any
family. Knows transformers' modules from outside and finds a layer's norm by watching one forward.
Knows no pool: whoever asks decides what is loaded.

Legend: T tokens in this call (all rows), H hidden, E experts in the layer, n guesses.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..checkpoint import families


class Stage:
    """One MoE layer, as a guess passes through it. It does not keep the model alive."""

    def __init__(self, model: nn.Module, name: str, experts: nn.Module):
        self._block = weakref.ref(model.get_submodule(name.rpartition(".")[0]))
        self._layer = weakref.ref(families.decoder_layer(model, name))
        router = families.router_of(model, name)
        self._router = None if router is None else weakref.ref(router)
        self._norm: weakref.ref | None = None
        self.experts = experts.num_experts
        self.known = False  # the norm was looked for; without one the router's own input must do
        self.refusal = ""  # why its router cannot be asked ahead of time
        self.hooks: list = []  # on norms, until the right one is known

    @property
    def block(self) -> nn.Module:
        """What holds the router and the experts."""
        return self._block()

    @property
    def layer(self) -> nn.Module:
        """The decoder layer around it."""
        return self._layer()

    @property
    def router(self) -> nn.Module | None:
        return self._router and self._router()

    @property
    def norm(self) -> nn.Module | None:
        """Whose output the router is shown."""
        return self._norm and self._norm()

    def watch(self, passed: Callable) -> None:
        """Call `passed` after every norm of the decoder layer."""
        for module in self.layer.modules():
            if "norm" in type(module).__name__.lower() and module is not self.layer:
                self.hooks.append((weakref.ref(module), module.register_forward_hook(passed)))

    def find_norm(self, shown: torch.Tensor, passed: list) -> None:
        """The norm whose output lies where the router's input does; the others are left alone from
        now on."""
        place = shown.untyped_storage().data_ptr()
        found = [norm for norm, out, _ in passed if out.untyped_storage().data_ptr() == place]
        self._norm, self.known = (weakref.ref(found[-1]) if found else None), True
        for module, hook in self.hooks:
            if module() is not self.norm:
                hook.remove()
        self.hooks.clear()


class Prefetcher:
    """Keeps what the routers of the running forward are shown, and shows it to later routers.

    wanted(): is anybody interested in guesses now? after(stage number): called when a layer has
    ended, for guesses from its output.
    """

    def __init__(
        self, model: nn.Module, wanted: Callable[[], bool], after: Callable[[int], None]
    ) -> None:
        self.wanted, self.after = wanted, after
        self.stages = [
            Stage(model, name, module) for name, module in families.experts_modules(model)
        ]
        self._thread = threading.local()  # what belongs to the forward of one thread
        for number, stage in enumerate(self.stages):
            if stage.router is not None:
                self._watch(number, stage)

    # ------------------------------------------------------------------ ask
    def guess(self, source: int, target: int, n: int, from_output: bool = False):
        """The n experts that layer `target` will likeliest need, from the residual stream at layer
        `source`: float [2, n], ids and probabilities (that any of the tokens needs it), on the
        device; None where it cannot be known. Never waits for the device."""
        stage, seen = self.stages[target], self._seen.get(source)
        if seen is None or stage.router is None or not stage.known or stage.refusal:
            return None
        shown, args, kwargs, stream = seen
        if from_output:
            stream = self._outputs.get(source)
        if stage.norm is not None and stream is None:
            return None
        try:
            with torch.no_grad():
                if stage.norm is not None:  # by forward(): no hook of ours or others' is called
                    shown = stage.norm.forward(stream).reshape(shown.shape)
                elif from_output:
                    shown = stream.reshape(shown.shape)
                args, kwargs = self._own(source, target, args, kwargs)
                return likeliest(stage.router.forward(shown, *args, **kwargs), stage.experts, n)
        except Exception as error:  # a guess changes speed, never output
            stage.refusal = f"{type(error).__name__}: {error}"
            return None

    def forget(self, number: int) -> None:
        """What was shown to this layer's router is not needed any more."""
        self._seen.pop(number, None)
        self._outputs.pop(number, None)

    @property
    def refusals(self) -> dict[int, str]:
        """Layers whose routers cannot be asked ahead of time, and why."""
        return {i: stage.refusal for i, stage in enumerate(self.stages) if stage.refusal}

    # ------------------------------------------------------------------ watch
    @property
    def _seen(self) -> dict[int, tuple]:
        """By layer: the router's input [T, H], its other arguments, and the residual stream."""
        return self._thread.__dict__.setdefault("seen", {})

    @property
    def _outputs(self) -> dict[int, torch.Tensor]:
        return self._thread.__dict__.setdefault("outputs", {})

    @property
    def _passed(self) -> dict[int, list]:
        """By layer: the norms that were passed, with their outputs and inputs."""
        return self._thread.__dict__.setdefault("passed", {})

    def _watch(self, number: int, stage: Stage) -> None:
        def passed(norm, args, output) -> None:
            if (not stage.known or self.wanted()) and args and torch.is_tensor(output):
                self._passed.setdefault(number, []).append((norm, output, args[0]))

        def shown(router, args, kwargs) -> None:
            passed = self._passed.pop(number, [])
            if not args or not torch.is_tensor(args[0]):
                return
            if not stage.known:
                stage.find_norm(args[0], passed)
            if self.wanted():
                stream = next((s for norm, _, s in reversed(passed) if norm is stage.norm), None)
                self._seen[number] = (args[0], args[1:], kwargs, stream)

        def ended(layer, args, output) -> None:
            if number in self._seen:
                output = output[0] if isinstance(output, tuple) else output
                if torch.is_tensor(output):
                    self._outputs[number] = output
                    self.after(number)
                self.forget(number)

        stage.watch(passed)
        stage.router.register_forward_pre_hook(shown, with_kwargs=True)
        stage.layer.register_forward_hook(ended)

    def _own(self, source: int, target: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """A router's other arguments: where they are the block's own tensors (a bias), those of the
        target's block."""
        theirs, ours = self.stages[source].block, self.stages[target].block

        def own(value: Any) -> Any:
            if torch.is_tensor(value):
                for name, tensor in (*theirs._buffers.items(), *theirs._parameters.items()):
                    if tensor is value:
                        return getattr(ours, name)
            return value

        return tuple(map(own, args)), {name: own(value) for name, value in kwargs.items()}


def likeliest(output: Any, experts: int, n: int) -> torch.Tensor:
    """What a router's forward tells about its n likeliest experts, over all tokens: float [2, n],
    ids and probabilities. Those that the router itself would choose come first, whatever rule it
    chooses by; a probability is the softmax of its logits."""
    parts = output if isinstance(output, (tuple, list)) else (output,)
    index = next((p for p in parts if torch.is_tensor(p) and is_index(p)), None)
    logits = families.router_logits(output, experts)
    chosen = 0
    if index is not None:  # one column more: ids past the last expert mean nobody
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
