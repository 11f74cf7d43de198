"""Modelled time: against a simulation written here, and the laws that hold for any."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import NaiveLayer
from traces import counted, made_up

import moe_colab as mc
from moe_colab.cache.policies import POLICIES
from moe_colab.cache.stats import PHASES
from moe_colab.trace import Trace

RATE, BEFORE, EACH = 1e9, 0.002, 0.0005


def naive_seconds(trace: Trace, policy: str, slots: int) -> tuple[float, float]:
    """(all, waited): one load after the other, all loads of a layer asked for when its router has
    spoken, experts that are there computed first. Right where a layer needs no more than fit."""
    caches = [NaiveLayer(policy, slots, layer) for layer in range(trace.layers)]
    now = link = waited = 0.0
    for step in range(trace.steps):
        for layer, naive in enumerate(caches):
            now += BEFORE
            needed = trace.needed(layer)[step]
            missing = [e for e in needed if e not in naive.inside]
            naive.forward(needed)
            arrivals = []
            for _ in missing:
                link = max(link, now) + trace.expert_bytes[layer] / RATE
                arrivals.append(link)
            now += EACH * (len(needed) - len(missing))
            for arrival in arrivals:
                waited += max(0.0, arrival - now)
                now = max(now, arrival) + EACH
    return now, waited


@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "none"])
@pytest.mark.parametrize("slots", [2, 3, 5])
def test_seconds_are_those_of_a_simulation_written_here(policy, slots):
    for seed in range(5):
        trace = made_up(seed)
        run = mc.timeline(trace, RATE, (BEFORE, EACH), policy, slots)
        seconds, waited = naive_seconds(trace, policy, slots)
        assert run.total.seconds == pytest.approx(seconds)
        assert run.total.stall_seconds == pytest.approx(waited)
        assert run.stats.stall_seconds == pytest.approx(waited)


anything = {
    "seed": st.integers(0, 10**6),
    "slots": st.integers(1, 6),
    "most": st.integers(1, 6),
    "policy": st.sampled_from([*POLICIES, "optimal", "optimal-bypass"]),
    "bypass": st.booleans(),
}


@settings(max_examples=60, deadline=None)
@given(**anything)
def test_a_timeline_counts_what_a_replay_counts(seed, slots, most, policy, bypass):
    trace = made_up(seed, most=most)
    replay = mc.replay(trace, policy, slots, bypass=bypass)
    stats = mc.timeline(trace, RATE, (BEFORE, EACH), policy, slots, bypass=bypass).stats
    for part in ("total", "prompt", "decode"):
        assert counted(getattr(stats, part)) == counted(getattr(replay, part))
    assert list(map(counted, stats.layers)) == list(map(counted, replay.layers))


@settings(max_examples=40, deadline=None)
@given(**anything)
def test_the_table_is_whole(seed, slots, most, policy, bypass):
    """Compute and stalls lie one after the other without a gap, copies do not overlap, every byte
    is in one of them, and nobody computes with what has not arrived."""
    trace = made_up(seed, most=most)
    run = mc.timeline(trace, RATE, (BEFORE, EACH), policy, slots, bypass=bypass)
    frame = run.frame()
    busy = frame[frame.kind != "copy"]
    ends = np.r_[0.0, busy.end.to_numpy()]
    np.testing.assert_allclose(busy.begin, ends[:-1], atol=1e-12)
    assert ends[-1] == pytest.approx(run.total.seconds)
    copies = frame[frame.kind == "copy"]
    assert (copies.begin.to_numpy()[1:] >= copies.end.to_numpy()[:-1] - 1e-12).all()
    assert copies.bytes.sum() == run.stats.bytes_loaded == run.total.bytes
    np.testing.assert_allclose(copies.seconds * RATE, copies.bytes, atol=1)
    for layer, nbytes in enumerate(trace.expert_bytes):
        own = copies[copies["layer"] == layer]
        assert set(own.bytes) <= {nbytes}
        assert len(own) == run.stats.layers[layer].loads
    computed = busy[(busy.kind == "compute") & (busy.expert >= 0)]
    assert len(computed) == run.stats.accesses
    arrived = computed.merge(copies, on=["step", "layer", "expert"])
    assert len(arrived) == run.stats.loads
    assert (arrived.begin_x >= arrived.end_y - 1e-12).all()
    for part in ("prompt", "decode"):
        own, sums = busy[busy.phase == part], getattr(run, part)
        assert sums.seconds == pytest.approx(own.seconds.sum())
        assert sums.stall_seconds == pytest.approx(own[own.kind == "stall"].seconds.sum())
        assert sums.seconds == pytest.approx(sums.compute_seconds + sums.stall_seconds)
        phases = trace.forwards["phase"] == PHASES.index(part)
        assert sums.tokens == (trace.forwards["length"] * trace.forwards["rows"])[phases].sum()


def test_the_limits():
    trace = made_up(1)
    free = mc.timeline(trace, 1e30, (BEFORE, EACH), slots=3)
    assert free.total.stall_seconds == pytest.approx(0, abs=1e-12)
    assert free.total.seconds == pytest.approx(
        BEFORE * trace.steps * trace.layers + EACH * free.stats.accesses
    )
    linked = mc.timeline(trace, RATE, 0, slots=3)
    assert linked.total.seconds == pytest.approx(linked.total.bytes / RATE)
    assert linked.stall_share == pytest.approx(1)
    stays = mc.timeline(trace, RATE, 0, slots=2, resident={n: range(6) for n in range(3)})
    assert (stays.total.seconds, stays.stats.hit_rate) == (0, 1)


def test_speeds_and_times_are_read_as_they_are_written():
    trace = made_up(1)
    same = [
        mc.timeline(trace, link, compute, slots=3).total
        for link in (2e9, "2GB/s", " 2 GB/s ", 2_000_000_000)
        for compute in (0.004, (0.002, 0.001), [0.002, 0.001])
    ]
    assert len(set(same)) == 1
    whole = mc.timeline(trace, "2GB/s", 0.004, slots=3)
    assert whole.tokens_per_second == whole.decode.tokens / whole.decode.seconds
    assert whole.as_dict()["stats"]["loads"] == whole.stats.loads


@pytest.mark.parametrize(
    "setting, said",
    [
        ({"link": "fast"}, "not a size"),
        ({"link": 0}, "link must be above 0"),
        ({"compute": "long"}, "compute must be"),
        ({"compute": (1, 2, 3)}, "compute must be"),
        ({"compute": -1}, "0 seconds or more"),
        ({"compute": float("nan")}, "0 seconds or more"),
        ({"slots": None}, "slots="),
    ],
)
def test_wrong_settings_are_refused(setting, said):
    with pytest.raises(mc.MoEColabError, match=said):
        mc.timeline(made_up(1), **{"slots": 2, **setting})


def test_during_a_step_are_its_rows_and_the_copies_under_way():
    trace = made_up(5)
    run = mc.timeline(trace, "1GB/s", 1e-3, slots=2)
    frame = run.frame()
    for step in range(trace.steps):
        own = frame[(frame["step"] == step) & (frame["kind"] != "copy")]
        begin, end = own["begin"].min(), own["end"].max()
        meanwhile = (frame["kind"] == "copy") & (frame["end"] > begin) & (frame["begin"] < end)
        wanted = frame[frame.index.isin(own.index) | meanwhile].reset_index(drop=True)
        found = run.during(step)
        assert found.equals(wanted) and 0 < len(found) < len(frame)
    assert run.during(trace.steps).empty
