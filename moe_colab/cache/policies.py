"""Who stays: eviction policies, and which experts live in one layer's slots.

Knows expert ids and router logits. Knows no bytes, no devices and no torch: the pool asks this room
what to do and does it; a replay asks the same room and only counts.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..errors import MoEColabError

Tokens = Sequence[tuple[Sequence[int], Sequence[float]]]
"""One (top-k expert ids, router logits over all experts) pair per token of a forward."""


class Policy(ABC):
    """Decides who leaves one layer's slots. Subclass it, override `victim`, and pass the class to
    `mc.load(policy=...)`.

    One instance serves one layer and is called in this order in every forward: `observe` once the
    router has spoken, then for each missing expert `victim` (only when the slots are full),
    `evict`, `admit`.
    """

    needs_logits = False
    """Set True to receive `tokens` in `observe`; costs a copy of the router's logits to the
    host."""
    keeps_nothing = False
    """Set True and no expert stays after its use."""
    measures: tuple[str, ...] = ()
    """What the numbers of a score are called; a policy without scores has none."""

    def __init__(self, experts: int):
        self.experts = experts

    def observe(self, used: Sequence[int], tokens: Tokens | None = None) -> None:
        """The distinct experts this forward needs, ascending; `tokens` in token order if
        `needs_logits`."""

    def admit(self, expert: int) -> None:
        """`expert` was given a slot."""

    def evict(self, expert: int) -> None:
        """`expert` lost its slot."""

    @abstractmethod
    def victim(self, candidates: Sequence[int], newcomer: int) -> int:
        """Who goes, to make room for `newcomer`: one of `candidates` (ascending). Answering
        `newcomer` itself *bypasses* the cache: that expert is run from a scratch slot and nobody
        leaves."""

    def scores(self, candidates: Sequence[int]) -> dict[int, tuple[float, ...]]:
        """Why `victim` would answer as it does: the numbers by which it compares the candidates,
        the first ones first; the lowest goes. Asked by views, before `victim` and never instead of
        it; must change nothing. {}: this policy does not say."""
        return {}


class LRU(Policy):
    """Least recently used goes. Experts used by the same forward count as used in ascending
    order."""

    measures = ("last use",)

    def __init__(self, experts: int):
        super().__init__(experts)
        self.last_use = [-1] * experts
        self.clock = 0

    def observe(self, used, tokens=None):
        for expert in used:
            self.last_use[expert] = self.clock
            self.clock += 1

    def victim(self, candidates, newcomer):
        return min(candidates, key=self.last_use.__getitem__)

    def scores(self, candidates):
        return {expert: (self.last_use[expert],) for expert in candidates}


class LFU(LRU):
    """Least often used since loading the model goes; of equals, the least recently used."""

    measures = ("uses", "last use")

    def __init__(self, experts: int):
        super().__init__(experts)
        self.uses = [0] * experts

    def observe(self, used, tokens=None):
        super().observe(used)
        for expert in used:
            self.uses[expert] += 1

    def victim(self, candidates, newcomer):
        return min(candidates, key=lambda expert: (self.uses[expert], self.last_use[expert]))

    def scores(self, candidates):
        return {expert: (self.uses[expert], self.last_use[expert]) for expert in candidates}


class FIFO(Policy):
    """The one that came first goes, however often it was used since."""

    measures = ("arrival",)

    def __init__(self, experts: int):
        super().__init__(experts)
        self.arrival = [0] * experts
        self.clock = 0

    def admit(self, expert):
        self.arrival[expert] = self.clock
        self.clock += 1

    def victim(self, candidates, newcomer):
        return min(candidates, key=self.arrival.__getitem__)

    def scores(self, candidates):
        return {expert: (self.arrival[expert],) for expert in candidates}


class RandomChoice(Policy):
    """Any candidate goes, from a seeded generator: a run can be repeated exactly."""

    def __init__(self, experts: int, seed: int = 0):
        super().__init__(experts)
        self.random = random.Random(seed)

    def victim(self, candidates, newcomer):
        return self.random.choice(candidates)


class KeepNothing(Policy):
    """Every expert is loaded when it is used and forgotten after: the paper's row without its
    cache."""

    keeps_nothing = True

    def victim(self, candidates, newcomer):
        return newcomer


POLICIES: dict[str, type[Policy]] = {
    "lru": LRU,
    "lfu": LFU,
    "fifo": FIFO,
    "random": RandomChoice,
    "none": KeepNothing,
}

PolicySpec = str | Callable[[int], Policy]
"""A name of POLICIES, or a class (or any callable) that takes the number of experts and returns a
policy."""


def policy_name(spec: PolicySpec) -> str:
    return spec if isinstance(spec, str) else getattr(spec, "__name__", repr(spec))


def make_policy(spec: PolicySpec, experts: int, layer: int = 0) -> Policy:
    """One layer's policy. Raises MoEColabError for an unknown name or an object that cannot
    serve."""
    if isinstance(spec, str):
        if spec not in POLICIES:
            raise MoEColabError(
                f"unknown policy {spec!r}: choose one of {', '.join(POLICIES)}, or pass a policy "
                "class."
            )
        return RandomChoice(experts, seed=layer) if spec == "random" else POLICIES[spec](experts)
    if not callable(spec) or isinstance(spec, Policy):
        raise MoEColabError(
            f"policy must be a name or a class, not {spec!r}: every layer needs an instance of its "
            "own, made by calling policy(number_of_experts)."
        )
    try:
        policy = spec(experts)
    except TypeError as error:  # a subclass without victim(), or an __init__ of another signature
        raise MoEColabError(
            f"policy {policy_name(spec)} could not be made by calling policy(number_of_experts): "
            f"{error}."
        ) from error
    missing = [
        name
        for name in ("observe", "admit", "evict", "victim")
        if not callable(getattr(policy, name, None))
    ]
    if missing:
        raise MoEColabError(
            f"policy {policy_name(spec)} has no method {', '.join(missing)}: subclass "
            "moe_colab.cache.Policy and override victim(candidates, newcomer)."
        )
    return policy


@dataclass(frozen=True, slots=True)
class Step:
    """What to do for one needed expert: use it where it lies (`hit`), or load it, into the slot of
    `victim` or a free one if there is none, and keep it there (`keep`) or run it from scratch."""

    expert: int
    hit: bool
    victim: int | None = None
    keep: bool = True


class LayerCache:
    """One layer's residents. Decisions only, and deterministic: the same accesses give the same
    steps, whenever the bytes may arrive."""

    def __init__(self, policy: Policy, slots: int):
        self.policy = policy
        self.slots = 0 if getattr(policy, "keeps_nothing", False) else slots
        self.resident: set[int] = set()

    def access(self, needed: Sequence[int], tokens: Tokens | None = None) -> list[Step]:
        """The steps of one forward, in the order of computation: hits ascending, then misses
        ascending.

        needed: the distinct experts of this forward, ascending. A needed expert is evicted only
        when no other is left (a *wave*), and then only after its own step.
        """
        self.policy.observe(list(needed), tokens)  # a copy: the policy may do with it what it likes
        hits = [expert for expert in needed if expert in self.resident]
        misses = [expert for expert in needed if expert not in self.resident]
        return [Step(expert, hit=True) for expert in hits] + [
            self._admit(expert, set(needed)) for expert in misses
        ]

    def reconcile(self, present: Iterable[int]) -> None:
        """After a failure: the residents are `present`, whatever had been decided."""
        present = set(present)
        for expert in sorted(self.resident - present):
            self._leave(expert)
        for expert in sorted(present - self.resident):
            self._enter(expert)

    def _admit(self, expert: int, spared: set[int]) -> Step:
        """Give `expert` a slot; one of `spared` must go only if there is nobody else."""
        victim = None
        if self.slots == 0:
            return Step(expert, hit=False, keep=False)
        if len(self.resident) >= self.slots:
            candidates = sorted(self.resident - spared or self.resident)
            answer = self.policy.victim(list(candidates), expert)
            if answer == expert:
                return Step(expert, hit=False, keep=False)
            if answer not in candidates:
                raise MoEColabError(
                    f"policy {type(self.policy).__name__} answered {answer!r}: victim() must "
                    f"return one of its candidates {candidates} or the newcomer {expert}."
                )
            victim = candidates[candidates.index(answer)]  # ours, whatever type it was told in
            self._leave(victim)
        self._enter(expert)
        return Step(expert, hit=False, victim=victim)

    def _enter(self, expert: int) -> None:
        self.resident.add(expert)
        self.policy.admit(expert)

    def _leave(self, expert: int) -> None:
        self.resident.discard(expert)
        self.policy.evict(expert)
