"""Perplexity and greedy agreement, against a plain computation token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import TINY_MOE
from families import reference

import moe_colab as mc
from moe_colab.evaluation.perplexity import windows

pytestmark = pytest.mark.colab
TEXTS = [
    "The fox looked at the river and did not know what to do. " * 3,
    "What is the weather in London tomorrow?",
    "x",
]


@pytest.fixture(scope="module")
def loaded():
    model, tokenizer = mc.load(slots=3, dtype="float32", progress=False)
    with model.offload:
        yield model, tokenizer


@pytest.mark.parametrize("window, stride", [(512, None), (16, 8), (16, 15), (9, 1)])
def test_every_token_is_scored_once_from_enough_before_it(loaded, window, stride):
    model, tokenizer = loaded
    scores = mc.perplexity(model, tokenizer, TEXTS, window=window, stride=stride)
    plain = reference(TINY_MOE, dtype=torch.float32)
    nll, top1, documents = [], [], []
    for number, text in enumerate(TEXTS):
        ids = tokenizer(text, return_tensors="pt").input_ids
        step = window // 2 if stride is None else stride
        for place in range(1, ids.shape[1]):
            # the window that scores this token ends where the plan says
            end = next(e for b, f, e in windows(ids.shape[1], window, step) if f <= place < e)
            begin = max(0, end - window)
            assert place - begin >= min(place, window - step)
            logits = plain(ids[:, begin:place]).logits[0, -1].double()
            nll.append(-logits.log_softmax(-1)[ids[0, place]].item())
            top1.append(logits.argmax().item())
            documents.append(number)
    np.testing.assert_allclose(scores.nll, nll, atol=1e-4)
    assert (scores.top1 == top1).mean() > 0.99  # two sums in another order may tie
    assert scores.documents.tolist() == documents
    assert scores.perplexity == pytest.approx(math.exp(np.mean(nll)), rel=1e-5)
    size = sum(len(tokenizer.decode(tokenizer(text).input_ids[1:]).encode()) for text in TEXTS)
    assert scores.bits_per_byte == pytest.approx(sum(nll) / math.log(2) / size, rel=1e-5)


def test_agreement_falls_before_perplexity_does(loaded):
    model, tokenizer = loaded
    texts = mc.evaluation_texts(tokenizer)["open_chat"][:2]
    full = mc.perplexity(model, tokenizer, texts)
    assert full.agreement(full) == 1.0
    spoiled = reference(TINY_MOE, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in spoiled.parameters():
            if weight.dim() == 3:
                weight += 0.1 * weight.std() * torch.randn(weight.shape, generator=generator)
    worse = mc.perplexity(spoiled, tokenizer, texts)
    assert worse.perplexity / full.perplexity < 1.05
    assert 0.5 < worse.agreement(full) < 0.99
    other = mc.perplexity(model, tokenizer, texts[:1])
    with pytest.raises(mc.MoEColabError, match="different texts"):
        full.agreement(other)


def test_mistakes(loaded):
    model, tokenizer = loaded
    for settings in ({"window": 8, "stride": 8}, {"window": 8, "stride": 0}, {"window": 1}):
        with pytest.raises(mc.MoEColabError, match="stride must be"):
            mc.perplexity(model, tokenizer, "hello", **settings)
    with pytest.raises(mc.MoEColabError, match="nothing to score"):
        mc.perplexity(model, tokenizer, ["", "x"])


def test_the_evaluation_text_is_large_and_not_made_of_repetitions(loaded):
    _, tokenizer = loaded
    texts = mc.evaluation_texts(tokenizer)
    assert len(texts) == 5
    total = sum(len(tokenizer(t).input_ids) for documents in texts.values() for t in documents)
    assert total >= 20_000
    for domain in ("task_dialogues", "open_chat"):
        assert all(text.startswith("<|bos|><|user|>") for text in texts[domain])
    for documents in texts.values():
        words = " ".join(documents).split()
        seen = [tuple(words[i : i + 12]) for i in range(len(words) - 12)]
        assert len(set(seen)) > 0.98 * len(seen)
