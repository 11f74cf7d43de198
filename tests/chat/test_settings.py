"""Settings of generate in a chat: one answer as generate gives it, or one sentence."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import TINY_MOE
from families import reference
from transformers import MaxLengthCriteria

import moe_colab as mc
from moe_colab.chat import settings

pytestmark = pytest.mark.colab
QUESTION = "Can you play some music?"


@pytest.fixture
def chat(loaded):
    """With settings of its own in generation_config.json."""
    before = loaded[0].generation_config
    loaded[0].generation_config = type(before).from_dict(before.to_dict())
    yield mc.ChatSession(*loaded)
    loaded[0].generation_config = before


def plain_answer(chat, **how) -> str:
    inputs = chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    ids = inputs["input_ids"]
    out = reference(TINY_MOE).generate(ids, attention_mask=torch.ones_like(ids), **how)
    out = getattr(out, "sequences", out)[0, ids.shape[1] :]
    return chat.tokenizer.decode(out, skip_special_tokens=True)


GREEDY = {"do_sample": False, "max_new_tokens": 12}
ONE_ANSWER = {
    "beams": {"num_beams": 3},
    "beams that sample": {"num_beams": 2, "do_sample": True},
    "several sequences": {"num_return_sequences": 2, "num_beams": 2},
    "beams of their own length": {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
    "a dictionary": {"return_dict_in_generate": True, "output_scores": True},
    "a dictionary of logits": {"return_dict_in_generate": True, "output_logits": True},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "no cache": {"use_cache": False},
    "stop strings": {"stop_strings": ["toy"]},
    "chunks": {"prefill_chunk_size": 3},
    "hidden states": {"output_hidden_states": True, "return_dict_in_generate": True},
}


@pytest.mark.parametrize("where", ["argument", "file"])
@pytest.mark.parametrize("name", ONE_ANSWER)
def test_the_answer_is_what_generate_gives(chat, name, where):
    wanted = {**GREEDY, **ONE_ANSWER[name]}
    torch.manual_seed(3)
    extra = {"tokenizer": chat.tokenizer} if "stop_strings" in wanted else {}
    expected = plain_answer(chat, **wanted, **extra)
    if where == "file":
        chat.model.generation_config.update(**wanted)
        text = "".join(chat.ask(QUESTION, seed=3))
    elif "num_return_sequences" in wanted:
        with pytest.raises(mc.MoEColabError, match="a chat has one answer"):
            chat.start(QUESTION, seed=3, **wanted)
        return
    else:
        text = "".join(chat.ask(QUESTION, seed=3, **wanted))
    assert text == expected and text
    assert 0 < chat.turn.tokens <= 12
    follow = "".join(chat.ask("And then?", seed=3, **(wanted if where == "argument" else {})))
    assert follow and len(chat.turns) == 2


def test_several_sequences_that_are_sampled_are_one_answer(chat):
    chat.model.generation_config.num_return_sequences = 3
    answer = chat.start(QUESTION, seed=1, max_new_tokens=12)
    text = "".join(answer)
    chat.model.generation_config.num_return_sequences = None
    assert text == "".join(chat.retry(seed=1, max_new_tokens=12))


def test_temperature_0_is_greedy_wherever_it_is_said(chat):
    greedy = plain_answer(chat, **GREEDY)
    for value in (0, 0.0, 1e-9):
        chat.model.generation_config.update(do_sample=True, temperature=value)
        assert "".join(chat.ask(QUESTION, max_new_tokens=12)) == greedy
        chat.reset()
    chat.model.generation_config.update(temperature=0.9)
    assert "".join(chat.ask(QUESTION, max_new_tokens=12, do_sample=True, temperature=0)) == greedy


def test_beams_can_be_stopped(chat):
    answer = chat.start("Tell me a story", num_beams=3, min_new_tokens=900, max_new_tokens=900)
    while answer.count < 3:
        assert not answer.done
    answer.end()
    assert chat.turn.stopped and 0 < chat.turn.tokens < 900 and chat.turn.text


def test_criteria_of_the_user_are_asked_too(chat):
    length = chat.start(QUESTION, max_new_tokens=1)
    length.end()
    stop = MaxLengthCriteria(length.prompt_tokens + 3)
    "".join(chat.ask("Sing!" + QUESTION, do_sample=False, stopping_criteria=[stop]))
    assert chat.turn.tokens <= 3


REFUSED = {
    "contrastive search": ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha"),
    "groups of beams": ({"num_beams": 4, "num_beam_groups": 2}, "num_beam_groups"),
    "forced words": ({"num_beams": 2, "force_words_ids": [[5]]}, "force_words_ids"),
    "dola": ({"dola_layers": "low"}, "dola_layers"),
    "a negative temperature": ({"temperature": -1.0, "do_sample": True}, "temperature"),
    "no number": ({"temperature": "hot", "do_sample": True}, "temperature"),
    "top_p": ({"top_p": -0.5, "do_sample": True}, "top_p"),
    "a static cache of words": ({"cache_implementation": "spoken"}, "cache_implementation"),
    "a forced token": ({"forced_eos_token_id": 10**6}, "forced_eos_token_id"),
    "a forced token in a list": ({"forced_eos_token_id": [3, 4096]}, "forced_eos_token_id"),
    "bad words": ({"bad_words_ids": [[5000]]}, "bad_words_ids"),
    "a repetition penalty": ({"repetition_penalty": -2.0}, "repetition_penalty"),
    "beams of words": ({"num_beams": "many"}, "num_beams"),
    "the end": ({"eos_token_id": "stop"}, "eos_token_id"),
    "no tokens": ({"max_new_tokens": 0}, "max_new_tokens"),
    "half a token": ({"max_new_tokens": 1.5}, "max_new_tokens"),
    "stop strings": ({"stop_strings": 5}, "stop_strings"),
}


@pytest.mark.parametrize("where", ["argument", "file"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_told_in_one_sentence(chat, name, where):
    wanted, word = REFUSED[name]
    wanted = {"do_sample": False, "max_new_tokens": 4, **wanted}
    given = wanted if where == "argument" else {}
    if where == "file":
        for key, value in wanted.items():
            setattr(chat.model.generation_config, key, value)
    with pytest.raises(mc.MoEColabError) as told:
        list(chat.ask(QUESTION, seed=1, **given))
    assert word in str(told.value) and "\n" not in str(told.value)
    where_told = "an argument" if where == "argument" else settings.FILE
    assert where_told in str(told.value)
    chat.model.generation_config = type(chat.model.generation_config)()
    assert "".join(chat.ask(QUESTION, seed=1, **GREEDY))  # the chat goes on


@pytest.mark.parametrize("name", ["streamer", "input_ids", "past_key_values"])
def test_what_the_chat_gives_itself_is_refused(chat, name):
    with pytest.raises(mc.MoEColabError, match=f"a chat sets {name} itself"):
        chat.start(QUESTION, **{name: None})


def test_tokens_past_the_vocabulary_are_found_before_the_model_runs(chat, monkeypatch):
    monkeypatch.setattr(chat.model.config, "vocab_size", 40)
    before = chat.model.offload.stats().forwards
    with pytest.raises(mc.MoEColabError, match="the model knows 40 tokens only"):
        chat.start(QUESTION)
    assert chat.model.offload.stats().forwards == before


@pytest.mark.parametrize("error", [ValueError("a\nb"), MemoryError("big"), SystemExit(3)])
def test_whatever_generate_raises_is_one_sentence(chat, monkeypatch, error):
    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr(chat.model, "generate", broken)
    with pytest.raises(mc.MoEColabError) as told:
        list(chat.ask(QUESTION))
    assert "\n" not in str(told.value) and told.value.__cause__ is error
    monkeypatch.undo()
    assert list(chat.ask(QUESTION, **GREEDY))


def test_the_files_settings_are_read(chat, tmp_path):
    """As in a checkpoint: stop strings, and a temperature of 0."""
    from conftest import first_layers

    folder = first_layers(2, tmp_path / "model")
    file = folder / settings.FILE
    changes = {"stop_strings": ["e"], "temperature": 0.0, "num_return_sequences": 2}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    model, tokenizer = mc.load(folder, progress=False)
    with model.offload:
        other = mc.ChatSession(model, tokenizer)
        text = "".join(other.ask(QUESTION, max_new_tokens=40))
        again = "".join(other.retry(max_new_tokens=40))
    assert text == again and text.count("e") <= 1
