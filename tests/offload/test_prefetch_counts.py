"""What speculation brings, against a simulation written here from the words of the specification.

Its routing and its guesses are computed by the *plain* transformers model, by hooks and by calling
its modules one by one; nothing of moe_colab helps to compute what is expected.

The words. One link moves one chunk at a time: of experts that are needed first, then of guesses,
each in the order of asking. A guess is loaded into a spare, of which there are two; it evicts
nobody. When the router has spoken, a guess that is not needed is called back (what has moved of it,
the chunk under way included, was wasted) and one that is needed is a demand from now on. An access
is a hit (it lies in a slot), a speculative hit (its guess has arrived), late (its guess is under
way) or a miss. One that is not kept runs from a room that is free while it does: a slot, a spare,
or the spare of the latest guess, which is called back. Behind the loads of a layer begin the
guesses for later layers; those made from the layer's output when it has ended.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product

import pytest
import torch
from conftest import TINY_MOE
from families import reference
from naive import NaiveLayer

import moe_colab as mc
from moe_colab.bench.paper import with_compute_times
from moe_colab.cache.clock_link import ClockLink
from moe_colab.cache.policies import LRU
from moe_colab.cache.settings import SOURCES

# All of these are sums of few powers of two: so are all times, and no clock ever rounds.
EXPERT = 589824  # bytes
CHUNK = RATE = 131072  # a chunk moves in one second, an expert in 4.5
# Where a load takes about so many times a layer's compute: the seconds of that.
COMPUTE = {5.5: 0.8125, 2: 2.25, 0.2: 22.5}
SPARES = 2
NOT_KEPT = "runs from a room that is free while it does"
COUNTED = ("accesses", "hits", "speculative_hits", "late", "misses", "evictions")
COUNTED += ("bypasses", "bytes_loaded", "bytes_wasted", "stall_seconds")


# ---------------------------------------------------------------------- the simulation
class Load:
    """The bytes that have `moved`, and whether it is `there`."""

    def __init__(self):
        self.moved, self.there = 0, False


class NaiveLink:
    def __init__(self):
        self.now = 0.0  # what compute has reached
        self.needed, self.guessed = [], []  # loads under way, in the order of asking
        self.moving, self.arrives = None, None  # whose chunk, and when

    def ask(self, queue: list) -> Load:
        load = Load()
        queue.append(load)
        if self.moving is None:
            self.next_chunk(self.now)
        return load

    def next_chunk(self, at: float) -> None:
        self.moving = next(iter(self.needed + self.guessed), None)
        if self.moving is not None:
            size = min(CHUNK, EXPERT - self.moving.moved)
            self.moving.moved += size
            self.arrives = at + size / RATE

    def chunk_arrives(self) -> None:
        for queue in (self.needed, self.guessed):  # in neither, if it was called back
            if self.moving in queue and self.moving.moved == EXPERT:
                queue.remove(self.moving)
                self.moving.there = True
        self.next_chunk(self.arrives)

    def compute(self, seconds: float) -> None:
        self.now += seconds
        while self.moving is not None and self.arrives <= self.now:
            self.chunk_arrives()

    def wait_for(self, load) -> float:
        asked = self.now
        while not load.there:
            self.now = max(self.now, self.arrives)
            self.chunk_arrives()
        return self.now - asked


class Slots(NaiveLayer):
    """The naive cache without guesses, which also tells who makes room for whom."""

    def make_room(self, needed: list[int]) -> dict[int, int | None]:
        """For each expert to be loaded, in order, who leaves for it (None: a slot is free), or that
        it is not kept."""
        self.log += needed
        rooms = {}
        for expert in [expert for expert in needed if expert not in self.inside]:
            full = len(self.inside) == self.slots
            if self.policy == "none" or (self.policy is OddPass and full and expert % 2):
                rooms[expert] = NOT_KEPT
                continue
            rooms[expert] = None
            if full:
                others = [e for e in self.inside if e not in needed] or self.inside
                rooms[expert] = self.pick(sorted(others))
                self.inside.remove(rooms[expert])
            self.inside.append(expert)
            self.entered.append(expert)
        return rooms


class OddPass(LRU):
    """Of the experts with odd numbers none is kept that would cost another one his slot."""

    def victim(self, candidates, newcomer):
        return newcomer if newcomer % 2 else super().victim(candidates, newcomer)


class NaiveSpeculation:
    """A model whose layers compute for so long before the router speaks, and for each expert."""

    def __init__(self, layers: int, policy, slots: int, before: float, each: float):
        self.before, self.each = before, each
        self.link = NaiveLink()
        self.slots = [Slots(policy, slots, layer) for layer in range(layers)]
        self.free = [slots] * layers  # slots with nobody in them
        self.spares = SPARES  # with no guess in them, or anybody else
        self.guesses = {}  # (layer, expert): its load into a spare, the oldest first
        self.loads = []  # all that were ever asked for: (count, load)
        self.counts = {phase: [Counter() for _ in range(layers)] for phase in ("prompt", "decode")}

    def forward(self, phase: str, routing: list[list[int]], source: str, guesses: list) -> None:
        """routing: for each layer the experts needed; guesses: for each layer, what is guessed
        there, [(later layer, experts, the likeliest first)]."""
        counts = self.counts[phase]
        for layer, needed in enumerate(routing):
            self.link.compute(self.before)
            self.settle(layer, needed, counts[layer])
            inside = [*self.slots[layer].inside]
            rooms = self.slots[layer].make_room(needed)
            waves = any(leaver in needed for leaver in rooms.values())
            if waves and NOT_KEPT in rooms.values():
                self.settle(layer, [], counts[layer])  # or one might hold the room of another
            self.judge(layer, needed, inside, counts[layer])
            early = guesses[layer] if source == "router_input" else []
            self.use(layer, needed, rooms, waves, counts, early)
            for later, likely in guesses[layer] if source == "layer_output" else []:
                self.guess(later, likely, counts[later])

    def settle(self, layer: int, needed: list[int], count: Counter) -> None:
        """The router has spoken."""
        for key in [key for key in self.guesses if key[0] == layer]:
            load = self.guesses[key]
            if key[1] not in needed:
                self.call_back(key, count)
            elif not load.there:
                self.link.guessed.remove(load)
                self.link.needed.append(load)

    def judge(self, layer: int, needed: list[int], inside: list[int], count: Counter) -> None:
        count["accesses"] += len(needed)
        for expert in needed:
            load = self.guesses.get((layer, expert))
            if expert in inside:
                count["hits"] += 1
            elif load is None:
                count["misses"] += 1
            else:
                count["speculative_hits" if load.there else "late"] += 1

    def use(
        self, layer: int, needed: list[int], rooms: dict, waves: bool, counts: list, early: list
    ) -> None:
        """Each needed expert once: who is there, then guesses, then who is loaded now; but as it
        comes, if somebody needed must leave (in waves). A load begins when who leaves for it was
        used, or when there is a room for one that is not kept."""
        count = counts[layer]
        count["bypasses"] += sum(leaver == NOT_KEPT for leaver in rooms.values())
        count["evictions"] += sum(leaver not in (None, NOT_KEPT) for leaver in rooms.values())
        asked = sorted(rooms, key=lambda e: not waves and (layer, e) not in self.guesses)
        waiting, loads, given_back = list(asked), {}, {}
        unused = [expert for expert in needed if expert not in rooms] + asked

        def begin_loads():
            while waiting and rooms[waiting[0]] not in unused:
                expert = waiting[0]
                guess = self.guesses.get((layer, expert))
                if rooms[expert] == NOT_KEPT:
                    if not guess and not self.free[layer] and not self.make_spare(counts):
                        return
                    given_back[expert] = "spare" if guess or not self.free[layer] else "slot"
                    self.spares -= given_back[expert] == "spare" and not guess
                    self.free[layer] -= given_back[expert] == "slot"
                else:  # the spare of a guess is swapped for a slot
                    self.free[layer] -= rooms[expert] is None
                    self.spares += guess is not None
                self.guesses.pop((layer, expert), None)
                loads[expert] = guess or self.load(self.link.needed, count)
                waiting.pop(0)

        begin_loads()
        for later, likely in early:
            self.guess(later, likely, counts[later])
        for expert in list(unused):
            begin_loads()
            if expert in loads:
                count["stall_seconds"] += self.link.wait_for(loads[expert])
            self.link.compute(self.each)
            unused.remove(expert)
            self.spares += given_back.get(expert) == "spare"
            self.free[layer] += given_back.get(expert) == "slot"

    def make_spare(self, counts: list) -> bool:
        """Is there a spare, if need be that of the latest guess?"""
        if not self.spares and self.guesses:
            latest = [*self.guesses][-1]
            self.call_back(latest, counts[latest[0]])
        return self.spares > 0

    def guess(self, layer: int, likely: list[int], count: Counter) -> None:
        """As far as there are spares; one that an older guess holds, which now seems less likely
        for this layer, is free too."""
        for expert in likely:
            if expert in self.slots[layer].inside or (layer, expert) in self.guesses:
                continue
            if not self.spares:
                older = [key for key in self.guesses if key[0] == layer and key[1] not in likely]
                if not older:
                    return
                self.call_back(older[0], count)
            self.spares -= 1
            self.guesses[layer, expert] = self.load(self.link.guessed, count)

    def load(self, queue: list, count: Counter) -> Load:
        load = self.link.ask(queue)
        self.loads.append((count, load))
        return load

    def call_back(self, key: tuple[int, int], count: Counter) -> None:
        load = self.guesses.pop(key)
        self.spares += 1
        count["bytes_wasted"] += load.moved
        for queue in (self.link.guessed, self.link.needed):
            if load in queue:
                queue.remove(load)

    def finish(self) -> None:
        """How much has moved of a load is known when nothing moves any more."""
        for count, load in self.loads:
            count["bytes_loaded"] += load.moved


# ---------------------------------------------------------------------- the plain model
def talk(model) -> None:
    """A prompt of two rows and their answers; then one row, from a single token on. Short, for in a
    long prompt a guess finds all experts equally certain: nobody says who comes first."""
    ids = torch.randint(6, 4000, (2, 5), generator=torch.Generator().manual_seed(2))
    for prompt, length in ((ids, 5), (ids[:1, :1], 9)):
        model.generate(prompt, max_new_tokens=length, min_new_tokens=length, do_sample=False)


PHASES = [*["prompt"] + ["decode"] * 4, *["prompt"] + ["decode"] * 8]


@pytest.fixture(scope="module")
def said():
    """What the plain model's routers say in each forward: (the experts needed, by layer; how the
    experts of a later layer rank, by source, layer and later layer)."""
    plain = reference(TINY_MOE, dtype=torch.float32)
    layers = plain.model.layers
    routing, shown, left = ([[] for _ in layers] for _ in range(3))  # by layer, by forward
    handles = []
    for layer, *seen in zip(layers, routing, shown, left, strict=True):
        chosen, entered, ended = (calls.append for calls in seen)
        handles += [
            layer.mlp.experts.register_forward_pre_hook(lambda _, args, note=chosen: note(args[1])),
            layer.post_attention_layernorm.register_forward_pre_hook(
                lambda _, args, note=entered: note(args[0])
            ),
            layer.register_forward_hook(lambda _, args, out, note=ended: note(out)),
        ]
    talk(plain)
    for handle in handles:
        handle.remove()

    def rank(stream, target) -> list[int]:
        """The experts that it would choose for some token, and then the others, each the likelier
        to be needed by any token first."""
        with torch.no_grad():
            logits = target.mlp.gate(target.post_attention_layernorm(stream))[0].double()
        chosen = logits.topk(2).indices.flatten().tolist()
        unneeded = torch.log1p(-logits.softmax(-1)).sum(0).tolist()
        return sorted(range(8), key=lambda expert: (expert not in chosen, unneeded[expert]))

    forwards = []
    for step in range(len(PHASES)):
        needed = [sorted(set(calls[step].flatten().tolist())) for calls in routing]
        ranks = {}
        for at, later in combinations(range(8), 2):
            if later <= at + 2:
                ranks["router_input", at, later] = rank(shown[at][step], layers[later])
                ranks["layer_output", at, later] = rank(left[at][step], layers[later])
        forwards.append((needed, ranks))
    assert all(len(calls) == len(PHASES) for calls in (*routing, *shown, *left))
    return forwards


def simulate(said, load, slots, policy, source, guesses, lookahead) -> NaiveSpeculation:
    naive = NaiveSpeculation(8, policy, slots, COMPUTE[load] / 2, COMPUTE[load] / 4)
    for phase, (needed, ranks) in zip(PHASES, said, strict=True):
        ahead = [
            [
                (later, ranks[source, at, later][:guesses])
                for later in range(at + 1, min(at + lookahead + 1, 8))
            ]
            for at in range(8)
        ]
        naive.forward(phase, needed, source, ahead)
    naive.finish()
    return naive


# ---------------------------------------------------------------------- live, and replayed
@pytest.fixture(scope="module", params=SOURCES)
def loaded(request):
    """The engine's model, and a trace of what it said, with the most guesses that are asked for."""
    model, _ = mc.load(TINY_MOE, dtype=torch.float32, slots=3, progress=False, stand_aside=False)
    with model.offload as handle:
        assert {entry.layout.nbytes for entry in handle.entries} == {EXPERT}
        handle.speculate, handle.lookahead, handle.guess_from = 3, 2, request.param
        talk(model)  # in its first forward it finds the norms, and cannot guess yet
        with mc.record(model) as trace:
            talk(model)
        handle.make_link = lambda _: ClockLink(RATE, CHUNK)
        yield model, trace, request.param


def live(model, load, slots, policy, guesses, lookahead):
    """What the engine counts of the talk, from empty slots; and when it ended."""
    handle = model.offload
    handle.policy, handle.speculate, handle.lookahead = policy, guesses, lookahead
    for number in (8, slots):  # new slots are empty
        handle.slots = number
    with_compute_times(handle.pool, COMPUTE[load] / 2, COMPUTE[load] / 4)
    handle.reset_stats()
    talk(model)
    return handle.stats(), handle.pool.link.now


SETTINGS = [  # times a layer's compute, slots, policy, guesses, layers ahead
    *product(COMPUTE, (4, 6), ["lru"], (1, 2), [1]),
    *((5.5, 2, "fifo", 3, 2), (5.5, 4, "lfu", 2, 2), (2, 1, "lru", 2, 2), (2, 5, "lru", 3, 2)),
    *((2, 3, "random", 2, 1), (2, 6, "lfu", 2, 1), (0.2, 4, "random", 3, 2)),
    *((5.5, 1, "none", 2, 1), (2, 2, "none", 3, 2), (0.2, 4, "none", 2, 2)),
    *(
        (5.5, 4, OddPass, 2, 1),
        (2, 5, OddPass, 3, 2),
        (2, 2, OddPass, 2, 2),
        (0.2, 1, OddPass, 2, 1),
    ),
]


@pytest.mark.parametrize("load, slots, policy, guesses, lookahead", SETTINGS)
def test_engine_and_replay_count_what_the_simulation_counts(
    said, loaded, load, slots, policy, guesses, lookahead
):
    model, trace, source = loaded
    naive = simulate(said, load, slots, policy, source, guesses, lookahead)
    stats, now = live(model, load, slots, policy, guesses, lookahead)
    clock = {"link": RATE, "chunk": CHUNK, "compute": (COMPUTE[load] / 2, COMPUTE[load] / 4)}
    ahead = {"speculate": guesses, "lookahead": lookahead, "guess_from": source}
    replay = mc.replay(trace, policy, slots, **ahead, **clock)

    prompt, decode = naive.counts["prompt"], naive.counts["decode"]
    for mine, engine, replayed in zip(
        (sum(prompt, Counter()), sum(decode, Counter()), *map(Counter.__add__, prompt, decode)),
        (stats.prompt, stats.decode, *stats.layers),
        (replay.prompt, replay.decode, *replay.layers),
        strict=True,
    ):
        expected = {name: mine[name] for name in COUNTED}
        assert {name: getattr(engine, name) for name in COUNTED} == expected
        assert {name: getattr(replayed, name) for name in COUNTED} == expected
    assert now == naive.link.now
    assert stats.speculative_hits + stats.late > 0


def test_the_guesses_of_the_engine_are_those_of_the_plain_model(said, loaded):
    _, trace, source = loaded
    made = {}
    for step, at, later, expert, *_ in trace.guesses.tolist():
        made.setdefault((step, at, later), []).append(expert)
    ranks = {
        (step, at, later): rank[:3]
        for step, (_, all_ranks) in enumerate(said)
        for (kind, at, later), rank in all_ranks.items()
        if kind == source
    }
    assert made == ranks and len(made) == len(PHASES) * (7 + 6)


@pytest.mark.parametrize("source", SOURCES)
def test_these_settings_show_all_that_can_happen(said, source):
    runs = [simulate(said, *setting[:3], source, *setting[3:]) for setting in SETTINGS]
    total = sum(
        (count for run in runs for layers in run.counts.values() for count in layers), Counter()
    )
    assert all(total[name] > 20 for name in COUNTED)
    moved = {load.moved for run in runs for _, load in run.loads}
    assert moved == {0, CHUNK, 2 * CHUNK, 3 * CHUNK, 4 * CHUNK, EXPERT}
