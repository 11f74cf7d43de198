"""The best options within a budget, against trying all of them."""

from __future__ import annotations

import itertools
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_colab.errors import MoEColabError
from moe_colab.evaluation.allocation import Option, best_options

option = st.builds(
    Option,
    choice=st.integers(0, 99),
    nbytes=st.integers(0, 12),
    loss=st.integers(0, 12).map(float),
)
some_parts = st.lists(st.lists(option, min_size=1, max_size=4), min_size=1, max_size=5)


def total(options) -> tuple[float, int]:
    return sum(one.loss for one in options), sum(one.nbytes for one in options)


@settings(max_examples=300, deadline=None)
@given(some_parts, st.integers(0, 60))
def test_it_finds_what_trying_everything_finds(parts, budget):
    ways = [total(way) for way in itertools.product(*parts)]
    fitting = [way for way in ways if way[1] <= budget]
    if not fitting:
        with pytest.raises(MoEColabError, match="allow more bytes"):
            best_options(parts, budget)
        return
    found = best_options(parts, budget)
    assert all(one in options for one, options in zip(found, parts, strict=True))
    assert total(found) == min(fitting)


@settings(max_examples=100, deadline=None)
@given(some_parts, st.integers(0, 60), st.integers(2, 4))
def test_thinned_out_it_is_never_larger_and_never_lost(parts, budget, most):
    if sum(min(one.nbytes for one in options) for options in parts) > budget:
        return
    found = best_options(parts, budget, most)
    assert total(found)[1] <= budget
    assert total(found)[0] >= total(best_options(parts, budget))[0]


def test_of_a_large_model_next_to_nothing_is_lost():
    """32 layers of 36 ways each, thinned out after every layer, against a bound that no choice can
    beat: Lagrange's, with a price for every byte."""
    random, parts = Random(0), []
    for _ in range(32):
        minded = random.lognormvariate(0, 1)
        sizes = [random.randrange(2_000_000, 8_000_000) for _ in range(36)]
        parts.append([Option(size, size, minded * 4 ** (-size / 1e6)) for size in sizes])
    budget = 32 * 3_300_000
    loss, nbytes = total(best_options(parts, budget, 1000))
    assert nbytes <= budget
    bounds = [
        sum(min(one.loss + price * one.nbytes for one in options) for options in parts)
        - price * budget
        for price in (10.0 ** (-exponent / 20) for exponent in range(80, 240))
    ]
    assert max(bounds) <= loss <= 1.01 * max(bounds)
