"""A short check of a quantized store: whether the model still predicts text, or only noise.

The measure needs no other model: perplexity on a text, beside that of guessing each token by how
often it occurs in this text. A model that is worse than this has lost what it knew.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ..errors import MoEColabError
from ..offload.load import load
from ..offload.text_ids import text_ids
from ..store import Summary
from ..store.check import Check
from ..store.update import change_report
from .perplexity import evaluation_texts, perplexity

SECONDS = 45.0  # of reading: with loading, less than 60
TOKENS, WINDOW = 800, 256


class OutOfTime(Exception):
    """Raised inside the model when the check has taken its time."""


def check_store(summary: Summary, device: torch.device | str = "auto") -> Check:
    """Let the model of this store read some of the project's evaluation text, keep the result in
    the store's report, and return it. Warns where the model is noise."""
    folder = Path(summary.store)
    errors = [error for name, error in summary.relative_error.items() if "." not in name]
    error = sum(errors) / len(errors) if errors else 0.0
    check = Check(*read_some(folder, device), error, min(summary.bits))
    change_report(folder, check)
    if check.noise:
        warnings.warn(f"{folder}: {check.line()}.", stacklevel=3)
    return check


def read_some(folder: Path, device: torch.device | str) -> tuple[int, float | None, float | None]:
    """(tokens that were read in the time of a check, the perplexity, that by frequency)."""
    try:
        model, tokenizer = load(folder, device=device, progress=False)
    except MoEColabError:  # this machine cannot run it
        return 0, None, None
    nll, counts = 0.0, Counter()
    with model.offload:
        end, runtime = time.monotonic() + SECONDS, model.offload.runtime

        def stop_late() -> None:
            if time.monotonic() > end:
                raise OutOfTime

        runtime.check_stop = stop_late
        try:
            for text, ids in some_texts(tokenizer):
                nll += float(perplexity(model, tokenizer, text, window=WINDOW).nll.sum())
                counts.update(ids)
                if counts.total() >= TOKENS:
                    break
        except (OutOfTime, MoEColabError):
            pass  # what was read until then counts; a tokenizer may not fit the model
        finally:
            runtime.check_stop = lambda: None
    tokens = counts.total()
    if not tokens:
        return 0, None, None
    entropy = -sum(n * math.log(n / tokens) for n in counts.values()) / tokens
    mean = nll / tokens if math.isfinite(nll) else math.inf
    return tokens, math.exp(min(mean, 700.0)), math.exp(entropy)


def some_texts(
    tokenizer: PreTrainedTokenizerBase | None,
) -> Iterator[tuple[str, list[int]]]:
    """Texts of all domains in turn, each with its tokens but the first."""
    if tokenizer is None:
        return
    for text in chain.from_iterable(zip_longest(*evaluation_texts(tokenizer).values())):
        ids = text_ids(tokenizer, text)[0, 1:].tolist() if text else []
        if ids:
            yield text, ids
