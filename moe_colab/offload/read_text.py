"""Recording of a model that reads a text: a prompt at once, then one given token after another.
The routing then depends on the text alone, not on tokens that the model would have generated.

Knows transformers' caches and `record`; knows no texts.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from ..cache.settings import SOURCES
from ..errors import MoEColabError
from ..trace import Trace
from .handle import Offload, offload_of
from .record import record
from .text_ids import check_ids, text_ids

PROMPT = 32  # tokens of the prompt


def record_text(
    model: torch.nn.Module,
    tokenizer: Any,
    text: str,
    *,
    label: str = "",
    prompt: int = PROMPT,
    tokens: int = 128,
    more: int = 0,
    speculate: int = 4,
    lookahead: int = 2,
    sources: Sequence[str] = SOURCES[:1],
) -> Trace:
    """The trace of a model that reads a text and goes on with it.

    label: the name of the text in the trace.
    prompt: how many tokens are read at once (prefill); the others are read one by one (decode).
    tokens: how many tokens of the text are read.
    more: how many tokens the model adds, each the most likely one.
    speculate, lookahead: the guesses that are recorded, as for mc.load; the prefetch is never
        switched off. A replay of the trace may use as many guesses, or fewer.
    sources: where guesses are made from, `guess_from` of mc.load. The text is read once for each;
        outcomes and times are those of the first reading.

    The model's own settings come back afterwards. Raises MoEColabError for a text without tokens,
    for numbers that are too small, while a chat answers, and where mc.record does.
    """
    if prompt < 1 or tokens < 1 or more < 0 or not sources:
        raise MoEColabError("prompt and tokens must be 1 at least, more 0, and sources not empty.")
    ids = ids_of(tokenizer, text, tokens)
    with exclusive(offload_of(model)):
        return record_ids(model, tokenizer, ids, label, prompt, more, speculate, lookahead, sources)


def ids_of(tokenizer: Any, text: str, tokens: int) -> torch.Tensor:
    """int64 [1, T]: the text's first tokens, `tokens` at most. Raises MoEColabError where there
    are none."""
    ids = text_ids(tokenizer, text, goes_on=True)[:, :tokens]
    if not ids.shape[1]:
        raise MoEColabError("there is no token in this text: write a few words.")
    return ids


def record_ids(
    model: torch.nn.Module,
    tokenizer: Any,
    ids: torch.Tensor,
    label: str,
    prompt: int,
    more: int,
    speculate: int,
    lookahead: int,
    sources: Sequence[str],
) -> Trace:
    """`record_text` for token ids [1, T], inside `exclusive`."""
    check_ids(model, ids[0])
    settings = {"speculate": speculate, "lookahead": lookahead, "stand_aside": False}
    traces = []
    for guess_from in sources:
        with (
            prefetching(model.offload, guess_from=guess_from, **settings),
            record(model, tokenizer, label=label) as trace,
        ):
            read(model, ids, prompt, more)
        traces.append(trace)
    return reduce(with_guesses_of, traces)


@torch.no_grad()
def read(model: torch.nn.Module, ids: torch.Tensor, prompt: int = PROMPT, more: int = 0) -> None:
    """Run the model on ids [1, T]: `prompt` of them at once, then a token at a time, then `more`
    that it chooses itself."""
    past = {cache_argument(model): DynamicCache(config=model.config)}
    ids = ids.to(model.device)
    prompt = min(prompt, ids.shape[1])
    for part in ids.split([prompt] + [1] * (ids.shape[1] - prompt), dim=1):
        output = model(part, use_cache=True, **past)
    for _ in range(more):
        output = model(output.logits[:, -1:].argmax(-1), use_cache=True, **past)


def cache_argument(model: torch.nn.Module) -> str:
    """The name by which a forward takes its cache; it differs between versions of transformers."""
    takes = inspect.signature(type(model).forward).parameters
    return "cache" if "cache" in takes else "past_key_values"


@contextlib.contextmanager
def exclusive(handle: Offload) -> Iterator[None]:
    """Keep chats from answering meanwhile, whose tokens would be recorded too. Raises MoEColabError
    while one answers."""
    if not handle.answering.acquire(blocking=False):
        raise MoEColabError("this model is answering in a chat now: wait until the answer ends.")
    try:
        yield
    finally:
        handle.answering.release()


@contextlib.contextmanager
def prefetching(handle: Offload, **changes: Any) -> Iterator[None]:
    """Change these prefetch settings for a while."""
    before = handle.prefetch
    handle.prefetch = replace(before, **changes)
    try:
        yield
    finally:
        if not handle.closed:
            handle.prefetch = before


def with_guesses_of(trace: Trace, other: Trace) -> Trace:
    """`trace` with the guesses of `other` too, which is another reading of the same tokens. Raises
    MoEColabError where they were routed differently."""
    if not np.array_equal(trace.routing, other.routing):
        raise MoEColabError("two readings of the same tokens were routed differently.")
    added = other.guesses.copy()
    added["source"] += len(trace.sources)
    both = np.concatenate([trace.guesses, added])
    both = both[np.lexsort((both["source"], both["at"], both["step"]))]
    return replace(trace, guesses=both, sources=trace.sources + other.sources)
