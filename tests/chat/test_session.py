"""A conversation without a terminal: streaming, history, stop, retry, context, export, errors."""

from __future__ import annotations

import dataclasses
import json
import threading
import time

import pytest
import torch
import transformers
from conftest import TINY_MOE
from families import reference

import moe_colab as mc
from moe_colab.cache.homes import DiskHome
from moe_colab.chat.settings import sampling
from moe_colab.chat.streamer import Streamer

pytestmark = pytest.mark.colab


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
    assert chat.turn.tokens_after_stop <= 2
    assert chat.messages[-1]["content"] == chat.turn.text
    list(chat.ask("Thank you", max_new_tokens=3))
    assert not chat.turn.stopped


def test_a_reader_who_leaves_stops_the_answer(chat):
    pieces = chat.ask(QUESTION, max_new_tokens=2000, min_new_tokens=2000)
    next(pieces)
    pieces.close()
    assert chat.turn.stopped
    assert chat.turn.tokens < 2000
    assert not [t for t in threading.enumerate() if t.name == "moe_colab-answer"]


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


# ---------------------------------------------------------------------- retry, stop, threads
def test_retry_takes_the_place_of_the_latest_answer(chat):
    list(chat.ask(QUESTION, seed=1))
    list(chat.ask("And in Paris?", seed=1))
    first, second = chat.turns
    chat.retry(seed=4).end()
    list(chat.retry(seed=5))
    assert chat.turns[0] == first and len(chat.turns) == 2
    assert chat.turn.question == "And in Paris?"
    assert chat.turn.prompt_tokens == second.prompt_tokens
    list(chat.retry(seed=1))
    assert chat.turn.text == second.text


def test_nothing_to_retry(chat):
    with pytest.raises(mc.MoEColabError, match="nothing to try again"):
        chat.retry()
    list(chat.ask("Hi", max_new_tokens=2))  # and the model is free


def test_an_answer_can_be_looked_at_while_it_is_made(chat):
    answer = chat.start(QUESTION, seed=1)
    seen = []
    while not answer.done:
        seen.append(answer.turn())
    assert answer.error is None and answer.turn() == chat.turn
    assert [t.tokens for t in seen] == sorted(t.tokens for t in seen)
    assert all(chat.turn.text.startswith(t.text) for t in seen)
    assert list(answer) and "".join(answer).strip() == chat.turn.text


def test_stop_after_the_end_changes_nothing(chat):
    list(chat.ask("Hi", max_new_tokens=3))
    chat.stop()
    assert not chat.turn.stopped and not chat.answer.turn().stopped


def test_another_conversation_on_the_same_model_is_refused_meanwhile(chat):
    other = mc.ChatSession(chat.model, chat.tokenizer)
    answer = chat.start(QUESTION, min_new_tokens=200, max_new_tokens=200)
    with pytest.raises(mc.MoEColabError, match="under way on this model"):
        other.start("Hello")
    with pytest.raises(mc.MoEColabError, match="before the chat is cleared"):
        chat.reset()
    answer.end()
    list(other.ask("Hello", max_new_tokens=2))


def test_two_threads_generating_on_one_model_take_turns(chat):
    """Both say what they say alone: a layer is computed for one of them at a time."""
    model, tokenizer = chat.model, chat.tokenizer
    model.offload.slots = 2
    texts = ["I need a flight to New York.", "Can you play some music?"]
    asked = [tokenizer(text, return_tensors="pt") for text in texts]
    alone = [model.generate(**one, do_sample=False, max_new_tokens=40) for one in asked]
    together = [None, None]

    def work(number):
        together[number] = model.generate(**asked[number], do_sample=False, max_new_tokens=40)

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))


# ---------------------------------------------------------------------- what the model is given
def encoded(chat, turns, question, system=()):
    said = [("user", "assistant")[i % 2] for i in range(2 * len(turns))]
    texts = [text for turn in turns for text in (turn.question, turn.text)]
    messages = [{"role": r, "content": t} for r, t in zip(said, texts, strict=True)]
    messages = [*system, *messages, {"role": "user", "content": question}]
    return chat.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]


def test_a_conversation_that_is_too_long_loses_its_oldest_turns_whole(chat, monkeypatch):
    monkeypatch.setattr(chat.tokenizer, "model_max_length", 300)  # of the context of 2048
    chat.system = "You are a ship's cook."
    for number in range(5):
        list(chat.ask(f"{number} " + "tell me more " * 12, max_new_tokens=8, seed=1))
    assert [turn.left_out for turn in chat.turns[:3]] == [0, 0, 0]
    history = list(chat.turns)
    list(chat.ask("And then?", max_new_tokens=140, do_sample=False))
    system = [{"role": "system", "content": chat.system}]
    sizes = [encoded(chat, history[n:], "And then?", system).shape[1] for n in range(6)]
    expected = next(n for n, size in enumerate(sizes) if size + 140 <= 300)
    assert 0 < expected == chat.turn.left_out < 5
    assert chat.turn.prompt_tokens == sizes[expected]
    assert len(chat.turns) == 6  # nothing is forgotten
    plain = reference(TINY_MOE)
    ids = encoded(chat, history[expected:], "And then?", system)
    out = plain.generate(ids, do_sample=False, max_new_tokens=140)[0, ids.shape[1] :]
    assert chat.tokenizer.decode(out, skip_special_tokens=True).strip() == chat.turn.text


def test_an_answer_never_runs_over_the_context(chat, monkeypatch):
    monkeypatch.setattr(chat.tokenizer, "model_max_length", 200)
    text = "more " * 80
    room = 200 - encoded(chat, [], text).shape[1]
    list(chat.ask(text, max_new_tokens=10**6, min_new_tokens=room))
    assert (chat.turn.tokens, chat.turn.stopped) == (room, False)


def test_a_message_that_cannot_fit_is_refused(chat):
    with pytest.raises(mc.MoEColabError, match="shorten it"):
        chat.start("more " * 3000)
    assert chat.turns == []
    list(chat.ask("Hi", max_new_tokens=2))


def test_a_template_without_a_system_role_gets_it_in_the_first_message(chat, monkeypatch):
    refusing = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + chat.tokenizer.chat_template
    )
    monkeypatch.setattr(chat.tokenizer, "chat_template", refusing)
    chat.system = "You are a cook."
    list(chat.ask("Hi", max_new_tokens=2))
    assert chat.turn.prompt_tokens == encoded(chat, [], "You are a cook.\n\nHi").shape[1]


def test_temperature_zero_is_greedy_and_says_nothing(chat, caplog):
    logger = transformers.logging.get_logger("transformers")
    logger.addHandler(caplog.handler)
    try:
        list(chat.ask(QUESTION, **sampling(temperature=0, top_p=0.5)))
        greedy = chat.turn.text
        list(chat.retry(do_sample=False))
    finally:
        logger.removeHandler(caplog.handler)
    assert chat.turn.text == greedy
    assert not [r for r in caplog.records if "not valid" in r.message or "ignored" in r.message]
    assert sampling(0.5, 0.9, 7) == {
        "temperature": 0.5, "top_p": 0.9, "do_sample": True, "max_new_tokens": 7
    }  # fmt: skip
    assert sampling() == {}


# ---------------------------------------------------------------------- keep
def test_export_holds_all_that_was_said(chat, tmp_path):
    chat.system = "You are a cook."
    list(chat.ask(QUESTION, seed=1))
    list(chat.ask("<b>& thanks</b>", seed=2))
    data = json.loads(chat.export(tmp_path / "talk.json").read_text())
    assert (data["slots"], data["policy"], data["system"]) == (4, "lru", "You are a cook.")
    for kept, turn in zip(data["turns"], chat.turns, strict=True):
        assert kept == {
            **dataclasses.asdict(turn), "tokens_per_second": pytest.approx(turn.tokens_per_second)
        }  # fmt: skip
    text = chat.export(tmp_path / "talk.md").read_text()
    assert all(turn.question in text and turn.text in text for turn in chat.turns)
    with pytest.raises(mc.MoEColabError, match="must end with"):
        chat.export(tmp_path / "talk.txt")
    with pytest.raises(mc.MoEColabError, match="cannot be written"):
        chat.export(tmp_path / "nowhere" / "talk.md")


# ---------------------------------------------------------------------- the end of a model
def test_close_frees_the_whole_model_whoever_holds_it(chat):
    model = chat.model
    other, _ = mc.load(slots=2, progress=False)
    assert sum(p.numel() for p in model.parameters()) > 10**6
    mc.close_all()
    for one in (model, other):
        assert sum(p.numel() for p in one.parameters()) == 0
        with pytest.raises(mc.MoEColabError, match="was closed"):
            one(torch.ones(1, 2, dtype=torch.long))
    with pytest.raises(mc.MoEColabError, match="was closed"):
        list(chat.ask("Hi"))
    with pytest.raises(mc.MoEColabError, match="was closed"):
        list(chat.ask("Hi"))  # the model is not taken for busy
    mc.close_all()


def test_closing_in_the_midst_of_an_answer_ends_it_in_words(chat):
    answer = chat.start(QUESTION, min_new_tokens=1500, max_new_tokens=1500)
    while answer.count < 3:
        time.sleep(0.002)
    chat.model.offload.close()
    with pytest.raises(mc.MoEColabError, match="was closed"):
        list(answer)
    assert chat.turns == []


# ---------------------------------------------------------------------- beside the layer at work
def test_slots_and_policy_can_change_in_the_midst_of_an_answer(chat):
    list(chat.ask(QUESTION, seed=1, min_new_tokens=80, max_new_tokens=80))
    alone = chat.turn.text
    chat.reset()
    answer = chat.start(QUESTION, seed=1, min_new_tokens=80, max_new_tokens=80)
    changes = 0
    while not answer.done:
        chat.model.offload.slots = 2 + changes % 5
        chat.model.offload.policy = ("lru", "none", "random")[changes % 3]
        changes += 1
    assert answer.error is None and changes > 2
    assert chat.turn.text == alone


def test_looking_at_an_answer_does_not_wait_for_the_layer_at_work(chat):
    answer = chat.start(QUESTION, min_new_tokens=40, max_new_tokens=40)
    while answer.count < 2:
        time.sleep(0.002)
    seen = []
    with chat.model.offload.runtime.lock:  # as a layer holds it
        looker = threading.Thread(target=lambda: seen.append(answer.turn()))
        looker.start()
        looker.join(5)
        assert seen and seen[0].tokens >= 2
    answer.end()


def test_stop_is_heard_while_the_question_is_read(chat, monkeypatch):
    fill = DiskHome.fill

    def slow(self, buffer):
        time.sleep(0.05)
        yield from fill(self, buffer)

    monkeypatch.setattr(DiskHome, "fill", slow)
    answer = chat.start("Tell me a long story about a fox and a river. " * 8)
    while not chat.model.offload.peek().loads:
        time.sleep(0.002)
    answer.stop()
    answer.end()
    assert answer.error is None and chat.turn.stopped and chat.turn.tokens == 0
    assert chat.model.offload.stats().loads <= 2 * 8  # of the 64 that the question needs
    monkeypatch.undo()
    list(chat.ask("Hi", max_new_tokens=2))
    assert chat.turn.tokens == 2


def test_answers_without_a_seed_differ_and_can_be_repeated_all_the_same(chat):
    torch.manual_seed(5)
    mine = torch.get_rng_state()
    texts = []
    for _ in range(4):
        list(chat.ask("Tell me a story.", seed=None, temperature=1.5, do_sample=True))
        texts.append(chat.turn.text)
        chat.reset()
    assert torch.equal(torch.get_rng_state(), mine)  # the user's own random numbers
    assert len(set(texts)) == 4
    last = chat.answer.turn()
    list(chat.ask("Tell me a story.", seed=last.seed, temperature=1.5, do_sample=True))
    assert chat.turn.text == last.text


def test_a_tokenizer_that_marks_segments_can_chat(chat, monkeypatch):
    names = ["input_ids", "token_type_ids", "attention_mask"]
    monkeypatch.setattr(chat.tokenizer, "model_input_names", names)
    list(chat.ask("Hi", max_new_tokens=2))
    assert chat.turn.tokens == 2


def test_a_long_conversation_is_not_encoded_over_and_over(chat, monkeypatch):
    monkeypatch.setattr(chat.tokenizer, "model_max_length", 120)
    encode, calls = chat.tokenizer.apply_chat_template, []
    monkeypatch.setattr(
        chat.tokenizer, "apply_chat_template", lambda *a, **k: calls.append(1) or encode(*a, **k)
    )
    for _ in range(12):
        list(chat.ask("tell me more", max_new_tokens=10, seed=1))
    assert chat.turn.left_out > 4
    assert len(calls) <= 2 * 12 + 2


@pytest.mark.parametrize(
    "text", ["これは水を飲む猫です", "ไม่มีวรรคในภาษาไทย", "a👩‍👩‍👧b 🇫🇷", "x\n\n y"]
)
def test_every_whole_character_is_shown_at_once(chat, text):
    pieces = []
    streamer = Streamer(chat.tokenizer, pieces.append)
    streamer.put(torch.tensor([1, 2, 3]))  # the prompt
    ids = chat.tokenizer(text).input_ids
    for number, token in enumerate(ids, 1):
        streamer.put(torch.tensor([token]))
        whole = chat.tokenizer.decode(ids[:number]).rstrip("\N{REPLACEMENT CHARACTER}")
        assert len("".join(pieces)) >= len(whole) - 1
    streamer.end()
    assert "".join(pieces) == chat.tokenizer.decode(ids) == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces[:-1])
