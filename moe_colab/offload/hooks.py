"""Hooks on a transformers model: a layer object on every experts module, router and model hooks.

Knows transformers' modules from outside, and the runtime's pool and counters; brings the guesses of
the prefetcher to the pool. Decides nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
import torch
from transformers import Cache

from ..cache.governor import Ranked
from ..cache.policies import Tokens
from ..checkpoint import families
from ..errors import MoEColabError
from ..quantization.kernels import LowBitWeight
from ..store import BlobLayout
from .experts import refuse_copies
from .prefetch import Prefetcher
from .runtime import Runtime

LARGEST_HALF = float(np.finfo(np.float16).max)

Weights = dict[str, torch.Tensor | LowBitWeight]
"""One expert's matrices by name."""


class LayerListener(Protocol):
    """Receives what one MoE layer computes, while it is set; must keep copies."""

    def expert(self, expert: int, token: torch.Tensor, out: torch.Tensor) -> None:
        """An expert's output [rows, H], not yet weighted, for the tokens [rows] of this call."""

    def layer(
        self,
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
        total: torch.Tensor,
    ) -> None:
        """The whole call: the arguments of the experts function and its result [T, H]."""


class Routing(NamedTuple):
    """What one router chose, and the guesses for later layers, on the host."""

    index: np.ndarray  # int [T, K]
    tokens: Tokens | None  # for the policy: (experts, logits) of each token
    prefetches: list[tuple[int, Ranked]]  # guesses by layer


class OffloadedLayer:
    """What an experts module holds instead of its weights: its way to the pool."""

    def __init__(self, runtime: Runtime, number: int, module: torch.nn.Module, layout: BlobLayout):
        self.runtime, self.number, self.layout = runtime, number, layout
        self.experts = module.num_experts
        self.router = threading.local()  # `logits` [T, E] of this thread's forward, kept by a hook
        self.listener: LayerListener | None = None

    def check_input(self, hidden_states: torch.Tensor) -> None:
        """Raises MoEColabError where the input's dtype or device is not the experts'. Under
        autocast every dtype is right: torch casts the weights of each product."""
        dtype, device = self.runtime.dtype, self.runtime.device
        same_dtype = hidden_states.dtype == dtype or torch.is_autocast_enabled(device.type)
        if not same_dtype or hidden_states.device != device:
            raise MoEColabError(
                f"the experts are {dtype} on {device}, but their input is {hidden_states.dtype} on "
                f"{hidden_states.device}: do not move or cast a loaded model, load it with "
                "device=... and dtype=..."
            )

    def sum_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """In which the outputs of the experts are added up, for an input of `dtype`."""
        return families.sum_dtype(self.runtime.model_type, dtype)

    def routing(self, top_k_index: torch.Tensor) -> Routing:
        """top_k_index [T, K], with logits and guesses where they are wanted, brought to the host in
        one transfer. Policies and traces get logits in 16 bits, so that a replay of the trace
        decides as the policy did. Raises MoEColabError where the policy needs logits and there are
        none."""
        wanted, recorder = self.runtime.needs_logits, self.runtime.tracker.recorder
        logits = self._logits(len(top_k_index)) if wanted or recorder is not None else None
        guesses = self.runtime.guesses(self.number, "router_input")
        optional = [] if logits is None else [logits]
        index, *rest = to_host([top_k_index, *optional, *guesses.values()])
        index = index.astype(np.int64)
        logits = None if logits is None else to_half(rest.pop(0))
        least = self.runtime.prefetch.guess_threshold
        prefetches = [(t, ranked(guess, least)) for t, guess in zip(guesses, rest, strict=True)]
        if recorder is not None:
            recorder.routed(self.number, index, logits)
            for layer, likely in prefetches:
                recorder.guessed(self.number, layer, likely, "router_input")
        tokens = list(zip(index.tolist(), logits.tolist(), strict=True)) if wanted else None
        return Routing(index, tokens, prefetches)

    def _logits(self, length: int) -> torch.Tensor | None:
        """The router's logits [T, E]; None where it shows none and only a recording wants them."""
        logits = self.router.__dict__.pop("logits", None)
        if logits is not None and len(logits) == length:
            return logits
        if self.runtime.needs_logits:
            raise MoEColabError(
                f"policy {self.runtime.policy!r} needs the router's logits, and MoE layer "
                f"{self.number} of this family shows none: choose another policy."
            )
        return None

    def weights(self, needed: list[int], routing: Routing) -> Iterator[tuple[int, Weights]]:
        """Each needed expert (distinct, ascending) once, with its matrices, in the order in which
        they arrive; the loads of the routing's guesses begin after them. With `whole_layer`, every
        expert of the layer."""
        if self.runtime.settings.whole_layer:
            needed = list(range(self.experts))
        pool, number = self.runtime.pool, self.number
        for expert, block in pool.experts(number, needed, routing.tokens, routing.prefetches):
            yield expert, block.views(self.layout, (number, expert))

    def keep_logits(self, router, args, output) -> None:
        """Hook on the router: keeps its logits where the policy or a recording wants them."""
        if self.runtime.needs_logits or self.runtime.tracker.recorder is not None:
            self.router.logits = families.router_logits(output, self.experts)


class PrefetchWorker:
    """Brings guesses made from a layer's output to the pool. On a GPU they are ready only when the
    layer has ended: a thread waits for that, so that the forward goes on."""

    def __init__(self, runtime: Runtime):
        self.runtime = runtime
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="moe_colab-guesses")

    def send(self, number: int) -> None:
        """Guess from the output of MoE layer `number`, which has just been computed."""
        guesses = self.runtime.guesses(number, "layer_output")
        if not guesses:
            return
        pool, tracker = self.runtime.pool, self.runtime.tracker
        recorder, phase = tracker.recorder, tracker.phase
        calls = {layer: pool.router_calls[layer] for layer in guesses}
        copied = None
        if self.runtime.device.type != "cpu":
            guesses = {
                layer: torch.empty(guess.shape, device="cpu", pin_memory=True).copy_(
                    guess, non_blocking=True
                )
                for layer, guess in guesses.items()
            }
            copied = torch.cuda.Event()
            copied.record()

        def deliver() -> None:
            if copied is not None:
                copied.synchronize()
            least = self.runtime.prefetch.guess_threshold
            with self.runtime.lock:
                for layer, guess in guesses.items():
                    if pool.router_calls[layer] == calls[layer]:  # its router has not run since
                        likely = ranked(guess.numpy(), least)
                        pool.guess(layer, likely, phase)
                        if recorder is not None:
                            recorder.guessed(number, layer, likely, "layer_output")

        if copied is None:
            deliver()
        else:
            self.thread.submit(deliver)


def ranked(guess: np.ndarray, least: float) -> Ranked:
    """[2, n] as pairs (expert, probability), without those below `least`."""
    pairs = zip(guess[0].astype(int).tolist(), guess[1].tolist(), strict=True)
    return [(expert, probability) for expert, probability in pairs if probability >= least]


class Hook:
    """Calls a function with the module. Refuses `pickle`, which comes to the hooks first."""

    __reduce_ex__ = refuse_copies

    def __init__(self, call: Callable[[torch.nn.Module], None]):
        self.call = call

    def __call__(self, module: torch.nn.Module, *_) -> None:
        self.call(module)


def attach(model: torch.nn.Module, runtime: Runtime) -> Prefetcher:
    """Give every experts module its layer object, and hang hooks on routers and model; the
    prefetcher of these hooks."""
    modules = families.experts_modules(model)
    for number, ((name, module), entry) in enumerate(zip(modules, runtime.entries, strict=True)):
        layer = OffloadedLayer(runtime, number, module, entry.layout)
        module.moe_colab_layer = layer
        router = families.router_of(model, name)
        if router is not None:
            router.register_forward_hook(layer.keep_logits)

    def begin_forward(model, args, kwargs) -> None:
        inputs = model_input(args, kwargs)
        if inputs is None:
            return  # the model itself raises the error
        rows, length = inputs.shape[:2]
        decode = length == 1 and past_length(kwargs) > 0
        with runtime.lock:
            runtime.pool.check_open()
            runtime.pool.link.begin_forward()
            runtime.tracker.forward("decode" if decode else "prompt", rows * length)

    # The inner model's: it runs in model(...), model.forward(...) and model.model(...).
    model.base_model.register_forward_pre_hook(begin_forward, with_kwargs=True)
    for part in {model, model.base_model}:  # the head runs after the inner model
        part.register_forward_pre_hook(
            Hook(lambda part: runtime.forwards.begin(part)), prepend=True
        )
        part.register_forward_hook(Hook(lambda part: runtime.forwards.end(part)), always_call=True)
    return Prefetcher(model, runtime.wants_guesses, PrefetchWorker(runtime).send)


def to_host(parts: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Each part on the host, in one transfer; several as float32, in which ids are exact too."""
    if len(parts) == 1:
        return [parts[0].cpu().numpy()]
    flat = torch.cat([part.flatten().float() for part in parts]).cpu().numpy()
    ends = np.cumsum([part.numel() for part in parts])
    pieces = zip(np.split(flat, ends[:-1]), parts, strict=True)
    return [piece.reshape(part.shape) for piece, part in pieces]


def to_half(logits: np.ndarray) -> np.ndarray:
    """float16, as a trace keeps them; larger values become the largest of float16."""
    return np.minimum(np.maximum(logits, -LARGEST_HALF), LARGEST_HALF).astype(np.float16)


def model_input(args: Sequence, kwargs: Mapping) -> torch.Tensor | None:
    """The input of a forward: ids [rows, length], or embeddings [rows, length, H]; None: none."""
    inputs = kwargs.get("input_ids")
    if inputs is None:
        inputs = args[0] if args else kwargs.get("inputs_embeds")
    return inputs


def past_length(kwargs: Mapping) -> int:
    """Earlier tokens in the cache that a forward was given, 0 without one."""
    # Found by type: the argument's name differs between versions of transformers.
    caches = [value for value in kwargs.values() if isinstance(value, Cache)]
    layers = [layer for past in caches for layer in past.layers if hasattr(layer, "get_seq_length")]
    return max((int(layer.get_seq_length()) for layer in layers), default=0)
