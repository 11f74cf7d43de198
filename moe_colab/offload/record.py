"""Recording a model: what is hung on it for a while, so that a trace hears of what happens.

Knows torch's hooks and the handle's ledger; knows no pool. What is heard goes to trace.Builder. Of
each layer's routing the host has a copy anyway; the logits come with it, in the same transfer.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..cache.stats import Ledger, Note
from ..errors import MoEColabError
from ..trace import Builder, Trace
from ..trace.builder import Forward
from .handle import Offload
from .hooks import model_input, past_length


@contextlib.contextmanager
def record(model: torch.nn.Module, tokenizer: Any = None, *, label: str = "") -> Iterator[Trace]:
    """Record what an offloaded model does inside the block: `with mc.record(model) as trace: ...`.

    The trace is empty until the block is left, by its end or by an error. A forward that does not
    come to its end is left out. Guesses are kept as they are made: to replay speculation, record
    with `speculate` at least as high. tokenizer: to keep the tokens' texts too. label: a name for
    this part, for traces that are merged. Raises MoEColabError where the model is not one of
    mc.load, is closed, or is being recorded already.
    """
    offload = getattr(model, "offload", None)
    if not isinstance(offload, Offload):
        raise MoEColabError("only a model of mc.load() can be recorded, and this one is not.")
    header = {
        "model": offload.name,
        "experts": tuple(offload.experts),
        "expert_bytes": tuple(entry.layout.nbytes for entry in offload.entries),
        "settings": {
            "slots": offload.slots,
            "policy": offload.policy,
            "whole_layer": offload.whole_layer,
            "speculate": offload.speculate,
            "lookahead": offload.lookahead,
            "guess_from": offload.guess_from,
            "device": str(offload.device),
            "dtype": str(offload.dtype).removeprefix("torch."),
        },
    }
    recorder = Recorder(Builder(header, label), offload.ledger)
    trace = recorder.builder.trace()
    with offload.lock:
        offload.pool.check_open()
        if offload.ledger.recorder is not None:
            raise MoEColabError(
                "this model is being recorded already: leave the first `with mc.record(...)` block "
                "before the next begins."
            )
        offload.ledger.recorder = recorder
    hooks = [
        model.register_forward_pre_hook(recorder.begin, with_kwargs=True),
        model.register_forward_hook(recorder.end),
    ]
    try:
        yield trace
    finally:
        for hook in hooks:
            hook.remove()
        with offload.lock:  # no layer is at work
            offload.ledger.recorder = None
        trace._fill_from(recorder.trace(tokenizer))


class Recorder:
    """A Witness and the hooks that tell where a forward begins and ends. Each thread that runs the
    model is in a forward of its own."""

    def __init__(self, builder: Builder, ledger: Ledger):
        self.builder, self.ledger = builder, ledger
        self.thread = threading.local()

    @property
    def forward(self) -> Forward | None:
        return getattr(self.thread, "forward", None)

    # ------------------------------------------------------------------ hooks
    def begin(self, model, args, kwargs) -> None:
        inputs = model_input(args, kwargs)
        if inputs is None:
            return
        rows, length = inputs.shape[:2]
        # Copied where they are, and brought to the host when all is over.
        ids = None if inputs.is_floating_point() else inputs.detach().clone()
        self.thread.forward = self.builder.begin(
            self.ledger.phase, rows, length, past_length(kwargs), ids
        )

    def end(self, model, args, output) -> None:
        if self.forward is not None and self.ledger.recorder is self:
            self.builder.end(self.forward)
        self.thread.forward = None

    # ------------------------------------------------------------------ the witness
    def routed(self, layer: int, index: np.ndarray, logits: np.ndarray | None) -> None:
        if self.forward is not None:
            self.builder.routed(self.forward, layer, index, logits)

    def accessed(self, layer: int, expert: int, outcome: str, nbytes: int) -> None:
        if self.forward is not None:
            self.builder.accessed(self.forward, layer, expert, outcome, nbytes)

    def waited(self, layer: int, expert: int, seconds: float) -> None:
        if self.forward is not None:
            self.builder.waited(self.forward, layer, expert, seconds)

    def guessing(self, at: int, source: str) -> Note:
        forward = self.forward
        if forward is None:
            return lambda layer, ranked: None
        return lambda layer, ranked: self.builder.guessed(forward, at, layer, ranked, source)

    # ------------------------------------------------------------------ the result
    def trace(self, tokenizer: Any) -> Trace:
        ids = set()
        for forward in self.builder.done:
            if isinstance(forward.ids, torch.Tensor):
                forward.ids = forward.ids.cpu().numpy()
                ids.update(forward.ids.reshape(-1).tolist())
        texts = {token: tokenizer.decode([token]) for token in sorted(ids)} if tokenizer else {}
        self.builder.header["texts"] = texts
        return self.builder.trace()
