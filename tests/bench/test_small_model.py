"""The claims of assets/tiny-moe/README.md, against the measured file and the rules that were set
before the training."""

from __future__ import annotations

import hashlib
import json
import runpy

import numpy as np
import pytest
from conftest import ROOT, TINY_MOE

MEASURE = runpy.run_path(str(TINY_MOE / "measure.py"))
ANSWER_TOKENS, PROMPTS = MEASURE["ANSWER_TOKENS"], MEASURE["PROMPTS"]
NGram, split = MEASURE["NGram"], MEASURE["split"]
REPORT = json.loads((ROOT / "assets" / "benchmarks" / "small_model.json").read_text())
CARD = (TINY_MOE / "README.md").read_text()


def test_the_figures_are_of_the_model_that_ships():
    weights = (TINY_MOE / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == REPORT["weights_sha256"]


def test_it_predicts_better_than_a_byte_5gram():
    for figures in REPORT["held_out"].values():
        assert figures["bits_per_byte"] <= 0.9 * figures["byte_5gram"]
        for value in (figures["bits_per_byte"], figures["byte_5gram"]):
            assert f"{value:.3f}" in CARD


def test_no_expert_is_dead_and_none_does_all_the_work():
    load = np.array(REPORT["load_over_mean"])
    assert load.shape == (8, 8)
    assert load.mean(1) == pytest.approx(np.ones(8), abs=0.001)
    assert load.min() > 0.2 and load.max() <= 2.5


def test_all_answers_are_shown_and_nearly_all_are_sound():
    answers = REPORT["answers"]
    assert [answer["prompt"] for answer in answers] == list(PROMPTS)
    assert all(answer["ends"] and answer["tokens"] <= ANSWER_TOKENS for answer in answers)
    assert sum(answer["most_repeated_4gram"] <= 2 for answer in answers) >= 18
    for answer in answers:
        assert answer["prompt"] in CARD and " ".join(answer["answer"].split()) in CARD


def test_the_ngram_is_a_distribution_and_learns():
    text = b"the fox and the crow and the cheese " * 40
    model = NGram(text)
    contexts = [b"the ", b"fox ", b"zzzz"]
    for context in contexts:
        chances = [2.0 ** -model.bits(context + bytes([byte]))[0] for byte in range(256)]
        assert sum(chances) == pytest.approx(1)
    assert model.bits(b"the fox and the crow").mean() < 0.5 < model.bits(b"xylophones").mean()
    by_hand = model.bits(b"the f")[0]  # "the " is followed by fox, crow and cheese alike
    assert by_hand == pytest.approx(np.log2(3), abs=0.1)


def test_one_document_in_fifty_is_held_out():
    documents = {"a": [f"document {n}" for n in range(100)], "b": ["only one"]}
    train, held = split(documents)
    assert (len(train["a"]), len(held["a"])) == (98, 2)
    assert not set(train["a"]) & set(held["a"])
    assert (train["b"], held["b"]) == (["only one"], [])
