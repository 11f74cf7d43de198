"""Tables made of a trace: against caches written here, and counted from the arrays themselves."""

from __future__ import annotations

import random

import numpy as np
import pytest
from naive import NaiveLayer
from traces import made_up

import moe_colab as mc
from moe_colab.analysis import tables
from moe_colab.trace import Trace

pytestmark = pytest.mark.colab
TRACE = Trace.load()


@pytest.mark.parametrize("policy", ["lru", "lfu", "fifo", "random"])
@pytest.mark.parametrize("slots", [1, 2, 4])
def test_residency_is_what_a_naive_cache_holds(policy, slots):
    trace = made_up(3, steps=40)
    for layer in range(trace.layers):
        frame = mc.tables.residency(trace, layer, policy, slots)
        naive = NaiveLayer(policy, slots, layer)
        for step, needed in enumerate(trace.needed(layer)):
            before = set(naive.inside)
            naive.forward(needed)
            states = dict(frame[frame["step"] == step][["expert", "state"]].to_numpy().tolist())
            assert {e for e, state in states.items() if state == "hit"} == before & set(needed)
            assert {e for e, s in states.items() if s != "idle"} == set(needed)
            inside = {e for e, s in states.items() if s in ("idle", "miss")}
            inside |= {e for e, s in states.items() if s == "hit"} & set(naive.inside)
            assert inside == set(naive.inside)


def test_residency_counts_what_a_replay_counts_and_names_tokens():
    trace = TRACE.only("prose")
    for policy in ("lru", "optimal", "none"):
        counts = mc.replay(trace, policy, 4)
        for layer in (0, 7):
            frame = tables.residency(trace, layer, policy, 4)
            assert (frame["state"] == "hit").sum() == counts.layers[layer].hits
            missed = frame["state"].isin(["miss", "passing"]).sum()
            assert missed == counts.layers[layer].loads
            assert policy != "none" or set(frame["state"]) == {"passing"}
    row = frame[frame["step"] == 5].iloc[0]
    place = trace.bounds[5]
    assert (row["phase"], row["label"]) == ("decode", "prose")
    assert row["token"] == trace.texts[int(trace.tokens[place])]
    assert set(frame[frame["phase"] == "prompt"]["token"]) == {""}


def test_hit_rates_are_those_of_replays():
    trace = TRACE.only("code")
    frame = tables.hit_rates(trace, ("lfu", "optimal"), [1, 3, 8])
    assert len(frame) == 2 * 3 * 2
    for row in frame.itertuples():
        counts = getattr(mc.replay(trace, row.policy, row.slots), row.phase)
        assert row.hit_rate == counts.hit_rate
        assert (row.accesses, row.loads) == (counts.accesses, counts.loads)
        assert row.bytes == counts.bytes_loaded
    assert sorted(set(tables.hit_rates(made_up(1))["slots"])) == [1, 2, 3, 4, 5, 6]


def test_recall_is_counted_from_the_arrays():
    trace, dice = TRACE.only("french"), random.Random(2)
    frame = tables.recall(trace, 3)
    assert len(frame) == 2 * (7 + 6)
    for row in dice.sample(list(frame.itertuples()), 5):
        source = trace.sources.index(row.source)
        needed = found = 0
        for step in np.flatnonzero(trace.forwards["phase"] == 1):
            chosen = set(trace.routing[trace.bounds[step], row.layer].tolist())
            own = trace.guesses[trace.guesses["step"] == step]
            own = own[(own["source"] == source) & (own["layer"] == row.layer)]
            own = own[(own["at"] == row.layer - row.lookahead) & (own["place"] < 3)]
            needed, found = needed + len(chosen), found + len(chosen & set(own["expert"].tolist()))
        assert (row.needed, row.guessed) == (needed, found)
        assert row.recall == found / needed and row.chance == 3 / 8
        assert 0 <= row.low < row.recall < row.high <= 1
        alone = 1.96 * (row.recall * (1 - row.recall) / needed) ** 0.5  # if all were independent
        assert row.high - row.low > 1.9 * alone


def test_settings_that_cannot_be_are_one_sentence():
    for wrong in (
        lambda: tables.residency(TRACE, layer=8),
        lambda: tables.residency(TRACE, slots=9),
        lambda: tables.residency(TRACE, policy="best"),
        lambda: tables.hit_rates(TRACE, slots=[0]),
        lambda: tables.recall(TRACE, 5),
        lambda: tables.recall(made_up(1)),
    ):
        with pytest.raises(mc.MoEColabError) as error:
            wrong()
        assert str(error.value).count("\n") == 0
