"""Reading a text with a model that is recorded: a prompt, then one token after the other, as the
text says it. The routing then depends on the text alone, not on what a model would have made up.

Knows transformers' caches and `recording`; knows no texts.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from ..cache.settings import SOURCES
from ..errors import MoEColabError
from ..trace import Trace
from .handle import Offload
from .record import record

PROMPT = 32  # tokens that are read at once


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
    """Read the first `tokens` tokens of `text`, `prompt` of them at once and the others one by one,
    then go on for `more` tokens, each the likeliest; the trace of all that.

    The model guesses `speculate` experts a layer meanwhile, `lookahead` layers ahead, and does not
    stand aside, so that any replay with as many guesses can be made of the trace; its settings are
    as before afterwards. With several `sources` of guesses all is read as often; outcomes and times
    are those of the first reading. Raises MoEColabError for a text without tokens, numbers that
    cannot be, while a chat answers, or what mc.record refuses.
    """
    if prompt < 1 or tokens < 1 or more < 0 or not sources:
        raise MoEColabError("prompt and tokens must be 1 at least, more 0, and sources not empty.")
    ids = ids_of(tokenizer, text, tokens)
    with alone(handle_of(model)):
        return record_ids(model, tokenizer, ids, label, prompt, more, speculate, lookahead, sources)


def ids_of(tokenizer: Any, text: str, tokens: int) -> torch.Tensor:
    """int64 [1, T]: the text's first tokens, so many at the most. Raises MoEColabError where there
    are none."""
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :tokens]
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
    """What record_text does with the ids of a text, for whoever is alone with the model."""
    readings = []
    for source in sources:
        with (
            guessing(handle_of(model), speculate, lookahead, source),
            record(model, tokenizer, label=label) as trace,
        ):
            read(model, ids, prompt, more)
        readings.append(trace)
    whole = readings[0]
    for other in readings[1:]:
        whole = with_guesses_of(whole, other)
    return whole


@torch.no_grad()
def read(model: torch.nn.Module, ids: torch.Tensor, prompt: int = PROMPT, more: int = 0) -> None:
    """ids [1, T]: `prompt` of them at once, then a token at a time, then `more` of the model's
    own."""
    # The argument's name differs between versions of transformers.
    takes = inspect.signature(type(model).forward).parameters
    past = {"cache" if "cache" in takes else "past_key_values": DynamicCache(config=model.config)}
    ids = ids.to(model.device)
    prompt = min(prompt, ids.shape[1])
    for part in ids.split([prompt] + [1] * (ids.shape[1] - prompt), dim=1):
        said = model(part, use_cache=True, **past)
    for _ in range(more):
        said = model(said.logits[:, -1:].argmax(-1), use_cache=True, **past)


def handle_of(model: torch.nn.Module) -> Offload:
    """Raises MoEColabError where there is none."""
    handle = getattr(model, "offload", None)
    if not isinstance(handle, Offload):
        raise MoEColabError("only a model of mc.load() can be recorded, and this one is not.")
    return handle


@contextlib.contextmanager
def alone(handle: Offload) -> Iterator[None]:
    """No chat answers meanwhile: what it makes the model do would be recorded too. Raises
    MoEColabError while one does."""
    if not handle.answering.acquire(blocking=False):
        raise MoEColabError("this model is answering somebody now: wait until that is over.")
    try:
        yield
    finally:
        handle.answering.release()


@contextlib.contextmanager
def guessing(handle: Offload, speculate: int, lookahead: int, source: str) -> Iterator[None]:
    """For a while, guess so much, whether it pays or not."""
    names = ("speculate", "lookahead", "guess_from", "stand_aside")
    before = [getattr(handle, name) for name in names]
    try:
        for name, value in zip(names, (speculate, lookahead, source, False), strict=True):
            setattr(handle, name, value)
        yield
    finally:
        if not handle.closed:
            for name, value in zip(names, before, strict=True):
                setattr(handle, name, value)


def with_guesses_of(trace: Trace, other: Trace) -> Trace:
    """A trace with the guesses of another one too, of a second reading of the same tokens. Raises
    MoEColabError where they were routed differently."""
    if not np.array_equal(trace.routing, other.routing):
        raise MoEColabError("two readings of the same tokens were routed differently.")
    theirs = other.guesses.copy()
    theirs["source"] += len(trace.sources)
    both = np.concatenate([trace.guesses, theirs])
    both = both[np.lexsort((both["source"], both["at"], both["step"]))]
    return replace(trace, guesses=both, sources=trace.sources + other.sources)
