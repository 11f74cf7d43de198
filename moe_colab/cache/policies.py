"""Eviction policies: which expert leaves a layer's slots.

Knows expert ids and router logits; knows no slots, no bytes, no devices and no torch.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import MoEColabError

Tokens = Sequence[tuple[Sequence[int], Sequence[float]]]
"""One (top-k expert ids, router logits over all experts) pair per token of a forward."""


class Policy(ABC):
    """Chooses which expert leaves one layer's slots. Subclass it, override `victim`, and pass the
    class to `mc.load(policy=...)`.

    One instance serves one layer. Every forward calls `observe` when the router has chosen, then
    for each missing expert `victim` (only when the slots are full), `evict`, `admit`.
    """

    experts = 0
    """The number of experts of the layer."""
    needs_logits = False
    """Set True to receive `tokens` in `observe`. This copies the router's logits to the host."""
    keeps_nothing = False
    """Set True if no expert is kept after its use."""
    measures: tuple[str, ...] = ()
    """Names of the numbers in a score; () for a policy without scores."""

    def __init__(self, experts: int):
        self.experts = experts

    def observe(self, used: Sequence[int], tokens: Tokens | None = None) -> None:
        """Receive the distinct experts that this forward needs, ascending. tokens: in token order
        if `needs_logits`, else None."""

    def admit(self, expert: int) -> None:
        """`expert` was given a slot."""

    def evict(self, expert: int) -> None:
        """`expert` lost its slot."""

    @abstractmethod
    def victim(self, candidates: Sequence[int], newcomer: int) -> int:
        """Choose the expert that leaves to make room for `newcomer`: one of `candidates`
        (ascending). Return `newcomer` to *bypass* the cache: it is then computed from a spare
        block, and no expert leaves."""

    def scores(self, candidates: Sequence[int]) -> dict[int, tuple[float, ...]]:
        """The numbers by which `victim` compares the candidates, most important first; the
        candidate with the lowest score leaves. Views call it before `victim`; it must change
        nothing. {}: this policy has no scores."""
        return {}


class ScoredPolicy(Policy):
    """A policy that evicts the candidate with the lowest score."""

    @abstractmethod
    def score(self, expert: int) -> tuple[float, ...]:
        """The numbers of `measures` for one expert."""

    def victim(self, candidates, newcomer):
        return min(candidates, key=self.score)

    def scores(self, candidates):
        return {expert: self.score(expert) for expert in candidates}


class LRU(ScoredPolicy):
    """Evicts the least recently used expert. Experts of the same forward count as used in
    ascending order."""

    measures = ("last use",)

    def __init__(self, experts: int):
        super().__init__(experts)
        self.last_use = [-1] * experts
        self.clock = 0

    def observe(self, used, tokens=None):
        for expert in used:
            self.last_use[expert] = self.clock
            self.clock += 1

    def score(self, expert):
        return (self.last_use[expert],)


class LFU(LRU):
    """Evicts the expert used least often since the model was loaded; of equals, the least
    recently used."""

    measures = ("uses", "last use")

    def __init__(self, experts: int):
        super().__init__(experts)
        self.uses = [0] * experts

    def observe(self, used, tokens=None):
        super().observe(used)
        for expert in used:
            self.uses[expert] += 1

    def score(self, expert):
        return (self.uses[expert], self.last_use[expert])


class FIFO(ScoredPolicy):
    """Evicts the expert that was loaded first, however often it was used since."""

    measures = ("arrival",)

    def __init__(self, experts: int):
        super().__init__(experts)
        self.arrival = [0] * experts
        self.clock = 0

    def admit(self, expert):
        self.arrival[expert] = self.clock
        self.clock += 1

    def score(self, expert):
        return (self.arrival[expert],)


class RandomChoice(Policy):
    """Evicts a random candidate. The generator is seeded, so a run can be repeated exactly."""

    def __init__(self, experts: int, seed: int = 0):
        super().__init__(experts)
        self.random = random.Random(seed)

    def victim(self, candidates, newcomer):
        return self.random.choice(candidates)


class KeepNothing(Policy):
    """Loads every expert when it is used and keeps none: the paper's row without a cache."""

    keeps_nothing = True

    def victim(self, candidates, newcomer):
        return newcomer


class PolicyWrapper(Policy):
    """A policy that asks another one. Subclasses override what they change."""

    def __init__(self, policy: Policy):
        super().__init__(policy.experts)
        self.policy = policy
        self.needs_logits, self.keeps_nothing = policy.needs_logits, policy.keeps_nothing
        self.measures = policy.measures

    def observe(self, used, tokens=None):
        self.policy.observe(used, tokens)

    def admit(self, expert):
        self.policy.admit(expert)

    def evict(self, expert):
        self.policy.evict(expert)

    def victim(self, candidates, newcomer):
        return self.policy.victim(candidates, newcomer)

    def scores(self, candidates):
        scores = getattr(self.policy, "scores", None)  # a user's class may have none
        return scores(candidates) if scores else {}


class BypassingPolicy(PolicyWrapper):
    """A policy that may also choose the newcomer, which then bypasses the cache."""

    def victim(self, candidates, newcomer):
        return self.policy.victim(sorted([*candidates, newcomer]), newcomer)


class ForeignPolicy(PolicyWrapper):
    """An object that has the four methods of a policy but does not inherit from Policy. What it
    does not have is taken from Policy's defaults."""

    def __init__(self, policy: Any, experts: int):
        Policy.__init__(self, experts)
        self.policy = policy
        for name in ("needs_logits", "keeps_nothing", "measures"):
            setattr(self, name, getattr(policy, name, getattr(Policy, name)))


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
    """The name of a policy that was given as a name or a class."""
    return spec if isinstance(spec, str) else getattr(spec, "__name__", repr(spec))


def class_name(policy: Policy) -> str:
    """The name of the policy's class, without wrappers."""
    while isinstance(policy, PolicyWrapper):
        policy = policy.policy
    return type(policy).__name__


def make_policy(spec: PolicySpec, experts: int, layer: int = 0) -> Policy:
    """Make one layer's policy. An object that does not inherit from Policy is wrapped, so that it
    has all attributes of one. Raises MoEColabError for an unknown name, or for an object that
    cannot be a policy."""
    if isinstance(spec, str):
        if spec not in POLICIES:
            raise MoEColabError(
                f"unknown policy {spec!r}: choose one of {', '.join(POLICIES)}, or pass a policy "
                "class."
            )
        return RandomChoice(experts, seed=layer) if spec == "random" else POLICIES[spec](experts)
    if not callable(spec) or isinstance(spec, Policy):
        raise MoEColabError(
            f"policy must be a name or a class, not {spec!r}: it is called for every layer, as "
            "policy(number_of_experts)."
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
    return policy if isinstance(policy, Policy) else ForeignPolicy(policy, experts)
