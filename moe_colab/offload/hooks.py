"""What is hung onto a transformers model: a Layer on every experts module, hooks on routers and
model.

Knows transformers' modules from outside, and the handle's pool and ledger; carries the guesses of
`speculation` to the pool. Decides nothing.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
import torch
from transformers import Cache

from ..cache.governor import Ranked
from ..cache.policies import Tokens
from ..cache.pool import Pool
from ..cache.settings import PrefetchSettings
from ..cache.stats import Ledger, Note
from ..checkpoint import families
from ..errors import MoEColabError
from ..store import BlobLayout, LayerEntry
from .prefetch import Prefetcher

LARGEST_HALF = float(np.finfo(np.float16).max)


class Handle(Protocol):
    """What is asked of `model.offload` during a forward."""

    device: torch.device
    dtype: torch.dtype
    model_type: str
    entries: Sequence[LayerEntry]
    lock: threading.RLock
    pool: Pool
    ledger: Ledger
    policy: str
    needs_logits: bool
    whole_layer: bool
    prefetch: PrefetchSettings
    prefetcher: Prefetcher
    check_stop: Callable[[], None]


class Listener(Protocol):
    """Told what one MoE layer computes, while there is one; must keep copies."""

    def expert(self, expert: int, token: torch.Tensor, out: torch.Tensor) -> None:
        """An expert's output [rows, H], not weighted, for the tokens [rows] of this call."""

    def layer(
        self,
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
        total: torch.Tensor,
    ) -> None:
        """All of the call: what the experts function was given, and what it answers [T, H]."""


class Routing(NamedTuple):
    """What one router has said, and what the routers of later layers would say, on the host."""

    index: np.ndarray  # int [T, K]
    tokens: Tokens | None  # what the policy is shown
    ahead: list[tuple[int, Ranked]]


class Layer:
    """What one experts module is attached to: the engine's way to the pool."""

    def __init__(self, offload: Handle, number: int, module: torch.nn.Module, layout: BlobLayout):
        self.offload, self.number, self.layout = offload, number, layout
        self.experts = module.num_experts
        self.lock = offload.lock
        self.sum_dtype = families.sum_dtype(offload.model_type, offload.dtype)
        self.router = threading.local()  # `logits` [T, E] of this thread's forward, kept by a hook
        self.listener: Listener | None = None

    def check_input(self, hidden_states: torch.Tensor) -> None:
        if hidden_states.dtype != self.offload.dtype or hidden_states.device != self.offload.device:
            raise MoEColabError(
                f"the experts are {self.offload.dtype} on {self.offload.device}, their input is "
                f"{hidden_states.dtype} on {hidden_states.device}: do not move or cast a loaded "
                "model, load it with device=... and dtype=..."
            )

    def routing(self, top_k_index: torch.Tensor) -> Routing:
        """top_k_index [T, K] and whatever else is to be known on the host; one transfer for all. A
        policy is shown, and a trace keeps, logits in 16 bits: so a replay decides alike."""
        wanted, recorder = self.offload.needs_logits, self.offload.ledger.recorder
        shown = self._logits(len(top_k_index)) if wanted or recorder is not None else None
        guesses = guesses_at(self.offload, self.number, "router_input")
        parts = [top_k_index, *([] if shown is None else [shown]), *guesses.values()]
        index, *rest = to_host(parts)
        index = index.astype(np.int64)
        logits = None if shown is None else in_half(rest.pop(0))
        least = self.offload.prefetch.guess_threshold
        ahead = [(t, ranked(guess, least)) for t, guess in zip(guesses, rest, strict=True)]
        if recorder is not None:
            recorder.routed(self.number, index, logits)
            note = recorder.guessing(self.number, "router_input")
            for layer, likely in ahead:
                note(layer, likely)
        tokens = list(zip(index.tolist(), logits.tolist(), strict=True)) if wanted else None
        return Routing(index, tokens, ahead)

    def _logits(self, length: int) -> torch.Tensor | None:
        """The router's [T, E]; None where it shows none and only a recording asks."""
        logits = self.router.__dict__.pop("logits", None)
        if logits is not None and len(logits) == length:
            return logits
        if self.offload.needs_logits:
            raise MoEColabError(
                f"policy {self.offload.policy!r} needs the router's logits, and MoE layer "
                f"{self.number} of this family shows none: choose another policy."
            )
        return None

    def weights(
        self, needed: list[int], tokens: Tokens | None, ahead: Sequence[tuple[int, Ranked]] = ()
    ) -> Iterator[tuple[int, dict]]:
        """Each needed expert once, with its matrices, in the order in which they can be had; the
        guesses for the layers `ahead` are loaded behind them."""
        if self.offload.whole_layer:
            needed = list(range(self.experts))
        for expert, block in self.offload.pool.experts(self.number, needed, tokens, ahead):
            yield expert, block.views(self.layout, (self.number, expert))

    def keep_logits(self, router, args, output) -> None:
        """Hook on the router: its logits, if the policy or a recording asks for them."""
        if self.offload.needs_logits or self.offload.ledger.recorder is not None:
            self.router.logits = families.router_logits(output, self.experts)


class Deliveries:
    """Brings guesses made from a layer's output to the pool. On a GPU they come when the layer is
    through, and nobody but a thread of their own waits for that."""

    def __init__(self, offload: Handle):
        self.offload = weakref.proxy(offload)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="moe_colab-guesses")

    def send(self, number: int) -> None:
        guesses = guesses_at(self.offload, number, "layer_output")
        if not guesses:
            return
        pool, recorder = self.offload.pool, self.offload.ledger.recorder
        note = recorder.guessing(number, "layer_output") if recorder is not None else None
        turns = {layer: pool.turns[layer] for layer in guesses}
        if self.offload.device.type == "cpu":
            self._deliver(pool, guesses, turns, self.offload.ledger.phase, note)
            return
        host = {
            layer: torch.empty(guess.shape, pin_memory=True).copy_(guess, non_blocking=True)
            for layer, guess in guesses.items()
        }
        issued = torch.cuda.Event()
        issued.record()
        phase = self.offload.ledger.phase
        self.thread.submit(self._deliver, pool, host, turns, phase, note, issued.synchronize)

    def _deliver(
        self, pool: Pool, guesses, turns, phase: str, note: Note | None, wait=lambda: None
    ) -> None:
        wait()
        least = self.offload.prefetch.guess_threshold
        with self.offload.lock:
            for layer, guess in guesses.items():
                if pool.turns[layer] == turns[layer]:  # or its router has spoken meanwhile
                    likely = ranked(guess.numpy(), least)
                    pool.guess(layer, likely, phase)
                    if note is not None:
                        note(layer, likely)


def guesses_at(offload: Handle, number: int, source: str) -> dict[int, torch.Tensor]:
    """{layer: float [2, n] on the device} for the layers after `number`, if they are to be guessed
    from this source and lack anything."""
    prefetch, pool = offload.prefetch, offload.pool
    if prefetch.guess_from != source or not wants_guesses(offload):
        return {}
    found = {}
    for layer in range(number + 1, min(number + prefetch.lookahead + 1, len(offload.entries))):
        if pool.lacks_any(layer):
            from_output = source == "layer_output"
            guess = offload.prefetcher.guess(number, layer, prefetch.speculate, from_output)
            if guess is not None:
                found[layer] = guess
    return found


def wants_guesses(offload: Handle) -> bool:
    return offload.prefetch.speculate > 0 and not offload.whole_layer and offload.pool.wants_guesses


def ranked(guess: np.ndarray, least: float) -> Ranked:
    """[2, n] as pairs (expert, probability), without those below `least`."""
    pairs = zip(guess[0].astype(int).tolist(), guess[1].tolist(), strict=True)
    return [(expert, probability) for expert, probability in pairs if probability >= least]


def attach(model: torch.nn.Module, offload: Handle) -> Prefetcher:
    """Let every experts module of the model find the handle, and the handle hear of forwards.
    Answers who can be asked for guesses."""
    modules = families.experts_modules(model)
    for number, ((name, module), entry) in enumerate(zip(modules, offload.entries, strict=True)):
        layer = Layer(offload, number, module, entry.layout)
        module.moe_colab_layer = layer
        router = families.router_of(model, name)
        if router is not None:
            router.register_forward_hook(layer.keep_logits)
    deliveries = Deliveries(offload)

    def begin_forward(model, args, kwargs) -> None:
        inputs = model_input(args, kwargs)
        if inputs is None:
            return  # the model will say what it misses
        rows, length = inputs.shape[:2]
        decode = length == 1 and past_length(kwargs) > 0
        with offload.lock:
            offload.pool.check_open()
            offload.ledger.forward("decode" if decode else "prompt", rows * length)

    model.register_forward_pre_hook(begin_forward, with_kwargs=True)
    handle = weakref.proxy(offload)
    return Prefetcher(model, lambda: wants_guesses(handle), deliveries.send)


def to_host(parts: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Each on the host, in one transfer; several as float32, in which ids are exact too."""
    if len(parts) == 1:
        return [parts[0].cpu().numpy()]
    flat = torch.cat([part.flatten().float() for part in parts]).cpu().numpy()
    pieces, begin = [], 0
    for part in parts:
        end = begin + part.numel()
        pieces.append(flat[begin:end].reshape(part.shape))
        begin = end
    return pieces


def in_half(logits: np.ndarray) -> np.ndarray:
    """In 16 bits, as a trace keeps them; what is too large becomes the largest number there is."""
    return np.minimum(np.maximum(logits, -LARGEST_HALF), LARGEST_HALF).astype(np.float16)


def model_input(args: Sequence, kwargs: Mapping) -> torch.Tensor | None:
    """What a forward reads: ids [rows, length], or embeddings [rows, length, H]."""
    inputs = kwargs.get("input_ids")
    if inputs is None:
        inputs = args[0] if args else kwargs.get("inputs_embeds")
    return inputs


def past_length(kwargs: Mapping) -> int:
    """Earlier tokens in the cache that a forward was given; layers without attention cannot
    tell."""
    # By type: its name differs between versions.
    caches = [value for value in kwargs.values() if isinstance(value, Cache)]
    layers = [layer for past in caches for layer in past.layers if hasattr(layer, "get_seq_length")]
    return max((int(layer.get_seq_length()) for layer in layers), default=0)
