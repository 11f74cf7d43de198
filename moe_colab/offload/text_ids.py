"""Token ids of a text that may hold special tokens already. Knows tokenizers; knows no models."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import MoEColabError

SAMPLE = "a"  # any text: what a tokenizer adds does not depend on it


def text_ids(tokenizer: Any, text: str, *, goes_on: bool = False) -> torch.Tensor:
    """int64 [1, T]: the ids of a text, with the special tokens that the tokenizer adds, but none of
    them twice.

    A text that begins with what the tokenizer would put before it (mostly BOS) is one that a chat
    template has written: it is complete, and nothing is added. A text that ends with what the
    tokenizer would put behind it (EOS) gets no second one.

    goes_on: the model will continue the text: nothing is added behind it.
    """
    added = encoded(tokenizer, text)
    plain = encoded(tokenizer, text, add_special_tokens=False)
    before, behind = around(tokenizer)
    if before and plain[: len(before)] == before:
        ids = plain
    elif behind and (goes_on or plain[-len(behind) :] == behind):
        ids = [*before, *plain]
    else:
        ids = added
    return torch.tensor([ids], dtype=torch.int64, device="cpu")


def check_ids(model: Any, ids: Sequence[int] | torch.Tensor) -> None:
    """Raises MoEColabError for an id past the model's vocabulary: on a GPU it would end the
    process."""
    vocabulary = model.config.get_text_config().vocab_size
    most = int(ids.max() if torch.is_tensor(ids) else max(ids)) if len(ids) else 0
    if most >= vocabulary:
        raise MoEColabError(
            f"the tokenizer gives token {most} for this text, and the model knows {vocabulary} "
            "tokens only: write it in another way, or use the model's own tokenizer."
        )


def around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and behind every text."""
    added = encoded(tokenizer, SAMPLE)
    plain = encoded(tokenizer, SAMPLE, add_special_tokens=False)
    for start in range(len(added) - len(plain) + 1):
        if plain and added[start : start + len(plain)] == plain:
            return added[:start], added[start + len(plain) :]
    return [], []


def encoded(tokenizer: Any, text: str, **settings: Any) -> list[int]:
    """The ids that a tokenizer gives, without its warning of a long text. A tokenizer of one's own
    need not know these settings."""
    takes = inspect.signature(tokenizer).parameters
    if not any(taken.kind is taken.VAR_KEYWORD for taken in takes.values()):
        settings = {name: value for name, value in settings.items() if name in takes}
    elif "verbose" in takes:
        settings["verbose"] = False
    return tokenizer(text, **settings).input_ids
