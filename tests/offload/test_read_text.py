"""A text that is read and recorded: as the plain model reads it, settings left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TINY_MOE
from families import reference
from transformers import AutoTokenizer

import moe_colab as mc
from moe_colab.cache.settings import SOURCES

pytestmark = pytest.mark.colab
TEXT = "The captain looked at the sea for a long time before he said anything at all to us."


@pytest.fixture(scope="module")
def loaded():
    model, tokenizer = mc.load(slots=3, speculate=1, progress=False)
    with model.offload:
        yield model, tokenizer


def test_the_text_is_read_and_continued_as_the_plain_model_does(loaded):
    trace = mc.record_text(*loaded, TEXT, label="sea", prompt=5, tokens=12, more=4)
    ids = AutoTokenizer.from_pretrained(TINY_MOE)(TEXT, return_tensors="pt").input_ids[:, :12]
    plain = reference(TINY_MOE)
    with torch.no_grad():
        whole = plain.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        hidden = plain(whole, output_router_logits=True).router_logits
    assert trace.tokens.tolist() == whole[0].tolist()
    assert trace.forwards["length"].tolist() == [5] + [1] * (7 + 4)
    assert trace.labels == ("sea",) and trace.texts[int(ids[0, 3])]
    for layer, logits in enumerate(hidden):
        top = logits.float().topk(2).indices.sort().values.numpy()
        agree = (np.sort(trace.routing[:, layer]) == top).all(-1)
        assert agree.mean() > 0.9, "but for near ties between one token at a time and all at once"


def test_it_holds_what_any_replay_needs_and_leaves_the_settings_alone(loaded):
    model, tokenizer = loaded
    before = model.offload.prefetch
    trace = mc.record_text(model, tokenizer, TEXT, tokens=40, prompt=8, sources=SOURCES)
    assert model.offload.prefetch == before
    assert trace.sources == SOURCES
    for source in SOURCES:
        for guesses, ahead in ((4, 1), (4, 2)):
            setting = {"speculate": guesses, "lookahead": ahead, "guess_from": source}
            assert (
                mc.replay(trace, slots=4, **setting).accesses == mc.replay(trace, slots=4).accesses
            )
    with pytest.raises(mc.MoEColabError, match="holds 4 guesses"):
        mc.replay(trace, slots=4, speculate=5)


def test_a_text_shorter_than_a_prompt_is_one(loaded):
    trace = mc.record_text(*loaded, "Good day", more=2)
    assert trace.steps == 3 and trace.forwards["phase"].tolist() == [0, 1, 1]


def test_the_settings_come_back_after_an_error(loaded):
    model, tokenizer = loaded
    before = model.offload.prefetch
    with mc.record(model), pytest.raises(mc.MoEColabError, match="recorded already"):
        mc.record_text(model, tokenizer, TEXT)
    assert model.offload.prefetch == before


def test_nothing_is_read_while_a_chat_answers(loaded):
    model = loaded[0]
    with model.offload.answering, pytest.raises(mc.MoEColabError, match="answering in a chat now"):
        mc.record_text(*loaded, TEXT)
    assert mc.record_text(*loaded, TEXT, tokens=2) and not model.offload.answering.locked()


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        ("", {}, "no token"),
        (TEXT, {"prompt": 0}, "1 at least"),
        (TEXT, {"tokens": 0}, "1 at least"),
        (TEXT, {"more": -1}, "more 0"),
        (TEXT, {"sources": ()}, "not empty"),
        (TEXT, {"lookahead": 3}, "1 to 2"),
    ],
)
def test_what_cannot_be_read_is_told(loaded, text, settings, words):
    with pytest.raises(mc.MoEColabError, match=words):
        mc.record_text(*loaded, text, **settings)


def test_only_offloaded_models_can_be_recorded(loaded):
    with pytest.raises(mc.MoEColabError, match=r"mc\.load"):
        mc.record_text(reference(TINY_MOE), loaded[1], TEXT)
