"""Keys and values that are kept between two answers: the tokens are those of a chat without."""

from __future__ import annotations

import pytest
from conftest import TINY_MOE
from families import make_checkpoint
from transformers import AutoTokenizer

import moe_colab as mc

pytestmark = pytest.mark.colab
WINDOW = {"sliding_window": 16}
FAMILIES = {  # family: whether anything of it can be kept
    "mixtral": True,
    "gpt_oss": True,
    "deepseek_v3": True,
    "qwen3_moe": True,
    "phimoe": True,
    "glm4_moe": True,
    "qwen3_next": False,
    "jamba": False,
    "lfm2_moe": False,
}
CHANGES = {"mixtral": WINDOW}
QUESTIONS = ("Where is the sea?", "And the captain?", "Tell me a story about a dragon", "Why?")


def tokenizer_of():
    return AutoTokenizer.from_pretrained(TINY_MOE)


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request, tmp_path_factory):
    """A tiny model of the family in float32, with the small model's tokenizer."""
    changes = {"vocab_size": 4096, **CHANGES.get(request.param, {})}
    folder = tmp_path_factory.mktemp(request.param)
    model, _ = mc.load(make_checkpoint(request.param, folder, changes=changes), progress=False)
    model.generation_config.eos_token_id = None
    with model.offload:
        yield request.param, model, tokenizer_of()


def chats(model, tokenizer, **settings):
    return (mc.ChatSession(model, tokenizer, keep=keep, **settings) for keep in ("1GB", 0))


SETTINGS = {"seed": 1, "do_sample": False, "max_new_tokens": 24, "min_new_tokens": 24}


def same(chat, other) -> None:
    assert [turn.text for turn in chat.turns] == [turn.text for turn in other.turns]
    assert [turn.tokens for turn in chat.turns] == [turn.tokens for turn in other.turns]
    assert [t.prompt_tokens for t in chat.turns] == [t.prompt_tokens for t in other.turns]
    assert not any(turn.reused_tokens for turn in other.turns) and other.kept_bytes == 0


def test_the_tokens_are_those_without(loaded):
    family, model, tokenizer = loaded
    chat, other = chats(model, tokenizer)
    for one in (chat, other):
        for question in QUESTIONS:
            list(one.ask(question, **SETTINGS))
    same(chat, other)
    assert chat.turns[0].reused_tokens == 0
    for before, turn in zip(chat.turns, chat.turns[1:], strict=False):
        if FAMILIES[family]:
            assert turn.reused_tokens >= before.prompt_tokens > 0
        else:
            assert turn.reused_tokens == 0 and chat.kept_bytes == 0
    assert (chat.kept_bytes > 0) == FAMILIES[family]


def test_retry_system_stop_and_reset(loaded):
    family, model, tokenizer = loaded
    chat, other = chats(model, tokenizer)
    texts = []
    for one in (chat, other):
        said = []
        for question in QUESTIONS[:2]:
            list(one.ask(question, **SETTINGS))
        list(one.retry(**{**SETTINGS, "max_new_tokens": 12, "min_new_tokens": 12}))
        said.append(one.turn.text)
        one.system = "You are a cook."
        list(one.ask(QUESTIONS[2], **SETTINGS))
        said.append(one.turn.text)
        one.system = None
        list(one.ask(QUESTIONS[3], **SETTINGS))
        said.append(one.turn.text)
        one.reset()
        assert one.kept_bytes == 0
        list(one.ask(QUESTIONS[3], **SETTINGS))
        said.append(one.turn.text)
        assert one.turn.reused_tokens == 0
        texts.append(said)
    assert texts[0] == texts[1]
