"""Caches and routing written again from the words of the specification, for comparison.

Nothing of moe_colab helps to compute what is expected.
"""

from __future__ import annotations

import random
from collections import Counter

from moe_colab.cache.policies import Policy


class RouterAverage(Policy):
    """A user's own policy: a moving average of the router's logits; nobody better-liked leaves for
    a worse one."""

    needs_logits = True

    def __init__(self, experts):
        super().__init__(experts)
        self.score = [0.0] * experts

    def observe(self, used, tokens=None):
        for _, logits in tokens:
            self.score = [0.9 * s + 0.1 * x for s, x in zip(self.score, logits, strict=True)]

    def victim(self, candidates, newcomer):
        return min([*candidates, newcomer], key=self.score.__getitem__)


class NaiveCache:
    """The documented rules in lists, without a thought for speed. `rank(expert)` of the lowest
    goes."""

    def __init__(self, slots: int):
        self.slots, self.resident = slots, []  # in the order of arrival
        self.uses = []  # every use there was

    def leaver(self, candidates):
        return sorted(candidates, key=self.rank)[0]

    def access(self, needed, tokens):
        self.uses += needed
        hits = [(e, True, None, True) for e in needed if e in self.resident]
        misses = [e for e in needed if e not in self.resident]
        return hits + [self.bring(e, needed) for e in misses]

    def bring(self, expert, needed):
        gone = None
        if len(self.resident) == self.slots:
            candidates = sorted(e for e in self.resident if e not in needed)
            gone = self.leaver(candidates or sorted(self.resident))
            self.resident.remove(gone)
        self.resident.append(expert)
        return (expert, False, gone, True)

    def reconcile(self, present):
        self.resident = [e for e in self.resident if e in present]
        self.resident += [e for e in present if e not in self.resident]

    def last_use(self, expert):
        return max((time for time, e in enumerate(self.uses) if e == expert), default=-1)


class NaiveLRU(NaiveCache):
    rank = NaiveCache.last_use


class NaiveLFU(NaiveCache):
    def rank(self, expert):
        return self.uses.count(expert), self.last_use(expert)


class NaiveFIFO(NaiveCache):
    def rank(self, expert):
        return self.resident.index(expert)


class NaiveRandom(NaiveCache):
    def __init__(self, slots):
        super().__init__(slots)
        self.dice = random.Random(0)

    def leaver(self, candidates):
        return self.dice.choice(candidates)


class NaiveNone(NaiveCache):
    """Nobody has a slot: every expert is a miss that is not kept."""

    def __init__(self, slots):
        super().__init__(0)

    def bring(self, expert, needed):
        return (expert, False, None, False)


NAIVE = {
    "lru": NaiveLRU,
    "lfu": NaiveLFU,
    "fifo": NaiveFIFO,
    "random": NaiveRandom,
    "none": NaiveNone,
}


class NaiveLayer:
    """One layer's slots. A forward needs a set of experts: who is there is a hit, the others are
    loaded one by one in ascending order, each in place of somebody not needed now, or, if all are,
    of somebody."""

    def __init__(self, policy: str, slots: int, layer: int):
        self.policy, self.slots = policy, slots
        self.inside, self.log, self.entered = [], [], []
        self.dice = random.Random(layer)
        self.count = Counter()

    def forward(self, needed: list[int]) -> None:
        self.log += needed
        self.count["accesses"] += len(needed)
        missing = [e for e in needed if e not in self.inside]
        self.count["hits"] += len(needed) - len(missing)
        self.count["loads"] += len(missing)
        for expert in missing:
            if self.policy == "none":
                continue
            if len(self.inside) == self.slots:
                others = [e for e in self.inside if e not in needed] or self.inside
                leaver = self.pick(sorted(others))
                self.inside.remove(leaver)
                self.count["evictions"] += 1
            self.inside.append(expert)
            self.entered.append(expert)

    def pick(self, candidates: list[int]) -> int:
        def last(log, expert):
            return len(log) - 1 - log[::-1].index(expert) if expert in log else -1

        if self.policy == "random":
            return self.dice.choice(candidates)
        if self.policy == "fifo":
            return min(candidates, key=lambda e: last(self.entered, e))
        if self.policy == "lfu":
            return min(candidates, key=lambda e: (self.log.count(e), last(self.log, e)))
        return min(candidates, key=lambda e: last(self.log, e))


def plain_routing(model, run) -> list[list[list[int]]]:
    """Per layer, per forward: the distinct experts that the plain model's experts modules were
    given."""
    routing, handles = [], []
    for name, module in model.named_modules():
        if name.endswith(".experts"):
            layer = []
            routing.append(layer)
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, args, layer=layer: layer.append(
                        sorted(set(args[1].flatten().tolist()))
                    )
                )
            )
    run(model)
    for handle in handles:
        handle.remove()
    return routing
