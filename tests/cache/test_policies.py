"""Who stays: one protocol for every policy, each policy against a dumb list, and a user's own."""

from __future__ import annotations

import pytest
from conftest import python
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import NAIVE, RouterAverage

from moe_colab.cache.layer_cache import Decision, LayerCache
from moe_colab.cache.policies import (
    LRU,
    POLICIES,
    Policy,
    make_policy,
    policy_name,
)
from moe_colab.errors import MoEColabError

E = 6  # experts of the layer in these tests
few = settings(max_examples=40, deadline=None)


def some_experts(smallest: int = 0):
    return st.sets(st.integers(0, E - 1), min_size=smallest)


accesses = st.tuples(st.just("access"), some_experts(1))
failures = st.tuples(st.just("reconcile"), some_experts())
histories = st.lists(accesses | failures, max_size=25)


def tokens_of(needed) -> list:
    """Logits that favour the needed experts, as a router's would."""
    return [(sorted(needed), [float(e in needed) - e / 100 for e in range(E)])]


def happen(cache, event):
    """Let one event of a history happen to a LayerCache or to a NaiveCache."""
    kind, what = event
    if kind == "access":
        return cache.access(sorted(what), tokens_of(what))
    return cache.reconcile(sorted(what)[: cache.slots])


# ---------------------------------------------------------------------- the protocol
@pytest.mark.parametrize("spec", [*POLICIES, RouterAverage], ids=policy_name)
class TestEveryPolicy:
    def cache(self, spec, slots: int) -> LayerCache:
        return LayerCache(make_policy(spec, E), slots)

    @few
    @given(slots=st.integers(1, E), history=histories)
    def test_residents_never_exceed_the_slots(self, spec, slots, history):
        cache = self.cache(spec, slots)
        for event in history:
            happen(cache, event)
            assert len(cache.resident) <= cache.slots <= slots

    @few
    @given(slots=st.integers(1, E), history=histories)
    def test_each_needed_expert_gets_one_step_and_hits_come_first(self, spec, slots, history):
        cache = self.cache(spec, slots)
        for event in history:
            before = set(cache.resident)
            steps = happen(cache, event)
            if event[0] == "access":
                hits = [step.expert for step in steps if step.hit]
                misses = [step.expert for step in steps if not step.hit]
                assert [step.expert for step in steps] == hits + misses
                assert hits == sorted(event[1] & before)
                assert misses == sorted(event[1] - before)

    @few
    @given(slots=st.integers(1, E), history=histories)
    def test_steps_carried_out_one_by_one_evict_only_residents_that_were_used(
        self, spec, slots, history
    ):
        cache = self.cache(spec, slots)
        for event in history:
            lying = set(cache.resident)
            steps = happen(cache, event)
            if event[0] == "access":
                self.carry_out(steps, lying, event[1], room=cache.slots)
                assert lying == cache.resident

    @staticmethod
    def carry_out(steps, lying: set, needed: set, room: int) -> None:
        """Do what the steps say, in their order, to the set of experts that lie in the slots."""
        used = set()
        for step in steps:
            if step.hit:
                assert step.expert in lying and step.victim is None and step.keep
            else:
                assert step.expert not in lying
            if step.victim is not None:
                assert step.victim in lying, "a victim that was not there"
                assert step.victim in used or step.victim not in needed, "evicted before its step"
                lying.discard(step.victim)
            if step.keep:
                lying.add(step.expert)
            assert len(lying) <= room
            used.add(step.expert)

    @few
    @given(slots=st.integers(1, E), history=histories)
    def test_a_needed_expert_leaves_only_if_no_other_is_there(self, spec, slots, history):
        cache = self.cache(spec, slots)
        for event in history:
            lying = set(cache.resident)
            for step in happen(cache, event) if event[0] == "access" else ():
                if step.victim in event[1]:
                    assert lying <= event[1]
                lying -= {step.victim}
                lying |= {step.expert} if step.keep else set()

    @few
    @given(slots=st.integers(1, E), history=histories)
    def test_the_same_history_gives_the_same_steps(self, spec, slots, history):
        one, other = self.cache(spec, slots), self.cache(spec, slots)
        assert [happen(one, event) for event in history] == [happen(other, e) for e in history]

    @few
    @given(slots=st.integers(1, E), history=histories, present=some_experts())
    def test_after_reconcile_the_residents_are_those_present(self, spec, slots, history, present):
        cache = self.cache(spec, slots)
        for event in history:
            happen(cache, event)
        present = set(sorted(present)[: cache.slots])
        cache.reconcile(present)
        assert cache.resident == present

    def test_the_policy_hears_what_happens_in_the_promised_order(self, spec):
        heard = []

        class Spy(type(make_policy(spec, E))):
            def observe(self, used, tokens=None):
                heard.append(("observe", list(used)))
                super().observe(used, tokens)

            def admit(self, expert):
                heard.append(("admit", expert))
                super().admit(expert)

            def evict(self, expert):
                heard.append(("evict", expert))
                super().evict(expert)

            def victim(self, candidates, newcomer):
                assert candidates == sorted(candidates)
                answer = super().victim(candidates, newcomer)
                heard.append(("victim", answer, newcomer))
                return answer

        cache = self.cache(Spy, slots=2)
        for needed in ([0, 1], [1, 2], [3, 4, 5]):
            heard.clear()
            steps = cache.access(needed, tokens_of(set(needed)))
            assert heard[0] == ("observe", needed)
            assert heard[1:] == [
                call
                for step in steps
                if not step.hit and cache.slots
                for call in self.calls_of(step, asked=needed != [0, 1])
            ]

    @staticmethod
    def calls_of(step: Decision, asked: bool) -> list[tuple]:
        """What a policy hears of one miss: `victim` if the slots are full, `evict`, `admit`."""
        if not step.keep:
            return [("victim", step.expert, step.expert)]
        left = [("victim", step.victim, step.expert), ("evict", step.victim)] if asked else []
        return [*left, ("admit", step.expert)]


# ---------------------------------------------------------------------- against dumb lists


def test_every_policy_has_a_naive_model():
    assert set(NAIVE) == set(POLICIES)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=150, deadline=None)
@given(slots=st.integers(1, E), history=histories)
def test_a_policy_decides_as_its_naive_model(name, slots, history):
    cache, naive = LayerCache(make_policy(name, E), slots), NAIVE[name](slots)
    for event in history:
        got, expected = happen(cache, event), happen(naive, event)
        assert flat(got) == expected
        assert cache.resident == set(naive.resident)


def flat(steps):
    """Steps as the naive models write them: (expert, hit, victim, keep)."""
    if isinstance(steps, Decision):
        return (steps.expert, steps.hit, steps.victim, steps.keep)
    return None if steps is None else [flat(step) for step in steps]


@pytest.mark.parametrize(
    ("name", "uses", "leaves"),
    [
        ("lru", [[0], [1], [0]], 1),
        ("lru", [[0, 1]], 0),  # of one forward, the higher counts as later
        ("lfu", [[0], [0], [1]], 1),
        ("lfu", [[1], [0]], 1),  # equally often: the least recently used
        ("lfu", [[0], [0], [2], [2], [1]], 1),
        ("fifo", [[1], [0], [1], [1]], 1),
    ],
)
def test_who_leaves_two_slots_when_5_comes(name, uses, leaves):
    cache = LayerCache(make_policy(name, E), 2)
    for needed in uses:
        cache.access(needed)
    assert [step.victim for step in cache.access([5])] == [leaves]


def test_waves_in_full():
    """Three needed experts share two slots: what is there is used first, then makes room."""
    cache = LayerCache(make_policy("lru", E), 2)
    assert flat(cache.access([0, 3])) == [(0, False, None, True), (3, False, None, True)]
    assert flat(cache.access([1, 2, 3])) == [
        (3, True, None, True),
        (1, False, 0, True),
        (2, False, 1, True),  # 1 and 3 were used; all of one forward, 1 counts as earlier
    ]
    assert cache.resident == {2, 3}


def test_two_layers_throw_different_dice_and_one_layer_always_the_same():
    def victims(layer):
        policy = make_policy("random", E, layer)
        return [policy.victim(list(range(E)), 9) for _ in range(20)]

    assert victims(0) == victims(0)
    assert victims(0) != victims(1)


# ---------------------------------------------------------------------- a user's own
class TestAUsersOwnPolicy:
    def test_is_shown_the_tokens_and_may_bypass(self):
        policy = make_policy(RouterAverage, 3)
        assert policy.needs_logits
        cache = LayerCache(policy, slots=1)
        loved = [([0], [9.0, 1.0, -9.0])]
        assert flat(cache.access([0], loved)) == [(0, False, None, True)]
        assert flat(cache.access([2], loved)) == [(2, False, None, False)], "0 is liked better"
        assert cache.resident == {0}
        cache.access([1], [([1], [-99.0, 1.0, -9.0])])
        assert cache.resident == {1}

    def test_may_be_any_callable_and_need_not_inherit(self):
        class Lowest:
            def __init__(self, experts):
                self.observe = lambda used, tokens=None: None
                self.admit = self.evict = lambda expert: None

            def victim(self, candidates, newcomer):
                return candidates[0]

        cache = LayerCache(make_policy(lambda experts: Lowest(experts), E), slots=2)
        cache.access([1, 4])
        assert [step.victim for step in cache.access([2, 4])] == [None, 1]

    def test_has_one_instance_per_layer(self):
        assert make_policy(RouterAverage, E) is not make_policy(RouterAverage, E)


class NoVictim(Policy):
    """A subclass that forgot the one method that counts."""


class NoMethods:
    def __init__(self, experts):
        pass


class NoNumber(LRU):
    def __init__(self):
        super().__init__(E)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("lur", ["'lur'", "lru", "fifo"]),
        (NoVictim, ["NoVictim", "victim"]),
        (NoMethods, ["NoMethods", "victim", "observe"]),
        (NoNumber, ["NoNumber", "number_of_experts"]),
        (LRU(E), ["class", "every layer"]),
        (None, ["None", "class"]),
        (3, ["3", "class"]),
    ],
    ids=lambda value: policy_name(value)[:12] if not isinstance(value, list) else "",
)
def test_what_cannot_serve_as_a_policy_is_refused_at_once(spec, words):
    with pytest.raises(MoEColabError) as caught:
        make_policy(spec, E)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("answer", [None, -1, 5, "0", [0], 0.5])
def test_a_victim_that_is_no_candidate_is_refused_and_nothing_changes(answer):
    class Nonsense(LRU):
        def victim(self, candidates, newcomer):
            return answer

    cache = LayerCache(make_policy(Nonsense, E), slots=2)
    cache.access([0, 1])
    with pytest.raises(MoEColabError, match=r"Nonsense answered .* \[0, 1\] or the newcomer 2"):
        cache.access([2])
    assert cache.resident == {0, 1}


# ---------------------------------------------------------------------- arrows point down
@pytest.mark.parametrize("room", ["policies", "stats", "links", "homes", "pool"])
def test_this_room_loads_no_torch(room):
    code = (
        f"import sys, moe_colab.cache.{room}\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    assert python(code).strip() == "[]"


def test_a_policy_that_spoils_what_it_is_shown_spoils_nothing():
    class Spoiler(Policy):
        def observe(self, used, tokens=None):
            used.clear()

        def victim(self, candidates, newcomer):
            return float(candidates.pop())

    cache = LayerCache(Spoiler(8), 2)
    assert [step.expert for step in cache.access([1, 2])] == [1, 2]
    (step,) = cache.access([5])
    assert (step.expert, step.victim) == (5, 2) and type(step.victim) is int
    assert cache.resident == {1, 5}


# ---------------------------------------------------------------------- why
class Asking(Policy):
    """Another policy, asked for its scores before every victim."""

    def __init__(self, policy):
        super().__init__(policy.experts)
        self.policy, self.asked = policy, []
        self.observe, self.admit, self.evict = policy.observe, policy.admit, policy.evict

    def victim(self, candidates, newcomer):
        scores = self.policy.scores(list(candidates))
        answer = self.policy.victim(candidates, newcomer)
        self.asked.append((list(candidates), scores, answer))
        return answer


@few
@given(name=st.sampled_from(list(POLICIES)), slots=st.integers(1, E), history=histories)
def test_the_lowest_score_goes_and_asking_changes_nothing(name, slots, history):
    plain, asked = LayerCache(make_policy(name, E), slots), LayerCache(make_policy(name, E), slots)
    measures = asked.policy.measures
    asked.policy = Asking(asked.policy)
    for event in history:
        assert happen(plain, event) == happen(asked, event)
    for candidates, scores, answer in asked.policy.asked:
        assert list(scores) == (candidates if measures else [])
        assert all(len(score) == len(measures) for score in scores.values())
        if measures:
            assert answer == min(scores, key=lambda expert: (scores[expert], expert))


def test_scores_in_numbers():
    """Experts 0, 1, 2 came in this order; 0 was used once more, then 1."""
    told = {}
    for name in POLICIES:
        cache = LayerCache(make_policy(name, E), 3)
        for expert in (0, 1, 2, 0, 1):
            cache.access([expert])
        told[name] = cache.policy.scores([0, 1, 2])
    assert told["lru"] == {0: (3,), 1: (4,), 2: (2,)}
    assert told["lfu"] == {0: (2, 3), 1: (2, 4), 2: (1, 2)}
    assert told["fifo"] == {0: (0,), 1: (1,), 2: (2,)}
    assert told["random"] == told["none"] == {}
