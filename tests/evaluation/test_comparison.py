"""Intervals over documents: right as often as they say, alike for one seed, and paired."""

from __future__ import annotations

import math

import numpy as np
import pytest

import moe_colab as mc
from moe_colab.evaluation.comparison import Resamples
from moe_colab.evaluation.perplexity import Scores

COUNTS = {"talk": 40, "code": 14, "french": 8}  # documents of each domain
DOMAINS = [name for name, count in COUNTS.items() for _ in range(count)]


def a_text(seed: int) -> np.ndarray:
    """documents [tokens]: 62 of them, of 20 to 399 tokens."""
    lengths = np.random.default_rng(seed).integers(20, 400, len(DOMAINS))
    return np.repeat(np.arange(len(DOMAINS)), lengths)


def noisy(documents: np.ndarray, random: np.random.Generator, mean: float = 0.0) -> np.ndarray:
    """Values by token with something in common within a document."""
    shared = random.normal(0, 0.3, len(DOMAINS))
    return mean + shared[documents] + random.normal(0, 1, len(documents))


def scores(nll: np.ndarray, top1: np.ndarray, documents: np.ndarray) -> Scores:
    return Scores(nll, top1, documents, nbytes=4 * len(nll))


def test_the_truth_lies_inside_about_95_times_in_100():
    documents, random = a_text(0), np.random.default_rng(1)
    resamples = Resamples(documents, DOMAINS, draws=1000)
    found = [resamples.interval(noisy(documents, random, 0.1)) for _ in range(1000)]
    assert 0.93 < np.mean([interval.spans(0.1) for interval in found]) < 0.97
    for wrong in ([one.low > 0.1 for one in found], [one.high < 0.1 for one in found]):
        assert 0.01 < np.mean(wrong) < 0.045  # it errs on both sides


def test_tokens_of_one_document_are_not_taken_for_so_many_witnesses():
    """As if every token were drawn by itself, the truth would be missed far too often."""
    documents, random = a_text(0), np.random.default_rng(2)
    whole = Resamples(documents, draws=500)
    length = len(documents)
    inside = []
    for _ in range(200):
        values = noisy(documents, random)
        half = 1.96 * values.std() / math.sqrt(length)
        inside.append((abs(values.mean()) <= half, whole.interval(values).spans(0.0)))
    by_token, by_document = np.mean(inside, 0)
    assert by_token < 0.6 and by_document > 0.9


def test_an_interval_against_the_textbook():
    """Documents of one token each: the standard error of a mean, within each domain."""
    random = np.random.default_rng(3)
    values = np.concatenate([random.normal(0, 1, 400), random.normal(50, 2, 100)])
    domains = ["a"] * 400 + ["b"] * 100
    found = Resamples(np.arange(500), domains).interval(values)
    variance = 400 * values[:400].var(ddof=1) + 100 * values[400:].var(ddof=1)
    half = 1.96 * math.sqrt(variance) / 500
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.05 * half)
    mixed = Resamples(np.arange(500)).interval(values)  # here the mix of domains is chance too
    assert mixed.high - mixed.low > 5 * (found.high - found.low)


def test_one_seed_one_interval():
    documents = a_text(0)
    values = noisy(documents, np.random.default_rng(4))
    first = Resamples(documents, DOMAINS, seed=7).interval(values)
    assert Resamples(documents, DOMAINS, seed=7).interval(values) == first
    assert Resamples(documents, DOMAINS, seed=8).interval(values) != first


def test_two_models_are_compared_in_pairs():
    """What makes a document hard for both says nothing about their difference."""
    documents, random = a_text(0), np.random.default_rng(5)
    hard = 4 + 20 * noisy(documents, random)
    top1 = random.integers(0, 9, len(documents))
    full = scores(hard, top1, documents)
    worse = scores(hard + 0.02 + 0.01 * noisy(documents, random), (top1 + 1) % 9, documents)
    found = mc.compare(worse, full, domains=DOMAINS)
    assert found.ratio.value == pytest.approx(worse.perplexity / full.perplexity)
    assert 1.0 < found.ratio.low < found.ratio.value < found.ratio.high < 1.04
    assert not found.tie and found.agreement.value == found.agreement.high == 0.0
    back = mc.compare(full, worse, domains=DOMAINS)  # the other way round: the same, mirrored
    assert back.ratio.low == pytest.approx(1 / found.ratio.high)
    assert back.ratio.high == pytest.approx(1 / found.ratio.low)
    itself = mc.compare(full, full, domains=DOMAINS)
    assert itself.tie and itself.ratio.low == itself.ratio.high == itself.agreement.low == 1.0


def test_a_difference_that_is_chance_is_a_tie():
    documents, random = a_text(0), np.random.default_rng(6)
    base = noisy(documents, random, 4.0)
    top1 = random.integers(0, 9, len(documents))
    full = scores(base, top1, documents)
    ties = 0
    for _ in range(40):
        other = scores(base + 0.1 * noisy(documents, random), top1, documents)
        ties += mc.compare(other, full, domains=DOMAINS).tie
    assert ties >= 34
    assert "a tie" in repr(mc.compare(full, full))


def test_mistakes():
    documents = a_text(0)
    values = noisy(documents, np.random.default_rng(7))
    one = scores(values, documents, documents)
    with pytest.raises(mc.MoEColabError, match="different texts"):
        mc.compare(one, scores(values[:-1], documents[:-1], documents[:-1]))
    with pytest.raises(mc.MoEColabError, match="poem has a single document"):
        Resamples(documents, ["poem", *DOMAINS[1:]])
