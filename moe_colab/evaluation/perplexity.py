"""Perplexity of a model on texts, and its first choice for every token. Knows forwards; knows
nothing of experts or bits.

Two models are compared by their `Scores` on the same tokens, so that both need not be in memory
together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import MoEColabError
from ..machine.folders import evaluation_folder
from ..offload.text_ids import check_ids, text_ids

SEPARATOR = "<|doc|>"
ROLES = {"U: ": "user", "A: ": "assistant"}


@dataclass(frozen=True)
class Scores:
    """A model's predictions of every scored token, in the order of the texts.

    nll: float64 [tokens], negative log likelihood in nats.
    top1: int64 [tokens], the token that the model finds most probable there.
    documents: int64 [tokens], the number of the token's text.
    nbytes: UTF-8 bytes of the scored text.
    """

    nll: np.ndarray
    top1: np.ndarray
    documents: np.ndarray
    nbytes: int

    @property
    def tokens(self) -> int:
        return len(self.nll)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log likelihood of a token."""
        return math.exp(self.nll.mean())

    @property
    def bits_per_byte(self) -> float:
        """Negative log likelihood in bits per UTF-8 byte: comparable between tokenizers."""
        return float(self.nll.sum()) / math.log(2) / self.nbytes

    def agreement(self, other: Scores) -> float:
        """The share of tokens, 0 to 1, for which both models have the same first choice. Raises
        MoEColabError where they did not score the same texts."""
        if self.tokens != other.tokens or (self.documents != other.documents).any():
            raise MoEColabError(
                f"the scores are of {self.tokens} and {other.tokens} tokens of different texts: "
                "score both models on the same texts."
            )
        return float((self.top1 == other.top1).mean())

    def __repr__(self) -> str:
        return (
            f"<Scores perplexity {self.perplexity:.4f}, {self.bits_per_byte:.4f} bits per byte, "
            f"{self.tokens:,} tokens>"
        )


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: str | Iterable[str],
    *,
    window: int = 512,
    stride: int | None = None,
    progress: bool = False,
) -> Scores:
    """Scores of every token of every text but its first, each token once, each text alone.

    window: how many tokens the model reads at once.
    stride: by how many tokens the window moves, half of it by default: a token is predicted from
        at least `window - stride` tokens before it, where the text has so many.
    progress: show a progress bar.

    Raises MoEColabError where no text has two tokens, for tokens past the model's vocabulary, or
    for a stride outside 1 to window - 1.
    """
    stride = window // 2 if stride is None else stride
    if not 0 < stride < window:
        raise MoEColabError(
            f"window {window} and stride {stride}: the stride must be at least 1 and smaller than "
            "the window."
        )
    texts = [texts] if isinstance(texts, str) else list(texts)
    nll, top1, documents, nbytes = [], [], [], 0
    for number, text in enumerate(tqdm(texts, desc="scoring", disable=not progress, leave=False)):
        ids = text_ids(tokenizer, text)[0]
        check_ids(model, ids)
        nbytes += len(tokenizer.decode(ids[1:]).encode())
        for begin, first, end in windows(len(ids), window, stride):
            logits = model(ids[None, begin : end - 1].to(model.device)).logits[0].float()
            logits, targets = logits[first - begin - 1 :], ids[first:end].to(logits.device)
            nll.append(F.cross_entropy(logits, targets, reduction="none").double().cpu().numpy())
            top1.append(logits.argmax(-1).cpu().numpy())
            documents.append(np.full(end - first, number))
    if not nll:
        raise MoEColabError("there is nothing to score: a text needs at least two tokens.")
    return Scores(np.concatenate(nll), np.concatenate(top1), np.concatenate(documents), nbytes)


def windows(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first, end) of each step: tokens [begin, end) are read, [first, end) are scored."""
    first = 1
    while first < length:
        end = min(length, first + (stride if first > 1 else window - 1))
        yield max(0, end - window), first, end
        first = end


DOMAINS = {"chat": "task_dialogues", "code": "code_python", "french": "french", "prose": "prose"}
"""Four domains of the evaluation text, by short names."""


def evaluation_texts(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[str]]:
    """The project's own evaluation texts by domain; dialogues are written by the tokenizer's chat
    template, where it has one."""
    texts = {}
    for path in sorted(evaluation_folder().glob("*.txt")):
        documents = path.read_text(encoding="utf-8").split(f"{SEPARATOR}\n")
        texts[path.stem] = [as_chat(tokenizer, document.strip("\n")) for document in documents]
    return texts


def as_chat(tokenizer: PreTrainedTokenizerBase, document: str) -> str:
    """A dialogue by the tokenizer's chat template; any other document as it is."""
    lines = document.split("\n")
    if tokenizer.chat_template is None or not all(line[:3] in ROLES for line in lines):
        return document
    turns = [{"role": ROLES[line[:3]], "content": line[3:]} for line in lines]
    return tokenizer.apply_chat_template(turns, tokenize=False)
