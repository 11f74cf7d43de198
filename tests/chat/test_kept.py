"""Keys and values that are kept between two answers: the tokens are those of a chat without."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY_MOE
from families import make_checkpoint
from transformers import AutoTokenizer, DynamicCache

import moe_colab as mc
from moe_colab.cache.homes import DiskHome
from moe_colab.chat.kept import Kept, common, rope_limit
from moe_colab.offload.read_text import cache_argument

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


# ---------------------------------------------------------------------- the small model
@pytest.fixture
def small():
    model, tokenizer = mc.load(slots=3, progress=False)
    with model.offload:
        yield model, tokenizer


def ask(chat, *questions: str, **settings) -> list[str]:
    settings = {"seed": 1, "do_sample": False, "max_new_tokens": 12, **settings}
    return ["".join(chat.ask(question, **settings)) for question in questions]


def test_a_second_question_loads_less(small):
    small[0].offload.speculate = 0
    chat, other = chats(*small)
    for one in (chat, other):
        ask(one, *QUESTIONS[:3])
        ask(one, "Why?", max_new_tokens=1)
    same(chat, other)
    kept, again = chat.turns[-1], other.turns[-1]
    assert kept.reused_tokens > 20 and kept.loads < again.loads
    assert f"{kept.reused_tokens} of {kept.prompt_tokens} prompt tokens" in kept.line()
    assert chat.as_dict()["turns"][-1]["reused_tokens"] == kept.reused_tokens


def test_sampled_answers_are_the_same_too(small):
    chat, other = chats(*small)
    for one in (chat, other):
        ask(one, *QUESTIONS, do_sample=True, temperature=0.9, max_new_tokens=30)
    same(chat, other)


def test_after_an_error_a_stop_and_other_ways_to_generate(small, monkeypatch):
    chat, other = chats(*small)
    ask(chat, QUESTIONS[0])
    ask(other, QUESTIONS[0])

    def broken(self, buffer):
        raise OSError("the disk is gone")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(DiskHome, "fill", broken)
        with pytest.raises(mc.MoEColabError):
            ask(chat, "Tell me everything about animals and their young")
    assert chat.kept_bytes == 0
    assert ask(chat, QUESTIONS[1]) == ask(other, QUESTIONS[1]) and chat.turn.reused_tokens == 0
    for one in (chat, other):
        answer = one.start("A story", seed=1, min_new_tokens=300, max_new_tokens=300)
        while answer.count < 5:
            pass
        answer.end()
    other.turns = list(chat.turns)  # each was stopped where it was
    assert ask(chat, QUESTIONS[2]) == ask(other, QUESTIONS[2]) and chat.turn.reused_tokens > 40
    assert ask(chat, QUESTIONS[3], num_beams=2) == ask(other, QUESTIONS[3], num_beams=2)
    assert chat.turn.reused_tokens == 0 and chat.kept_bytes > 0
    assert ask(chat, *QUESTIONS) == ask(other, *QUESTIONS) and chat.turn.reused_tokens > 40


def test_turns_that_are_left_out(small, monkeypatch):
    monkeypatch.setattr(small[1], "model_max_length", 90)
    chat, other = chats(*small)
    for one in (chat, other):
        ask(one, *QUESTIONS, *QUESTIONS)
    same(chat, other)
    assert chat.turns[-1].left_out > 0
    assert chat.turns[-1].reused_tokens <= chat.turns[-1].prompt_tokens - 1


def test_another_tokenizer_is_read_from_its_own_ids(small):
    chat, other = chats(*small)
    changed = AutoTokenizer.from_pretrained(TINY_MOE)
    changed.chat_template = changed.chat_template.replace("<|end|>", "<|end|>\n")
    for one in (chat, other):
        ask(one, QUESTIONS[0])
        one.change_tokenizer(changed)
        ask(one, *QUESTIONS[1:])
    same(chat, other)


def test_what_is_kept_has_a_limit_that_is_told(small):
    chat = mc.ChatSession(*small, keep="100kB")
    ask(chat, "Hi", max_new_tokens=2)
    assert 0 < chat.kept_bytes <= 100_000 and chat.turn.kept == ""
    ask(chat, "Tell me a story about a dragon. " * 6, max_new_tokens=4)
    assert chat.kept_bytes == 0 and "at most 100.0 kB are kept" in chat.turn.kept
    assert chat.turn.kept in chat.turn.line()
    ask(chat, "And then?")
    assert chat.turn.reused_tokens == 0
    with pytest.raises(mc.MoEColabError, match="not a size"):
        mc.ChatSession(*small, keep="much")


@pytest.mark.parametrize("how", ["close", "reset", "close the model"])
def test_it_is_freed(small, how):
    chat = mc.ChatSession(*small)
    ask(chat, QUESTIONS[0])
    cache = chat._kept.cache
    assert chat.kept_bytes == sum(t.nbytes for pair in pairs(cache) for t in pair) > 0
    {"close": chat.close, "reset": chat.reset, "close the model": small[0].offload.close}[how]()
    assert chat.kept_bytes == 0 and chat._kept.cache is None


def pairs(cache):
    return [(layer.keys, layer.values) for layer in cache.layers]


def test_a_recording_of_a_chat_holds_the_new_tokens_of_each_question(small):
    model, tokenizer = small
    chat = mc.ChatSession(model, tokenizer)
    with mc.record(model, tokenizer) as trace:
        ask(chat, *QUESTIONS[:2])
    first, second = chat.turns
    prompts = trace.forwards[trace.forwards["phase"] == 0]
    assert prompts["length"].tolist() == [
        first.prompt_tokens, second.prompt_tokens - second.reused_tokens
    ]  # fmt: skip
    assert prompts["past"].tolist() == [0, second.reused_tokens]


# ---------------------------------------------------------------------- the rules
def test_the_logits_after_two_parts_are_those_of_one_to_rounding(loaded):
    family, model, tokenizer = loaded
    ids = torch.tensor([tokenizer("Tell me a long story about a fox and a river").input_ids])
    kept = Kept(10**9)
    cache, place = kept.take(model, ids[0].tolist())
    assert place == 0 and type(cache) is DynamicCache
    if not FAMILIES[family]:
        return
    name = cache_argument(model)
    model(ids[:, :9], use_cache=True, **{name: cache})
    kept.prompt_read(cache, 9)
    model(torch.tensor([[7]]), use_cache=True, **{name: cache})
    kept.keep(cache, [*ids[0, :9].tolist(), 7, 8])
    cache, place = kept.take(model, ids[0].tolist())
    assert place == 9
    parts = model(ids[:, 9:], use_cache=True, **{name: cache}).logits[0]
    whole = model(ids).logits[0, 9:]
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
    assert torch.equal(parts.argmax(-1), whole.argmax(-1))


def test_common():
    assert [common(a, b) for a, b in (([], [1]), ([1, 2], [1, 2, 3]), ([1, 2, 3], [1, 5, 3]))] == [
        0, 2, 1
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_keys_that_a_longer_prompt_would_turn_otherwise_are_not_used(tmp_path, kind):
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    changes = {"vocab_size": 4096, "max_position_embeddings": 512, "head_dim": 8}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
        rope["original_max_position_embeddings"] = limit = 40
        changes["original_max_position_embeddings"] = limit
    else:
        changes["max_position_embeddings"] = limit = 512
    changes["rope_parameters"] = rope
    model, _ = mc.load(make_checkpoint("mixtral", tmp_path, changes=changes), progress=False)
    assert rope_limit(model.config) == limit
    model.generation_config.eos_token_id = None
    with model.offload:
        chat, other = chats(model, tokenizer_of())
        for one in (chat, other):
            for question in ("Hi", "And?", "Tell me more and more"):
                list(one.ask(question, **{**SETTINGS, "max_new_tokens": 6, "min_new_tokens": 6}))
        same(chat, other)
        beyond = [turn for turn in chat.turns if turn.prompt_tokens > limit]
        assert not any(turn.reused_tokens for turn in beyond)
        assert beyond or kind == "dynamic"
        assert chat.turns[1].reused_tokens > 0
