"""The same routing under another cache: against the live model, against a naive cache fed with the
plain model's routing, and the bounds against every choice there is."""

from __future__ import annotations

import random
from functools import cache
from itertools import combinations, product

import pytest
import torch
from families import make_checkpoint, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import NaiveLayer, RouterAverage, plain_routing
from traces import COUNTED, counted

import moe_colab as mc
from moe_colab.analysis.cache_history import replayed
from moe_colab.bench.paper import with_compute_times
from moe_colab.cache.belady import BeladyCache
from moe_colab.cache.clock_link import ClockLink
from moe_colab.cache.layer_cache import LayerCache
from moe_colab.cache.policies import POLICIES, BypassingPolicy, Policy
from moe_colab.cache.stats import Stats
from moe_colab.trace import Builder, Trace

pytestmark = pytest.mark.colab
FAMILIES = ["mixtral", "qwen3_moe", "granitemoe"]
TRACE = Trace.load().only("code")


def bypassing_lfu(experts: int) -> Policy:
    return BypassingPolicy(POLICIES["lfu"](experts))


def talk(model) -> None:
    """A prompt of three rows and their answers, then one row; the second after a single token."""
    ids = torch.randint(5, 120, (3, 12), generator=torch.Generator().manual_seed(0))
    for prompt, length in ((ids, 5), (ids[:1, :1], 10)):
        model.generate(prompt, max_new_tokens=length, min_new_tokens=length, do_sample=False)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    folder = make_checkpoint(request.param, tmp_path_factory.mktemp("replays") / request.param)
    model, _ = mc.load(folder, slots=3, speculate=0, progress=False)
    with model.offload:
        with mc.record(model) as trace:
            talk(model)
        yield model, trace, plain_routing(reference(folder), talk)


def live(model, policy, slots) -> Stats:
    """What the model counts of the same talk, from empty slots."""
    model.offload.policy = policy
    for number in (8, slots):  # slots that change begin empty
        model.offload.slots = number
    model.offload.reset_stats()
    talk(model)
    return model.offload.stats()


def assert_equal(replay, stats) -> None:
    assert (replay.forwards, replay.tokens) == (stats.forwards, stats.tokens)
    for part in ("total", "prompt", "decode"):
        assert counted(getattr(replay, part)) == counted(getattr(stats, part))
    for mine, theirs in zip(replay.layers, stats.layers, strict=True):
        assert counted(mine) == counted(theirs)


# ---------------------------------------------------------------------- equal to what was live
@pytest.mark.parametrize("policy", [*POLICIES, RouterAverage, bypassing_lfu])
def test_a_replay_counts_what_the_live_model_counts(case, policy):
    model, trace, _ = case
    for slots in (1, 2, [5, 3, 8]):
        assert_equal(mc.replay(trace, policy, slots), live(model, policy, slots))


def test_so_it_does_for_whole_layers_and_with_experts_that_stay(case):
    model, trace, _ = case
    for setting in (
        {"whole_layer": True},
        {"resident": {0: [1, 6], 2: [0]}},
        {"policy": RouterAverage, "resident": {1: [7]}},
    ):
        other, _ = mc.load(model.offload.store, slots=2, speculate=0, progress=False, **setting)
        with other.offload:
            talk(other)
            assert_equal(mc.replay(trace, slots=2, **setting), other.offload.stats())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("slots", [1, 2, 4, 8])
def test_and_what_a_naive_cache_counts_of_the_plain_models_routing(case, policy, slots):
    _, trace, routing = case
    replay = mc.replay(trace, policy, slots)
    for number, (layer, forwards) in enumerate(zip(replay.layers, routing, strict=True)):
        naive = NaiveLayer(policy, slots, number)
        for needed in forwards:
            naive.forward(needed)
        names = ("accesses", "hits", "loads", "evictions")
        assert {n: getattr(layer, n) for n in names} == {n: naive.count[n] for n in names}
        assert layer.bytes_loaded == naive.count["loads"] * trace.expert_bytes[number]


def test_the_trace_holds_the_plain_models_routing(case):
    _, trace, routing = case
    assert [trace.needed(layer) for layer in range(trace.layers)] == routing


# ---------------------------------------------------------------------- with guesses
GUESSED = (*COUNTED, "speculative_hits", "late", "bytes_wasted")
BEFORE, EACH = 0.004, 0.001  # seconds before a router speaks, and for each expert


def on_a_clock(model, monkeypatch, seconds_a_load: float, **setting) -> Stats:
    """What the live model counts when bytes take virtual time, and nothing stands aside."""
    handle = model.offload
    rate = handle.entries[0].layout.nbytes / seconds_a_load
    with monkeypatch.context() as patch:
        patch.setattr("moe_colab.offload.handle.make_link", lambda *_: ClockLink(rate))
        for name, value in (setting | {"slots": 8, "stand_aside": False}).items():
            setattr(handle, name, value)
        handle.slots = setting["slots"]  # a new pool, and empty
        with_compute_times(handle.pool, BEFORE, EACH)
        handle.reset_stats()
        talk(model)
        stats = handle.stats()
    handle.speculate = 0
    handle.slots = 7  # and a link of its own again
    return stats


@pytest.fixture(scope="module", params=["router_input", "layer_output"])
def guessed(case, request):
    """A trace with four guesses a layer, two layers ahead."""
    model, handle = case[0], case[0].offload
    handle.policy, handle.slots, handle.stand_aside = "lru", 2, False
    handle.speculate, handle.lookahead, handle.guess_from = 4, 2, request.param
    talk(model)  # norms are found in the first forward
    with mc.record(model) as trace:
        talk(model)
    handle.speculate = 0
    assert trace.sources == (request.param,)
    return model, trace, request.param


SETTINGS = [  # seconds of a load against 0.006 of a layer's compute
    *((0.033, 4, 2, 1, "lru"), (0.012, 2, 2, 1, "lru"), (0.0012, 6, 2, 1, "lru")),
    *((0.012, 4, 1, 1, "lfu"), (0.012, 4, 4, 2, "lfu"), (0.033, 1, 4, 2, "fifo")),
    *((0.006, 3, 3, 2, "none"), (0.006, 5, 3, 2, "random"), (0.006, 3, 3, 2, RouterAverage)),
]


@pytest.mark.parametrize("load, slots, speculate, lookahead, policy", SETTINGS)
def test_with_guesses_too_a_replay_counts_what_the_live_model_counts(
    guessed, monkeypatch, load, slots, speculate, lookahead, policy
):
    model, trace, source = guessed
    setting = {"speculate": speculate, "lookahead": lookahead, "guess_from": source}
    stats = on_a_clock(model, monkeypatch, load, slots=slots, policy=policy, **setting)
    clock = {"link": trace.expert_bytes[0] / load, "compute": (BEFORE, EACH)}
    replay = mc.replay(trace, policy, slots, **setting, **clock)
    for mine, theirs in zip(
        (replay.prompt, replay.decode, *replay.layers),
        (stats.prompt, stats.decode, *stats.layers),
        strict=True,
    ):
        assert {n: getattr(mine, n) for n in GUESSED} == {n: getattr(theirs, n) for n in GUESSED}
        assert mine.stall_seconds == pytest.approx(theirs.stall_seconds)
    assert replay.speculative_hits + replay.late > 0
    run = mc.timeline(trace, policy=policy, slots=slots, **setting, **clock)
    assert run.stats.total == replay.total
    assert run.events["bytes"].sum() == replay.bytes_loaded


def test_guesses_that_were_not_recorded_are_asked_for(guessed):
    _, trace, source = guessed
    other = {"router_input": "layer_output", "layer_output": "router_input"}[source]
    for setting in ({"speculate": 5}, {"speculate": 2, "guess_from": other}):
        with pytest.raises(mc.MoEColabError, match="record it with speculate="):
            mc.replay(trace, slots=4, **{"guess_from": source, **setting})
    with pytest.raises(mc.MoEColabError, match="lookahead must be"):
        mc.replay(trace, slots=4, speculate=1, lookahead=3)


# ---------------------------------------------------------------------- the bounds
def trace_of(needed: list[list[int]], experts: int) -> Trace:
    """One layer; every step one row of a prompt, or a token."""
    builder = Builder({"model": "made up", "experts": (experts,), "expert_bytes": (10,)})
    for step in needed:
        forward = builder.begin("prompt" if len(step) > 2 else "decode", 1, len(step), 0, None)
        forward.routed(0, torch.tensor(step)[:, None].numpy(), None)
        builder.end()
    return builder.trace()


def fewest_loads(needed: list[list[int]], slots: int, bypass: bool) -> int:
    """By trying everything: after an access, any set of experts may lie in the slots that is made
    of those that were there and those that were needed; without bypass all that were needed, or,
    if they do not fit, any of them."""

    @cache
    def loads(step: int, lying: frozenset) -> int:
        if step == len(needed):
            return 0
        now = frozenset(needed[step])
        missing = now - lying
        if not missing:
            return loads(step + 1, lying)
        if bypass:
            first, others = frozenset(), lying | now
        elif len(now) <= slots:
            first, others = now, lying - now
        else:
            first, others = frozenset(), now
        room = min(slots - len(first), len(others))
        kept = (first.union(some) for some in combinations(sorted(others), room))
        return len(missing) + min(loads(step + 1, some) for some in kept)

    return loads(0, frozenset())


class Told(Policy):
    """Sends away whom a list says: candidates by their number, the newcomer after the last."""

    def __init__(self, experts, plan, bypass):
        super().__init__(experts)
        self.plan, self.bypass, self.choices = list(plan), bypass, []

    def victim(self, candidates, newcomer):
        options = [*candidates, newcomer] if self.bypass else candidates
        chosen = self.plan[len(self.choices)] if len(self.choices) < len(self.plan) else 0
        self.choices.append(len(options))
        return options[chosen]


def best_policy(needed: list[list[int]], slots: int, experts: int, bypass: bool) -> int:
    """The fewest loads of any policy in a LayerCache, by trying every answer of `victim`."""
    fewest, plan = None, []
    while plan is not None:
        policy = Told(experts, plan, bypass)
        layer = LayerCache(policy, slots)
        loads = sum(not step.hit for step_of in needed for step in layer.access(step_of))
        fewest = loads if fewest is None else min(fewest, loads)
        plan = [*plan, *[0] * (len(policy.choices) - len(plan))]
        while plan and plan[-1] == policy.choices[len(plan) - 1] - 1:
            plan.pop()
        plan = [*plan[:-1], plan[-1] + 1] if plan else None
    return fewest


def random_accesses(dice: random.Random, most: int) -> tuple[list[list[int]], int, int]:
    experts = dice.randint(2, 5)
    slots = dice.randint(1, experts)
    sizes = [dice.randint(1, min(most, experts)) for _ in range(dice.randint(1, 9))]
    return [sorted(dice.sample(range(experts), size)) for size in sizes], experts, slots


@pytest.mark.parametrize("bypass", [False, True])
def test_the_bounds_are_exhaustive_searchs_on_500_traces(bypass):
    dice = random.Random(1)
    waves = 0
    for _ in range(500):
        needed, experts, slots = random_accesses(dice, most=4)
        waves += any(len(step) > slots for step in needed)
        trace = trace_of(needed, experts)
        replay = mc.replay(trace, "optimal-bypass" if bypass else "optimal", slots)
        assert replay.loads == fewest_loads(needed, slots, bypass)
        assert replay.total == mc.replay(trace, "optimal", slots, bypass=bypass).total
    assert 50 < waves < 450  # accesses with and without room for all


def test_some_policy_attains_the_bound_where_an_access_finds_room():
    dice = random.Random(2)
    tried = 0
    while tried < 60:
        needed, experts, slots = random_accesses(dice, most=2)
        if max(map(len, needed)) > slots:
            continue
        bound = mc.replay(trace_of(needed, experts), "optimal", slots).loads
        assert bound == best_policy(needed, slots, experts, bypass=False)
        tried += 1


def test_no_policy_is_better_than_the_bounds():
    dice = random.Random(3)
    for _ in range(60):
        needed, experts, slots = random_accesses(dice, most=3)
        trace = trace_of(needed[:6], experts)
        for name, bypass in (("optimal", False), ("optimal-bypass", True)):
            bound = mc.replay(trace, name, slots).loads
            assert bound <= best_policy(needed[:6], slots, experts, bypass)


accesses = st.lists(st.sets(st.integers(0, 5), min_size=1), max_size=15).map(
    lambda steps: [sorted(step) for step in steps]
)


@settings(deadline=None)
@given(needed=accesses, slots=st.integers(1, 6), bypass=st.booleans())
def test_the_steps_of_the_optimum_can_be_carried_out(needed, slots, bypass):
    optimum, lying = BeladyCache(needed, slots, bypass), set()
    for experts in needed:
        steps = optimum.access(experts)
        assert sorted(step.expert for step in steps) == experts
        assert {step.expert for step in steps if step.hit} == lying & set(experts)
        used = set()
        for step in steps:
            if not step.hit:
                assert step.keep or bypass or lying <= set(experts)
                assert step.victim is None or step.victim in lying
                assert step.victim not in experts or step.victim in used
                lying -= {step.victim}
                lying |= {step.expert} if step.keep else set()
            used.add(step.expert)
            assert len(lying) <= slots
        assert lying == optimum.resident


# ---------------------------------------------------------------------- budgets and refusals
def test_a_budget_is_spread_as_no_other_spread_does_better(case):
    _, trace, _ = case
    for policy in ("lru", "optimal"):
        cost = [
            [mc.replay(trace, policy, slots).layers[layer].bytes_loaded for slots in range(1, 9)]
            for layer in range(trace.layers)
        ]
        for budget in (3, 7, 12, 24):
            best = min(
                sum(row[n - 1] for row, n in zip(cost, slots, strict=True))
                for slots in product(range(1, 9), repeat=trace.layers)
                if sum(slots) == budget
            )
            replay = mc.replay(trace, policy, budget=budget)
            assert (sum(replay.slots), replay.bytes_loaded) == (budget, best)


@pytest.mark.parametrize(
    "setting, said",
    [
        ({}, "slots="),
        ({"slots": 4, "budget": 9}, "budget="),
        ({"slots": 9}, "1 to 8"),
        ({"slots": [4, 4]}, "2 numbers"),
        ({"budget": 2}, "does not fit"),
        ({"budget": 25}, "does not fit"),
        ({"slots": 4, "policy": "best"}, "unknown policy"),
        ({"slots": 4, "resident": {3: [0]}}, "do not exist"),
    ],
)
def test_wrong_settings_are_refused(case, setting, said):
    with pytest.raises(mc.MoEColabError, match=said):
        mc.replay(case[1], **setting)


def test_a_policy_that_wants_logits_is_refused_where_there_are_none():
    with pytest.raises(mc.MoEColabError, match="does not hold the router's logits"):
        mc.replay(trace_of([[0, 1], [2]], 4), RouterAverage, 2)


def test_work_grows_with_accesses_and_not_with_experts_or_slots(monkeypatch):
    """One call of the cache per layer and step: what a second a setting rests on."""
    calls = []
    access = LayerCache.access
    monkeypatch.setattr(
        LayerCache, "access", lambda self, *given: calls.append(1) or access(self, *given)
    )
    trace = mc.Trace.load()
    mc.replay(trace, "lru", 4)
    assert len(calls) == trace.steps * trace.layers


# ---------------------------------------------------------------------- policies of other classes
class LowestLeaves:
    """Has the four methods of a policy and nothing else."""

    answer = None

    def __init__(self, experts):
        self.experts_of_the_layer = experts

    def observe(self, used, tokens=None): ...

    def admit(self, expert): ...

    def evict(self, expert): ...

    def victim(self, candidates, newcomer):
        return min(candidates) if self.answer is None else self.answer


class LowestOfPolicy(Policy):
    """Inherits, but does not call Policy.__init__."""

    def __init__(self, experts):
        pass

    def victim(self, candidates, newcomer):
        return min(candidates)


class Lowest(Policy):
    def victim(self, candidates, newcomer):
        return min(candidates)


@pytest.mark.parametrize("policy", [LowestLeaves, LowestOfPolicy])
@pytest.mark.parametrize("bypass", [False, True])
def test_a_policy_need_not_inherit(policy, bypass):
    setting = {"slots": 3, "bypass": bypass}
    expected = mc.replay(TRACE, Lowest, **setting)
    replay = mc.replay(TRACE, policy, **setting)
    assert replay.total == expected.total and replay.layers == expected.layers
    assert replay.policy == policy.__name__ and bool(replay.bypasses) == bypass
    assert mc.timeline(TRACE, policy=policy, **setting).stats.total.loads == replay.loads
    frames = [mc.tables.residency(TRACE, 1, p, **setting) for p in (policy, Lowest)]
    assert frames[0].equals(frames[1])
    rates = mc.tables.hit_rates(TRACE, [policy], [3])
    assert set(rates["policy"]) == {policy.__name__}
    histories = [replayed(TRACE, p, 3, steps=20) for p in (policy, Lowest)]
    assert histories[0].snapshots == histories[1].snapshots and histories[0].measures == ()
    assert histories[0].policy == policy.__name__


def test_a_message_names_the_class_that_answered_wrongly():
    class Nonsense(LowestLeaves):
        answer = "nobody"

    for view in (
        lambda: mc.replay(TRACE, Nonsense, slots=3),
        lambda: mc.replay(TRACE, Nonsense, slots=3, bypass=True),
        lambda: replayed(TRACE, Nonsense, 3),
    ):
        with pytest.raises(mc.MoEColabError, match="policy Nonsense answered 'nobody'"):
            view()
