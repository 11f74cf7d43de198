"""Texts that hold their special tokens already get none of them twice, wherever a text is read."""

from __future__ import annotations

import pytest
from conftest import TINY_MOE
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

import moe_colab as mc
from moe_colab.offload.text_ids import text_ids

pytestmark = pytest.mark.colab
BOS, EOS = "<|bos|>", "<|end|>"


def tokenizer_that_adds(single: str):
    """The small model's tokenizer; `single`: as in "BOS $A EOS", what it adds to a text."""
    tokenizer = AutoTokenizer.from_pretrained(TINY_MOE)
    names = {"BOS": BOS, "EOS": EOS}
    for name, token in names.items():
        single = single.replace(name, token)
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in names.values()]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=special
    )
    return tokenizer


@pytest.mark.parametrize("single", ["$A", "BOS $A", "$A EOS", "BOS $A EOS"])
@pytest.mark.parametrize(
    ("text", "begins", "ends"),
    [
        ("A king", False, False),
        ("<|bos|>A king", True, False),
        ("A king<|end|>", False, True),
        ("<|bos|>A king<|end|>", True, True),
    ],
)
@pytest.mark.parametrize("goes_on", [False, True])
def test_no_special_token_stands_twice(single, text, begins, ends, goes_on):
    tokenizer = tokenizer_that_adds(single)
    bos, eos = tokenizer.convert_tokens_to_ids([BOS, EOS])
    words = tokenizer("A king", add_special_tokens=False).input_ids
    adds_bos, adds_eos = "BOS" in single, "EOS" in single
    written_by_a_template = begins and adds_bos
    first = [bos] if begins or adds_bos else []
    last = [eos] if ends or (adds_eos and not goes_on and not written_by_a_template) else []
    assert text_ids(tokenizer, text, goes_on=goes_on).tolist() == [[*first, *words, *last]]


def test_a_tokenizer_without_settings_is_one():
    class Letters:
        def __call__(self, text):
            return type("Ids", (), {"input_ids": [ord(letter) for letter in text]})

    assert text_ids(Letters(), "ab").tolist() == [[97, 98]]


@pytest.fixture(scope="module")
def model():
    model, _ = mc.load(slots=4, progress=False)
    with model.offload:
        yield model


def test_dialogues_are_scored_as_the_chat_template_encodes_them(model):
    adding, plain = tokenizer_that_adds("BOS $A"), tokenizer_that_adds("$A")
    texts = mc.evaluation_texts(adding)["task_dialogues"][:3]
    assert texts[0].startswith(BOS)
    twice, once = (mc.perplexity(model, one, texts) for one in (adding, plain))
    assert twice.tokens == once.tokens and twice.perplexity == once.perplexity
    prose = "Old Tabitha Crewe kept the ferry."
    assert (
        mc.perplexity(model, adding, prose).tokens == mc.perplexity(model, plain, prose).tokens + 1
    )


def test_tokens_past_the_vocabulary_are_told(model, monkeypatch):
    tokenizer = tokenizer_that_adds("$A")
    monkeypatch.setattr(model.config, "vocab_size", 40)
    for read in (mc.perplexity, mc.record_text, mc.stepper):
        with pytest.raises(mc.MoEColabError, match="knows 40 tokens only"):
            read(model, tokenizer, "Old Tabitha Crewe kept the ferry.")


@pytest.mark.parametrize("single", ["BOS $A", "BOS $A EOS"])
def test_a_text_is_recorded_with_one_bos_and_without_an_eos_before_it_goes_on(model, single):
    tokenizer = tokenizer_that_adds(single)
    expected = tokenizer("<|bos|>A king", add_special_tokens=False).input_ids
    for text in ("A king", "<|bos|>A king"):
        trace = mc.record_text(model, tokenizer, text, more=1)
        assert trace.tokens.tolist()[:-1] == expected[: len(trace.tokens) - 1]
        assert trace.steps == 2
        steps = mc.stepper(model, tokenizer, text, tokens=2, more=0)
        shown = [steps.at(n, 0).text for n in range(2)]
        assert shown == [tokenizer.decode([token]) for token in expected[:2]]
