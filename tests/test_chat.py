"""A conversation without a terminal: streaming, history, stop, seeds, errors."""

from __future__ import annotations

import threading

import pytest
from conftest import TINY_MOE
from families import reference

import moe_colab as mc
from moe_colab.homes import DiskHome


@pytest.fixture
def chat():
    model, tokenizer = mc.load(slots=4, progress=False)
    with model.offload:
        yield mc.ChatSession(model, tokenizer)


QUESTION = "What is the weather in London tomorrow?"


def test_the_pieces_are_the_plain_models_answer(chat):
    pieces = list(chat.ask(QUESTION, do_sample=False))
    assert len(pieces) > 3
    plain, tokenizer = reference(TINY_MOE), chat.tokenizer
    messages = [{"role": "user", "content": QUESTION}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = plain.generate(**inputs, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "".join(pieces) == tokenizer.decode(out, skip_special_tokens=True)
    assert chat.turn.text == "".join(pieces).strip()
    assert chat.turn.tokens == len(out)
    assert chat.turn.prompt_tokens == inputs["input_ids"].shape[1]


def test_history_goes_into_the_next_question(chat):
    list(chat.ask(QUESTION, seed=1))
    first = chat.turn
    list(chat.ask("And in Paris?", seed=1))
    assert [m["role"] for m in chat.messages] == ["user", "assistant"] * 2
    assert chat.turn.prompt_tokens > first.prompt_tokens + first.tokens
    chat.reset()
    assert chat.messages == []
    list(chat.ask(QUESTION, seed=1))
    assert chat.turn.text == first.text


def test_a_system_prompt_is_part_of_the_prompt(chat):
    list(chat.ask("Hi", max_new_tokens=2))
    without = chat.turn.prompt_tokens
    told = mc.ChatSession(chat.model, chat.tokenizer, system="You are a ship's cook.")
    list(told.ask("Hi", max_new_tokens=2))
    assert told.turn.prompt_tokens > without


def test_a_seed_repeats_whatever_the_slots(chat):
    answers = set()
    for slots in (2, 5, 8):
        chat.model.offload.slots = slots
        chat.reset()
        answers.add("".join(chat.ask("Tell me a story.", seed=11)))
    assert len(answers) == 1
    chat.reset()
    assert "".join(chat.ask("Tell me a story.", seed=12)) not in answers


def test_stop_ends_within_two_tokens(chat):
    pieces = chat.ask(QUESTION, max_new_tokens=500, min_new_tokens=500)
    next(pieces)
    chat.stop()
    seen = chat.turn
    for _ in pieces:
        pass
    assert seen is None
    assert chat.turn.stopped
    assert chat.turn.tokens < 500
    assert chat.messages[-1]["content"] == chat.turn.text
    list(chat.ask("Thank you", max_new_tokens=3))
    assert not chat.turn.stopped


def test_a_reader_who_leaves_stops_the_answer(chat):
    pieces = chat.ask(QUESTION, max_new_tokens=2000, min_new_tokens=2000)
    next(pieces)
    pieces.close()
    assert chat.turn.stopped
    assert chat.turn.tokens < 2000
    assert not [t for t in threading.enumerate() if t.name == "moe_colab-generation"]


def test_a_second_question_meanwhile_is_refused(chat):
    pieces = chat.ask(QUESTION, max_new_tokens=50)
    next(pieces)
    with pytest.raises(mc.MoEColabError, match="under way"):
        next(chat.ask("And now?"))
    for _ in pieces:
        pass
    list(chat.ask("And now?", max_new_tokens=2))


def test_the_counts_of_a_turn_are_its_own(chat):
    list(chat.ask(QUESTION, seed=2))
    first, so_far = chat.turn, chat.model.offload.stats()
    assert (first.loads, first.bytes_loaded) == (so_far.loads, so_far.bytes_loaded)
    list(chat.ask("Thanks", seed=2))
    assert chat.turn.loads == chat.model.offload.stats().loads - first.loads
    line = chat.turn.line()
    for word in ("tokens/s", "hit rate", "loads", "MB moved"):
        assert word in line


def test_a_failed_load_ends_the_answer_and_not_the_chat(chat, monkeypatch):
    list(chat.ask("Hi", max_new_tokens=2))
    before = list(chat.messages)

    def broken(self, buffer):
        raise mc.MoEColabError("the disk is gone")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(DiskHome, "fill", broken)
        with pytest.raises(mc.MoEColabError, match="the disk is gone"):
            list(chat.ask(QUESTION))
    assert chat.messages == before
    assert "".join(chat.ask(QUESTION, do_sample=False))


def test_without_a_tokenizer_there_is_no_chat(chat):
    with pytest.raises(mc.MoEColabError, match="no tokenizer"):
        mc.ChatSession(chat.model, None)


def test_without_a_template_the_text_goes_on(chat, monkeypatch):
    monkeypatch.setattr(chat.tokenizer, "chat_template", None)
    list(chat.ask("The weather in London", max_new_tokens=4))
    assert chat.turn.prompt_tokens == len(chat.tokenizer("The weather in London").input_ids)
