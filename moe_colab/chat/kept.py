"""Keys and values of a conversation, kept from one answer to the next: the next prompt begins with
most of the same tokens, and these need not be read again.

Knows transformers' caches; knows no conversation. What is kept is found again by token ids alone,
so another system prompt, a retry or another tokenizer need no special care.

A layer with full attention can be cut at any token. A layer with a sliding window forgets what has
left the window, so its state at the end of the prompt is copied, and a prompt goes on from there or
from the end. Recurrent states (Mamba, linear attention, convolutions) are not kept: the prompt is
read again from its beginning.

Which numbers are equal: a prompt that is read in two parts multiplies matrices of other shapes than
one that is read at once, and torch may then round the last bit in another way. The logits agree to
rounding, not to the last bit. The tokens are the same, but for two tokens whose logits are as
close as that.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..units import human

Copies = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of the layers with a sliding window, by layer."""


class Kept:
    """The keys and values of the latest prompt and answer. `ids`: their tokens; [] for nothing.
    `note`: in words, why the latest ones were not kept.

    most: bytes that may be kept between two answers, 0 to keep nothing.
    """

    def __init__(self, most: int):
        self.most = most
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Free the memory."""
        with self._lock:
            self._empty()

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        with self._lock:
            return self._bytes() if self.cache is not None else 0

    def take(self, model: torch.nn.Module, ids: Sequence[int]) -> tuple[DynamicCache | None, int]:
        """(a cache for `generate`, how many tokens of `ids` it holds already, at most all but the
        last). None where this model has a cache of its own kind, or nothing may be kept."""
        with self._lock:
            cache, place = self._cut(model, ids)
            self._empty()
        if cache is None and self.most and model._supports_default_dynamic_cache():
            cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        return cache, place

    def prompt_read(self, cache: DynamicCache, length: int) -> None:
        """The prompt has just been read: copy what later tokens would push out of a window."""
        windows = {n: layer for n, layer in enumerate(cache.layers) if is_window(layer)}
        copies = {n: (layer.keys.clone(), layer.values.clone()) for n, layer in windows.items()}
        with self._lock:
            self.copies, self.copied = copies, length

    def keep(self, cache: DynamicCache, ids: Sequence[int]) -> None:
        """The answer has ended; `ids`: of prompt and answer, which the cache holds but for the
        last."""
        lengths = {layer.get_seq_length() for layer in cache.layers if is_used(layer)}
        with self._lock:
            if len(lengths) != 1 or not all(map(is_known, cache.layers)):
                self._empty()
                return
            self.cache, self.ids = cache, list(ids[: lengths.pop()])
            if all(can_be_cut(layer) for layer in cache.layers):
                self.copies = {}
            nbytes = self._bytes()
            if nbytes > self.most:
                self._empty()
                self.note = (
                    f"the keys and values of this conversation take {human(nbytes)}, and at most "
                    f"{human(self.most)} are kept: the next question reads it again"
                )

    def _empty(self) -> None:
        self.note = ""
        self.cache: DynamicCache | None = None
        self.ids: list[int] = []
        self.copies: Copies = {}
        self.copied = 0  # the length at which the copies were made

    def _bytes(self) -> int:
        kept = [(layer.keys, layer.values) for layer in self.cache.layers if is_used(layer)]
        return sum(t.nbytes for pair in (*kept, *self.copies.values()) for t in pair)

    def _cut(self, model: torch.nn.Module, ids: Sequence[int]) -> tuple[DynamicCache | None, int]:
        cache, most = self.cache, min(common(self.ids, ids), len(ids) - 1)
        limit = rope_limit(model.config)
        if limit is not None and max(len(ids), len(self.ids)) > limit:
            most = 0
        if cache is None or most < 1:
            return None, 0
        if not all(can_be_cut(layer) for layer in cache.layers):
            places = [place for place in (len(self.ids), self.copied) if place <= most]
            most = max(places, default=0)
        remove = len(self.ids) - most
        for number, layer in enumerate(cache.layers):
            if most and remove and is_used(layer):
                cut(layer, remove, self.copies.get(number) if most == self.copied else None)
        return (cache, most) if most else (None, 0)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def is_used(layer: Any) -> bool:
    """Whether a layer of a cache holds anything. Layers without attention hold nothing."""
    return bool(getattr(layer, "is_initialized", False))


def is_window(layer: Any) -> bool:
    return type(layer) is DynamicSlidingWindowLayer and is_used(layer)


def is_known(layer: Any) -> bool:
    """Whether a layer holds keys and values alone, or nothing."""
    if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer):
        return True
    return type(layer).__name__ == "DummyLayer"


def can_be_cut(layer: Any) -> bool:
    """Whether any number of the latest tokens can be removed."""
    return not is_window(layer) or layer.get_seq_length() < layer.sliding_window


def cut(layer: Any, remove: int, copy: tuple[torch.Tensor, torch.Tensor] | None) -> None:
    """Remove the latest tokens; from a window that has moved on, by going back to its copy."""
    if copy is not None and not can_be_cut(layer):
        layer.keys, layer.values = copy
        layer.cumulative_length -= remove
    else:
        layer.crop(-remove)


def rope_limit(config: Any) -> int | None:
    """The length in tokens from which on a model turns all keys in another way (dynamic and
    longrope): keys from before would be wrong. None for most models."""
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    found = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    for one in found:
        if one.get("rope_type", one.get("type")) in ("dynamic", "longrope"):
            original = one.get("original_max_position_embeddings")
            original = original or getattr(text, "original_max_position_embeddings", None)
            return int(original or text.max_position_embeddings)
    return None
