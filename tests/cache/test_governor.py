"""The governor: what guesses may waste, and when the prefetch is switched off."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_colab.cache.governor import PAUSES, PURSE, SHARE, TRIAL, Governor, Trial

N = 1000  # bytes of an expert


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# ---------------------------------------------------------------------- bytes
def test_a_new_model_may_waste_a_purse_full():
    governor = Governor(Clock())
    for at_stake in range(PURSE):
        assert governor.allows(0, N, at_stake * N, 0.01)
    assert not governor.allows(0, N, PURSE * N, 1.0)


@settings(max_examples=100, deadline=None)
@given(
    events=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, N), st.booleans()), min_size=1, max_size=300
    )
)
def test_never_more_than_its_share_is_wasted(events):
    """Whatever is guessed, however wrong: what was at stake is counted before it is lost."""
    governor, wasted, needed, under_way = Governor(Clock()), 0, 0, []
    for probability, moved, loads in events:
        if governor.allows(0, N, len(under_way) * N, probability):
            under_way.append(moved)
        if loads:
            governor.needed(N)
            needed += N
            for lost in under_way:
                governor.wasted(lost)
                wasted += lost
            under_way.clear()
        assert wasted <= PURSE * N + SHARE * needed


def test_the_emptier_the_purse_the_surer_a_guess_must_be():
    governor = Governor(Clock())
    governor.needed(N)
    least = []
    for _ in range(6):
        odds = [p / 100 for p in range(101) if governor.allows(0, N, 0, p / 100)]
        least.append(min(odds))
        governor.wasted(N)
    assert least == sorted(least) and least[0] == 0 and 0.4 < least[-1] < 0.8
    for _ in range(200):
        governor.needed(N)
    assert governor.allows(0, N, 0, 0.01), "it is full again"


def test_a_layer_whose_guesses_do_not_come_true_must_be_surer():
    governor = Governor(Clock())
    for _ in range(100):
        governor.judge(1, [(0, 0.6), (1, 0.4)], [2, 3])
        governor.judge(2, [(0, 0.6), (1, 0.4)], [0, 1])
    governor.needed(N)
    governor.wasted(3 * N)
    assert not governor.allows(1, N, 0, 0.9)
    assert governor.allows(2, N, 0, 0.2)


# ---------------------------------------------------------------------- time
def run(governor: Governor, clock: Clock, tokens: int, seconds, loads=lambda: 0) -> list[bool]:
    """So many tokens; `seconds(guessing, loads)`: what one takes. Which were made with guesses."""
    made = []
    for _ in range(tokens):
        governor.forward(decode=True)
        made.append(governor.on)
        needed = loads()
        for _ in range(needed):
            governor.needed(N)
        clock.now += seconds(governor.on, needed)
    return made


@pytest.mark.parametrize("pays", [True, False])
def test_stands_aside_where_tokens_are_faster_without(pays):
    clock = Clock()
    governor = Governor(clock)
    assert governor.says() == ""
    made = run(governor, clock, TRIAL + 2, lambda on, _: 1.0 if on == pays else 1.1)
    assert abs(sum(made[:TRIAL]) - TRIAL / 2) <= 1, "every other one"
    assert governor.pays == governor.on == pays
    result = "saves time: 1000.0 ms" if pays else "is off: 1100.0 ms"
    assert governor.says().startswith(f"prefetch {result} per token with it, 1")


def test_asks_again_later_and_ever_more_rarely():
    clock = Clock()
    governor = Governor(clock)
    made = run(governor, clock, 20_000, lambda on, _: 1.1 if on else 1.0)
    guessing = [i for i, on in enumerate(made) if on]
    trials = [b - a for a, b in itertools.pairwise(guessing) if b - a > 2]
    assert trials[0] >= PAUSES[0] and trials[-1] > 2 * trials[0]
    assert len(guessing) < 0.02 * len(made)


def test_comes_back_when_it_pays_after_all():
    clock = Clock()
    governor = Governor(clock)
    run(governor, clock, 100, lambda on, _: 1.1 if on else 1.0)
    assert not governor.on
    run(governor, clock, 600, lambda on, _: 0.9 if on else 1.0)
    assert governor.pays


@pytest.mark.parametrize("gain", [0.04, -0.04])
def test_tokens_that_need_more_loads_are_no_argument(gain):
    """Where a token takes 1 to 5 s, depending on its loads, four hundredths of one are seen."""
    for seed in range(20):
        dice, clock = random.Random(seed), Clock()
        governor = Governor(clock)
        run(
            governor,
            clock,
            TRIAL + 2,
            lambda on, loads: 1 + loads - gain * on,
            lambda dice=dice: dice.randint(0, 4),
        )
        assert governor.pays == (gain > 0)


def test_a_few_slow_tokens_are_no_argument():
    trial, dice = Trial(), random.Random(1)
    for i in range(TRIAL):
        slow = 50.0 if i in (4, 18, 30) else 0.0
        trial.note(i % 2 == 0, 1.0 - 0.02 * (i % 2 == 0) + slow, dice.randint(1, 3))
    guessing, without = trial.means()
    assert guessing < without


def test_prompts_and_pauses_between_answers_are_not_timed():
    clock = Clock()
    governor = Governor(clock)
    for _ in range(TRIAL):
        governor.forward(decode=False)
        clock.now += 1000.0
        run(governor, clock, 3, lambda on, _: 1.0 if on else 1.1)
    assert governor.pays and governor.found[0] == pytest.approx(1.0)


def test_a_governor_of_virtual_time_decides_the_same_each_time():
    def decisions() -> list[bool]:
        dice, clock = random.Random(4), Clock()
        governor = Governor(clock)
        return run(
            governor,
            clock,
            2000,
            lambda on, loads: loads + dice.random() * (2 if on else 1),
            lambda: dice.randint(0, 4),
        )

    assert decisions() == decisions()
