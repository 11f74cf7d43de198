"""The claims of assets/tiny-moe/README.md, against the measured file, the rules that were set
before the training, and the model itself."""

from __future__ import annotations

import hashlib
import json
import random
import sys

import numpy as np
import pytest
from conftest import ROOT, TINY_MOE

import moe_colab as mc

TRAINING = TINY_MOE / "training"
REPORT = json.loads((ROOT / "assets" / "benchmarks" / "small_model.json").read_text())


@pytest.fixture(scope="module")
def training():
    """The modules of assets/tiny-moe/training, by name."""
    before = set(sys.modules)
    sys.path.insert(0, str(TRAINING))
    try:
        import corpus
        import data
        import exam
        import measure
        import ngram
        import questions
        import relations
        import talk

        yield {
            module.__name__: module
            for module in (corpus, data, exam, measure, ngram, questions, relations, talk)
        }
    finally:
        sys.path.remove(str(TRAINING))
        for name in set(sys.modules) - before:
            if getattr(sys.modules[name], "__file__", None) and str(TRAINING) in str(
                sys.modules[name].__file__
            ):
                del sys.modules[name]


# ---------------------------------------------------------------------- the measured file
def test_the_figures_are_of_the_model_that_ships():
    weights = (TINY_MOE / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == REPORT["weights_sha256"]
    assert len(weights) <= 30e6


def test_it_predicts_better_than_a_byte_5gram():
    for figures in REPORT["held_out"].values():
        assert figures["bits_per_byte"] <= 0.9 * figures["byte_5gram"]


def test_no_expert_is_dead_and_none_does_all_the_work():
    load = np.array(REPORT["load_over_mean"])
    assert load.shape == (8, 8)
    assert load.mean(1) == pytest.approx(np.ones(8), abs=0.001)
    assert load.min() > 0.2 and load.max() <= 2.5


def test_half_the_slots_hit_as_often_as_with_a_real_model():
    for counted in REPORT["lru_4_of_8"].values():
        assert counted["hit_rate"] == pytest.approx(counted["hits"] / counted["accesses"], abs=1e-4)
        assert 0.55 <= counted["hit_rate"] <= 0.75


def test_it_is_right_about_its_world_and_honest_about_the_rest():
    exam = REPORT["exam"]
    assert exam["unseen_pairs"]["share"] >= 0.95
    assert exam["held_out_templates"]["share"] >= 0.85
    assert exam["foreign"]["share"] >= 0.90
    assert exam["false_refusals"]["share"] <= 0.03
    parts = [exam[name] for name in ("unseen_pairs", "held_out_templates", "foreign", "bookings")]
    for part in (*parts, *exam["stories"].values()):
        assert part["ended"] == part["asked"]


def test_all_answers_to_the_prompts_end(training):
    answers, measure = REPORT["answers"], training["measure"]
    assert [answer["prompt"] for answer in answers] == list(measure.PROMPTS)
    assert all(answer["ends"] for answer in answers)
    assert sum(answer["most_repeated_4gram"] <= 2 for answer in answers) >= 18


# ---------------------------------------------------------------------- the model
@pytest.fixture(scope="module")
def toy():
    model, tokenizer = mc.load(slots=4, device="cpu", progress=False)
    with model.offload:
        yield mc.ChatSession(model, tokenizer)


@pytest.mark.parametrize(
    "question, parts",
    [
        ("What is the capital of France?", ("Paris",)),
        ("What day comes after Tuesday?", ("Wednesday",)),
        ("Tell me a story about a dragon", ("dragon", ". ")),
        ("Who won the election?", ("toy", "11 million parameters")),
        ("which continent is kenya in", ("Africa",)),
        ("What is the opposite of hot?", ("cold",)),
        ("What do you call a baby cow?", ("calf",)),
        ("What colour is the sky?", ("blue",)),
        ("Which month comes before March?", ("February",)),
        ("What is the capital of Zorbania?", ("toy", "11 million parameters")),
        ("I need a hotel in Rome.", ("?",)),
    ],
)
def test_the_shipped_model_answers(toy, question, parts):
    toy.reset()
    answer = "".join(toy.ask(question, do_sample=False))
    assert all(part in answer for part in parts), answer
    assert answer.endswith((".", "!", "?"))


# ---------------------------------------------------------------------- how it is measured
def test_the_ngram_is_a_distribution_and_learns(training):
    NGram = training["ngram"].NGram
    text = b"the fox and the crow and the cheese " * 40
    model = NGram(text)
    contexts = [b"the ", b"fox ", b"zzzz"]
    for context in contexts:
        chances = [2.0 ** -model.bits(context + bytes([byte]))[0] for byte in range(256)]
        assert sum(chances) == pytest.approx(1)
    assert model.bits(b"the fox and the crow").mean() < 0.5 < model.bits(b"xylophones").mean()
    by_hand = model.bits(b"the f")[0]  # "the " is followed by fox, crow and cheese alike
    assert by_hand == pytest.approx(np.log2(3), abs=0.1)


def test_one_document_in_fifty_is_held_out(training):
    documents = {"a": [f"document {n}" for n in range(100)], "b": ["only one"]}
    train, held = training["corpus"].split(documents)
    assert (len(train["a"]), len(held["a"])) == (98, 2)
    assert not set(train["a"]) & set(held["a"])
    assert (train["b"], held["b"]) == (["only one"], [])


def test_no_question_of_the_examination_is_in_the_training(training):
    questions, relations = training["questions"], training["relations"]
    rng = random.Random(0)
    trained = {questions.training_question(rng).text.lower() for _ in range(20_000)}
    for whole_templates in (False, True):
        asked = list(questions.held_out_questions(whole_templates, 200, seed=1))
        assert {one.relation.name for one in asked} == {r.name for r in relations.RELATIONS}
        assert not {one.text.lower() for one in asked} & trained
    foreign = training["exam"].FOREIGN_QUESTIONS
    templates = {text.lower() for text in training["talk"].FOREIGN_TEMPLATES}
    assert sum(question.lower() in templates for question in foreign) <= 2


def test_an_answer_is_right_only_if_the_whole_sentence_is(training):
    capital = next(r for r in training["relations"].RELATIONS if r.name == "capital")
    assert "The capital of France is Paris." in capital.right("France")
    assert "The capital of France is Rome." not in capital.right("France")
    after = next(r for r in training["relations"].RELATIONS if r.name == "day_after")
    assert after.right("Tuesday") == {"Wednesday comes after Tuesday."}
    assert training["exam"].is_honest("I am a toy of 11 million parameters.")
    assert not training["exam"].is_honest("Paris, said the toy.")


def test_the_loss_is_on_the_answers_alone(training):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY_MOE)
    words = training["talk"].Words(["dog", "owl"], ["Do you like rain?"])
    ids, labels = training["data"].chat_rows(words, tokenizer, random.Random(1), 20)
    assert ids.shape == labels.shape == (20, 257)
    assert (ids == tokenizer.pad_token_id).float().mean() < 0.1
    text = tokenizer.decode(labels[labels >= 0])
    assert "<|user|>" not in text and "<|assistant|>" not in text
    asked = tokenizer.decode(ids.flatten()).count("<|assistant|>")
    assert 0.95 * asked <= text.count("<|end|>") <= asked  # a chat that is too long is cut
    again = training["data"].chat_rows(words, tokenizer, random.Random(1), 20)
    assert (again[0] == ids).all()
