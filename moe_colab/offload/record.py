"""Recording of a model: `mc.record` hooks it up to a trace builder for the length of a block.

Knows torch's hooks and the handle's counters; knows no pool. Each layer's routing is on the host
anyway; the logits come with it, in the same transfer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from ..errors import MoEColabError
from ..trace import Builder, Trace
from .handle import Offload, offload_of
from .hooks import model_input, past_length


@contextlib.contextmanager
def record(model: torch.nn.Module, tokenizer: Any = None, *, label: str = "") -> Iterator[Trace]:
    """Record what an offloaded model does inside the block: `with mc.record(model) as trace: ...`.

    The trace is empty until the block ends, by its last line or by an error. A forward that does
    not end is left out. Guesses are recorded as they are made: to replay the prefetch of n experts,
    record with `speculate` at least n.

    tokenizer: to record the texts of the tokens too.
    label: the name of this part, for traces that are merged.

    Raises MoEColabError where the model is not one of mc.load, is closed, or is being recorded
    already.

        model, tokenizer = mc.load(slots=4)
        inputs = tokenizer("Tell me a story about a dragon", return_tensors="pt")
        with mc.record(model, tokenizer) as trace:
            model.generate(**inputs, max_new_tokens=40)  # 1 step for the prompt, 1 for each token
        print(trace.frame())  # pandas: one row per step, layer, token and rank
        print(trace.save("story.npz"))  # mc.Trace.load reads it
    """
    offload = offload_of(model)
    runtime, builder = offload.runtime, Builder(header(offload), label)
    trace = builder.trace()
    with runtime.lock:
        runtime.pool.check_open()
        if runtime.tracker.recording is not None:
            raise MoEColabError(
                "this model is being recorded already: leave the first `with mc.record(...)` block "
                "before the next begins."
            )
        runtime.tracker.recording = builder

    def begin(model, args, kwargs) -> None:
        inputs = model_input(args, kwargs)
        if inputs is not None:
            rows, length = inputs.shape[:2]
            # Copied on their device, and brought to the host at the end.
            ids = None if inputs.is_floating_point() else inputs.detach().clone()
            builder.begin(runtime.tracker.phase, rows, length, past_length(kwargs), ids)

    def end(model, args, output) -> None:
        if runtime.tracker.recording is builder:
            builder.end()

    inner = model.base_model  # it also runs where the model around it is not called
    hooks = [
        inner.register_forward_pre_hook(begin, with_kwargs=True),
        inner.register_forward_hook(end),
    ]
    try:
        yield trace
    finally:
        for hook in hooks:
            hook.remove()
        with runtime.lock:  # no layer runs now
            runtime.tracker.recording = None
        builder.header["texts"] = texts_of(builder, tokenizer)
        trace._fill_from(builder.trace())


def header(offload: Offload) -> dict[str, Any]:
    """What a trace says of the model that was recorded."""
    names = ("slots", "policy", "whole_layer", "speculate", "lookahead", "guess_from")
    return {
        "model": offload.name,
        "experts": tuple(offload.experts),
        "expert_bytes": tuple(entry.layout.nbytes for entry in offload.entries),
        "settings": {
            **{name: getattr(offload, name) for name in names},
            "device": str(offload.device),
            "dtype": str(offload.dtype).removeprefix("torch."),
        },
    }


def texts_of(builder: Builder, tokenizer: Any) -> dict[int, str]:
    """The text of every token id that was recorded; brings the ids to the host."""
    ids = set()
    for forward in builder.done:
        if isinstance(forward.ids, torch.Tensor):
            forward.ids = forward.ids.cpu().numpy()
            ids.update(forward.ids.reshape(-1).tolist())
    return {token: tokenizer.decode([token]) for token in sorted(ids)} if tokenizer else {}
