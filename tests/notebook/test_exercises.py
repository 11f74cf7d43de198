"""What the notebooks ask: right answers, hints for the mistakes one makes, and no traceback."""

from __future__ import annotations

import math

import pytest

from moe_colab.notebook import exercises
from moe_colab.notebook.exercises import (
    check_active,
    check_belady,
    check_evidence,
    check_group_bits,
    check_lru,
    check_mixtral_bits,
    check_stall,
    check_weight,
)
from moe_colab.quantization.format import Format, stored_bytes

CHECKS = [
    check_weight,
    check_active,
    check_evidence,
    check_group_bits,
    check_mixtral_bits,
    check_lru,
    check_belady,
    check_stall,
]
GIB = 1024**3


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    "answer", ["three", None, ..., [3.1], {}, object(), math.nan, math.inf, 10**400, 1j, print]
)
def test_whatever_is_answered_gets_a_hint(check, answer):
    reply = check(answer)
    assert reply.right is (None if answer in (None, ...) else False)
    assert ("Your turn" if reply.right is None else "Not yet") in repr(reply)
    assert "a number" in reply.text and "<script" not in reply._repr_html_()


def test_two_of_eight_share_the_weight():
    """With the numbers of any calculator: e = 2.71828."""
    e = 2.71828
    for answer in (e**2 / (e**2 + e), 0.731, "0.73"):
        assert check_weight(answer).right, answer
    assert "0.269" in check_weight(0.731).text and "the other expert's" in check_weight(0.269).text
    assert "exponentials" in check_weight(2 / 3).text
    assert "among all eight" in check_weight(e**2 / (e**2 + e + 6)).text
    assert check_weight(0.99).text.startswith("too high")


def test_mixtrals_active_parameters():
    """From the shapes: 32 layers; three matrices of 4096 x 14336 in each of 8 experts; q and o of
    4096 x 4096, k and v of 4096 x 1024; 32000 words of 4096, twice; a router of 4096 x 8."""
    expert = 3 * 4096 * 14336
    beside = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 4096 * 8) + 2 * 32000 * 4096
    active, whole = (32 * used * expert + beside for used in (2, 8))
    assert check_active(active / 1e9).right and check_active(12.9).right
    assert exercises.routing.mixtral_active() == active / 1e9
    assert f"{active / 1e9:.1f}" == "12.9" and "of 46.7" in check_active(12.9).text
    assert "all weights" in check_active(whole / 1e9).text
    assert "experts alone" in check_active(32 * 2 * expert / 1e9).text
    assert "not the size" in check_active(14).text
    assert "all of the attention" in check_active(whole / 4e9).text
    assert check_active(20).text.startswith("too high")


def test_a_share_over_few_tokens_is_no_evidence():
    """Of 20,000 texts of 200 tokens that were sent by dice, every fifth is as far from even."""
    import numpy as np

    shares = np.random.default_rng(1).binomial(200, 0.25, 20_000) / 200
    errors = (0.29 - 0.25) / shares.std()
    assert check_evidence(errors).right and check_evidence("1.3").right
    assert check_evidence(0.04 / (0.29 * 0.71 / 200) ** 0.5).right  # by what was seen
    assert 0.17 < (abs(shares - 0.25) > 0.0399).mean() < 0.23
    assert "not evidence" in check_evidence(1.3).text
    for answer in (0.04, 0.0306):
        assert "divide the one" in check_evidence(answer).text
    assert "variance" in check_evidence(42.67).text
    assert check_evidence(3).text.startswith("too high")


def test_the_bits_of_a_group_are_those_that_a_store_takes():
    shape = (1024, 4096)
    for bits in (2, 3, 4):
        for group in (16, 32, 64, 128):
            real = 8 * stored_bytes(shape, Format(bits, group)) / (1024 * 4096)
            assert exercises.bits.group_bits(bits, group) == real
    assert check_group_bits(2.266).right and check_group_bits("2.2656").right
    assert "codes only" in check_group_bits(2).text
    assert "a scale and a zero" in check_group_bits(2.125).text
    assert "nearly" in check_group_bits(2.25).text
    assert check_group_bits(5).text.startswith("too high")
    assert check_group_bits(1).text.startswith("too low")


def test_mixtrals_two_bits_are_three():
    """With the numbers of the exercise's own text."""
    experts, attention, embeddings = 45.10e9, 1.342e9, 0.262e9
    total = 8 * 17.54 * GIB
    right = (total - attention * 4.25 - embeddings * 16) / experts
    assert right == pytest.approx(3.12, abs=0.005)
    for answer in (right, 3.1, 3.12, "3.1"):
        assert check_mixtral_bits(answer).right, answer
    assert not check_mixtral_bits(2).right and "is what a code takes" in check_mixtral_bits(2).text
    assert "take them out first" in check_mixtral_bits(total / experts).text
    everything = check_mixtral_bits(total / (experts + attention + embeddings))
    assert not everything.right and "average over all weights" in everything.text
    assert check_mixtral_bits(4).text.startswith("too high")


def test_six_accesses_with_two_slots():
    """By hand: 0 and 1 are loaded, 0 hits, 2 comes. LRU sends 1 away, Belady 0."""
    assert check_lru(1 / 6).right and check_lru("0.1667").right
    assert check_belady(2 / 6).right
    assert "divided by the six" in check_lru(1).text and "LRU's" in check_belady(1 / 6).text
    assert "does not know what comes" in check_lru(2 / 6).text
    assert "share of misses" in check_lru(5 / 6).text
    assert "bypass" in check_belady(3 / 6).text and not check_belady(3 / 6).right
    assert check_belady(0.9).text.startswith("too high") and not check_lru(0).right


def test_a_guess_hides_the_compute():
    """By hand: two copies of 5.5 ms, of which the first has had 4 ms."""
    assert exercises.slots.stall(guessed=0) == 11 and exercises.slots.stall(guessed=1) == 7
    assert exercises.slots.stall(guessed=1, compute=8) == 5.5  # no more than was guessed
    assert check_stall(7).right and check_stall("7.0").right
    assert "without a guess" in check_stall(11).text and "alone" in check_stall(5.5).text
    assert "on the same link" in check_stall(1.5).text and "only once" in check_stall(3).text
    assert check_stall(20).text.startswith("too high")


def test_a_reply_shows_itself():
    html = check_mixtral_bits(3.12)._repr_html_()
    assert "✓" in html and "Right" in html and "moecard" in html
    assert "✗" in check_mixtral_bits(2)._repr_html_()
