"""What every router of a model said, token by token, and what could have been guessed before.

Knows a loaded model; knows no cache and no link.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from ..cache.settings import FARTHEST
from ..machine.folders import evaluation_folder

Ranked = list[tuple[int, float]]


@dataclass
class Said:
    """One token. needed[layer]: experts, ascending; guesses[source, lookahead][layer]: what is
    guessed at that layer for the one so many layers later, all experts, likeliest first."""

    needed: list[list[int]]
    guesses: dict[tuple[str, int], list[Ranked]] = field(default_factory=dict)


def mixed_text(tokenizer: Any, tokens: int) -> list[torch.Tensor]:
    """So many tokens of every evaluation text, ids [1, tokens] each."""
    return [
        tokenizer(path.read_text(encoding="utf-8")[: 40 * tokens], return_tensors="pt")
        .input_ids[:, :tokens]
        .contiguous()
        for path in sorted(evaluation_folder().glob("*.txt"))
    ]


def listen(model: torch.nn.Module, texts: list[torch.Tensor]) -> list[Said]:
    """Let the model read the texts, a token at a time, and note what its routers say and would have
    said."""
    offload, said = model.offload, []
    with torch.inference_mode():
        model(texts[0][:, :1])  # the first forward shows the speculator where each norm is
    layers, speculator = len(offload.entries), offload.runtime.prefetcher
    experts = offload.pool.experts

    def note(layer: int, source: str) -> None:
        for ahead in range(1, FARTHEST + 1):
            guess = None
            if layer + ahead < layers:
                every = offload.experts[layer + ahead]
                from_output = source == "layer_output"
                guess = speculator.guess(layer, layer + ahead, every, from_output)
            ranked = (
                [] if guess is None else [(int(e), p) for e, p in zip(*guess.tolist(), strict=True)]
            )
            said[-1].guesses.setdefault((source, ahead), []).append(ranked)

    def noting(layer, needed, *more):
        if layer == 0:
            said.append(Said([]))
        said[-1].needed.append(list(needed))
        note(layer, "router_input")
        return experts(layer, needed, *more)

    before = speculator.wanted, speculator.after
    speculator.wanted, speculator.after = lambda: True, lambda layer: note(layer, "layer_output")
    offload.pool.experts = noting
    try:
        with torch.inference_mode():
            for ids in texts:
                past = DynamicCache(config=model.config)
                for token in ids[0]:
                    model(token.view(1, 1), past_key_values=past, use_cache=True)
    finally:
        del offload.pool.experts
        speculator.wanted, speculator.after = before
    return said


def recall(said: list[Said], source: str, ahead: int, n: int) -> list[float]:
    """Of each layer (from the first that can be guessed on): the share of the needed experts that
    were among the first n guesses for it."""
    layers, out = len(said[0].needed), []
    for target in range(ahead, layers):
        right = whole = 0
        for token in said:
            guessed = [e for e, _ in token.guesses[source, ahead][target - ahead][:n]]
            right += len(set(token.needed[target]) & set(guessed))
            whole += len(token.needed[target])
        out.append(right / whole)
    return out


def corpus_name(folder: Path) -> str:
    return ", ".join(path.stem for path in sorted(folder.glob("*.txt")))
