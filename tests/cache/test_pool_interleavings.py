"""Every interleaving of small pools: whatever the link does and whenever, the pool stays right.

The link below moves nothing by itself. Each time the pool asks it something, a driver picks the
answer: has the load ended, had it begun when it was to be called back, does it fail, does Ctrl-C
come. A depth-first search over these picks runs a program under every possible link; the picks are
made where they are seen, so that two runs differ only if the pool could see a difference.

The second half seeds bugs into the pool and demands that the search finds each.
"""

from __future__ import annotations

import inspect
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from census import census

from moe_colab.cache import pool
from moe_colab.cache.layer_cache import LayerCache
from moe_colab.cache.links import CANCELLED, DONE, FAILED, QUEUED
from moe_colab.cache.policies import LRU, KeepNothing, Policy
from moe_colab.cache.pool import Pool
from moe_colab.cache.spares import Slot, Spares
from moe_colab.errors import MoEColabError

LAYERS, EXPERTS, NBYTES, PART = 2, 3, 10, 4


# ---------------------------------------------------------------------- the search
class Driver:
    """Answers the questions of one run: first the given answers, then always 0."""

    def __init__(self, answers: list[int]):
        self.given, self.answers, self.options = answers, [], []

    def pick(self, options: int) -> int:
        asked = len(self.answers)
        self.answers.append(self.given[asked] if asked < len(self.given) else 0)
        self.options.append(options)
        return self.answers[-1]

    def siblings(self):
        """The runs that part from this one at an answer that was not given."""
        for asked in range(len(self.given), len(self.answers)):
            for other in range(1, self.options[asked]):
                yield [*self.answers[:asked], other]


def explore(scenario: Scenario, limit: int = 100_000) -> int:
    """Run the scenario under every link there is; the number of runs. Raises what the first wrong
    run raises."""
    todo, runs = [[]], 0
    while todo:
        assert runs < limit, f"{scenario.name} is too large to be explored"
        driver = Driver(todo.pop())
        try:
            World(scenario, driver).run()
        except BaseException as error:
            error.add_note(f"run {runs} of {scenario.name!r}, answers {driver.answers}")
            raise
        todo += driver.siblings()
        runs += 1
    return runs


# ---------------------------------------------------------------------- what is explored
@dataclass(frozen=True)
class Guess:
    layer: int
    experts: tuple[int, ...]

    @property
    def ranked(self) -> list[tuple[int, float]]:
        return [(expert, 1.0) for expert in self.experts]


@dataclass(frozen=True)
class Use:
    layer: int
    needed: tuple[int, ...]
    guess: Guess | None = None  # made while the first expert is being computed
    ahead: tuple[Guess, ...] = ()  # made behind the loads of this use


@dataclass(frozen=True)
class Scenario:
    """A program, the pool it runs on, and how much may go wrong in one run."""

    name: str
    program: tuple[Guess | Use, ...]
    slots: tuple[int, int] = (1, 1)
    spares: int = 1
    policy: type[Policy] = LRU
    failures: int = 0  # loads that end without their bytes
    refusals: int = 0  # loads that the link cannot even start
    interrupts: int = 0  # Ctrl-C while the pool waits
    leaves: tuple[str, ...] = ()  # how a use may end early, once a run

    @property
    def hazards(self) -> bool:
        return bool(self.failures or self.refusals or self.interrupts or self.leaves)


class LoadFailed(MoEColabError):
    """What a failing load raises: its home, and its ticket if it was ever started."""


@dataclass(frozen=True, eq=False)
class Home:
    layer: int
    expert: int
    tier: str = "disk"
    nbytes: int = NBYTES


class Whim(Policy):
    """The driver picks who goes, so that whatever holds here holds for every policy."""

    world: World

    def victim(self, candidates, newcomer):
        choices = [*candidates, newcomer] if self.world.scenario.spares else candidates
        return choices[self.world.pick(len(choices))]


class Ticket:
    """A load whose fate is picked when it is asked for."""

    def __init__(self, world: World, home: Home, block: str, guess: bool):
        self.world, self.home, self.block, self.guess = world, home, block, guess
        self.state, self.used, self.moved = QUEUED, False, 0

    @property
    def under_way(self) -> bool:
        return self.state == QUEUED

    def done(self) -> bool:
        if self.under_way and self.world.pick(2):
            self.end(DONE)
        return self.state == DONE

    def failed(self) -> bool:
        if self.under_way and self.world.left_to_go_wrong("failures"):
            self.end(FAILED)
        return self.state in (FAILED, CANCELLED)

    def cancel(self) -> bool:
        if not self.under_way:
            return False
        self.moved = PART * self.world.pick(2)
        self.end(CANCELLED)
        return True

    def promote(self) -> None:
        """Any order of loads is explored anyway."""

    def wait(self, counters=None) -> None:
        if self.under_way and self.world.left_to_go_wrong("interrupts"):
            raise KeyboardInterrupt
        if self.under_way:
            self.end(FAILED if self.world.left_to_go_wrong("failures") else DONE)
        if self.state != DONE:
            raise LoadFailed(self.home, self)

    def end(self, state: str) -> None:
        self.state = state
        if state == DONE:
            self.moved = NBYTES
            self.world.memory[self.block] = self


class PickedLink:
    """Checks what is asked of it, and lets the driver decide the rest."""

    def __init__(self, world: World):
        self.world, self.tickets, self.closed = world, [], False

    def start(self, home: Home, block: str, after: int | None, urgent: bool) -> Ticket:
        world = self.world
        assert not self.closed, "a load after close"
        assert all(t.block != block for t in self.tickets if t.under_way), "a block moves twice"
        assert block not in world.in_use.values(), "a load into a block that is being used"
        used, waits = world.last_use.get(block, -1), -1 if after is None else after
        assert used <= waits, "a load that does not wait for the block's last use"
        assert home.expert not in world.pool.table[home.layer], "it is there or under way already"
        assert not urgent or home not in world.demanded, "loaded twice for one use"
        if world.left_to_go_wrong("refusals"):
            raise LoadFailed(home, None)
        world.demanded |= {home} if urgent else set()
        world.memory.pop(block, None)
        ticket = Ticket(world, home, block, guess=not urgent)
        self.tickets.append(ticket)
        return ticket

    def mark(self) -> int:
        self.world.time += 1
        return self.world.time

    def close(self) -> None:
        self.closed = True
        for ticket in self.tickets:
            if ticket.under_way:
                ticket.cancel()


# ---------------------------------------------------------------------- one run
class World:
    """One pool, one link, one program; knows at any time what must be where."""

    def __init__(self, scenario: Scenario, driver: Driver):
        self.scenario, self.driver = scenario, driver
        self.budget = {
            kind: getattr(scenario, kind) for kind in ("failures", "refusals", "interrupts")
        }
        self.leaves = 1 if scenario.leaves else 0
        self.calm = False  # nothing happens by itself, as while the test looks
        self.time = 0
        self.memory: dict[str, Ticket] = {}  # block: the load whose bytes are in it
        self.last_use: dict[str, int] = {}
        self.in_use: dict[int, str] = {}  # layer: the block that is being used
        self.asked: set[int] = set()  # of the pool, by the running use
        self.demanded: set[Home] = set()  # loads of the running use
        self.suspended: list[Iterator] = []  # uses that nobody goes on with
        self.link = PickedLink(self)
        self.blocks = [[f"slot {x}.{i}" for i in range(n)] for x, n in enumerate(scenario.slots)]
        self.spares = [f"spare {i}" for i in range(scenario.spares)]
        self.pool = self.make_pool()

    def make_pool(self) -> Pool:
        homes = [[Home(layer, expert) for expert in range(EXPERTS)] for layer in range(LAYERS)]
        caches = [
            LayerCache(self.make_policy(layer), n) for layer, n in enumerate(self.scenario.slots)
        ]
        return Pool(self.link, homes, self.blocks, caches, {NBYTES: self.spares})

    def make_policy(self, layer: int) -> Policy:
        policy = self.scenario.policy(EXPERTS)
        choose, policy.world = policy.victim, self

        def victim(candidates, newcomer):
            self.check_candidates(self.pool.caches[layer].resident, set(candidates))
            return choose(candidates, newcomer)

        policy.victim = victim
        return policy

    def pick(self, options: int) -> int:
        return 0 if self.calm else self.driver.pick(options)

    def left_to_go_wrong(self, kind: str) -> bool:
        """Does it go wrong here? Picked, as long as this run has not seen enough of it."""
        wrong = self.budget[kind] > 0 and self.pick(2) == 1
        self.budget[kind] -= wrong
        return wrong

    # ------------------------------------------------------------------ the program
    def run(self) -> None:
        for step in self.scenario.program:
            self.guess(step) if isinstance(step, Guess) else self.use(step)
            self.check()
            self.check_census()
        self.epilogue()

    def guess(self, step: Guess) -> None:
        self.pool.guess(step.layer, step.ranked)

    def use(self, step: Use) -> None:
        self.asked, self.demanded = set(step.needed), set()
        failed_before = [ticket for ticket in self.link.tickets if ticket.failed()]
        seen: list[int] = []
        ahead = [(guess.layer, guess.ranked) for guess in step.ahead]
        use = self.pool.experts(step.layer, step.needed, None, ahead)
        try:
            left = self.consume(use, step, seen)
        except LoadFailed as error:
            assert self.budget["failures"] + self.budget["refusals"] < (
                self.scenario.failures + self.scenario.refusals
            )
            home, ticket = error.args
            assert home.layer == step.layer and home.expert in step.needed, "not its failure"
            assert ticket not in failed_before, "a guess had failed before it was needed"
        except KeyboardInterrupt:
            assert self.budget["interrupts"] < self.scenario.interrupts
        except MoEColabError as error:
            assert self.pool.closed and "closed" in str(error)
        else:
            assert left or sorted(seen) == list(step.needed)
        finally:
            self.in_use.pop(step.layer, None)

    def consume(self, use, step: Use, seen: list[int]) -> bool:
        """Use each expert; True if the use was left early."""
        for expert, block in use:
            assert expert in step.needed and expert not in seen
            seen.append(expert)
            self.compute(step, expert, block, first=len(seen) == 1)
            way = self.pick(1 + len(self.scenario.leaves)) if self.leaves else 0
            if way:
                self.leaves -= 1
                self.leave(use, step, self.scenario.leaves[way - 1])
                return True
            self.in_use.pop(step.layer)
        return False

    def compute(self, step: Use, expert: int, block: str, first: bool) -> None:
        """What a layer does with a block: read it, from here until it asks for the next."""
        assert not self.pool.closed
        self.in_use[step.layer] = block
        self.assert_holds(block, step.layer, expert)
        self.memory[block].used = True
        self.time += 1
        self.last_use[block] = self.time
        self.check()
        if first and step.guess is not None:
            self.guess(step.guess)
        if self.suspended and self.pick(2):  # Python collects an old use
            self.suspended.pop().close()
        self.assert_holds(block, step.layer, expert)

    def leave(self, use, step: Use, way: str) -> None:
        if way == "stop":  # an error in the caller, or Ctrl-C while it computes
            use.close()
        elif way == "forget":  # and nobody tells the pool
            self.suspended.append(use)
        elif way == "close":  # the model is closed by what it computes
            self.in_use.pop(step.layer)
            self.pool.close()
            with pytest.raises(MoEColabError, match="closed"):
                next(use)
        self.in_use.pop(step.layer, None)

    def epilogue(self) -> None:
        """Nothing goes wrong any more: everything must work, and the books must balance."""
        self.calm = True
        for ticket in self.link.tickets:
            if ticket.under_way:
                ticket.end(DONE)
        if not self.pool.closed:
            for layer in range(LAYERS):
                self.use(Use(layer, tuple(range(EXPERTS))))
            assert not self.pool.unfinished
            self.check()
        for use in self.suspended:
            use.close()
            self.check()
        self.pool.close()
        self.check_books()
        for layer in range(LAYERS):
            self.pool.guess(layer, [0, 1, 2])
            with pytest.raises(MoEColabError, match="closed"):
                next(self.pool.experts(layer, [0]))

    # ------------------------------------------------------------------ what must hold
    def assert_holds(self, block: str, layer: int, expert: int) -> None:
        ticket = self.memory.get(block)
        assert ticket is not None, f"{block} was handed out before its bytes were there"
        assert (ticket.home.layer, ticket.home.expert) == (layer, expert), "wrong bytes"

    def check(self) -> None:
        """What holds at any time, and what holds of a layer that no use has left open."""
        before, self.calm = self.calm, True
        self.check_blocks()
        for layer in range(LAYERS):
            if layer not in self.in_use and layer not in self.pool.unfinished:
                self.check_layer(layer)
        self.calm = before

    def check_blocks(self) -> None:
        """Every block is in one place, and only a block in the table is moved into."""
        table = [slot for layer in self.pool.table for slot in layer.values()]
        table += self.pool.spares.guesses.values()
        free = [block for layer in self.pool.free for block, _ in layer]
        spare = [block for block, _ in self.pool.spares.available(NBYTES)]
        every = [] if self.pool.closed else [*sum(self.blocks, []), *self.spares]
        assert Counter([slot.block for slot in table] + free + spare) == Counter(every)
        if not self.pool.closed:
            lent = sum(slot.spare for slot in table)
            assert len(spare) + lent == len(self.spares), "a layer keeps what is not its own"
        moving = [ticket for ticket in self.link.tickets if ticket.under_way]
        assert all(any(slot.ticket is ticket for slot in table) for ticket in moving)

    def check_census(self) -> None:
        before, self.calm = self.calm, True
        counts = census(self.pool)
        blocks = 0 if self.pool.closed else len(sum(self.blocks, self.spares))
        assert counts["ready"] + counts["loading"] + counts["free"] == blocks
        assert counts["home_disk"] == LAYERS * EXPERTS
        self.calm = before

    def check_layer(self, layer: int) -> None:
        """The cache and the table tell the same, and what is ready holds its own bytes."""
        table, residents = self.pool.table[layer], self.pool.caches[layer].resident
        assert len(residents) <= self.scenario.slots[layer]
        if not self.pool.closed:
            assert residents == set(table)
        for expert in range(EXPERTS):
            place = self.pool.where(layer, expert)
            guess = self.pool.spares.guesses.get((layer, expert))
            slot = table.get(expert) or guess
            assert not (expert in table and guess), "it is there twice"
            assert place.home == "disk"
            assert (place.slot == "absent") == (slot is None)
            if place.slot == "ready":
                self.assert_holds(slot.block, layer, expert)

    def check_candidates(self, residents: set[int], candidates: set[int]) -> None:
        """Who may be asked to leave."""
        spared = self.asked
        assert candidates <= residents
        assert candidates.isdisjoint(spared) or residents <= spared, "a needed one would leave"

    def check_books(self) -> None:
        """After close, what was counted is what the link has done."""
        total = self.pool.tracker.stats().total
        arrived = [ticket for ticket in self.link.tickets if ticket.state == DONE]
        unused = [ticket for ticket in arrived if ticket.guess and not ticket.used]
        assert total.accesses == total.hits + total.speculative_hits + total.late + total.misses
        if not self.scenario.hazards:
            asked_now = [ticket for ticket in self.link.tickets if not ticket.guess]
            assert total.misses == len(asked_now), "a miss is a load issued when it is needed"
        assert total.loads == len(arrived)
        called_back = [ticket for ticket in self.link.tickets if ticket.state == CANCELLED]
        moved = sum(ticket.moved for ticket in arrived + called_back)
        assert total.bytes_loaded == total.disk_bytes == moved
        assert total.bytes_wasted == sum(
            ticket.moved for ticket in unused + called_back if ticket.guess
        )


# ---------------------------------------------------------------------- what is explored
WHILE_COMPUTING = (
    Use(0, (0, 1), guess=Guess(1, (2,))),
    Use(1, (0, 1), guess=Guess(0, (2,))),
    Use(0, (1, 2)),
)
BEFORE = (Guess(0, (2,)), Guess(1, (0, 1)), Use(0, (0, 1)), Use(1, (1, 2)))
AGAIN = (Use(0, (0, 1, 2)), Guess(0, (2, 0)), Guess(0, (2,)), Use(0, (1, 2)))
AHEAD = (
    Use(0, (0, 1), ahead=(Guess(1, (1, 2)),)),
    Use(1, (0, 2), ahead=(Guess(0, (2,)),)),
    Use(0, (1, 2)),
)
CHANGED = (  # a guess gives way to a later one, and is wrong in the end
    Guess(1, (0, 1)),
    Use(0, (0, 2), ahead=(Guess(1, (1, 2)), Guess(0, (1,)))),
    Use(1, (0, 2), ahead=(Guess(0, (1, 0)),)),
    Use(0, (0, 1)),
    Use(1, (1,)),
)
WAVES = (Guess(0, (2, 1)), Use(0, (0, 1, 2), guess=Guess(1, (0, 1))), Use(1, (0, 2)))

POOLS = [  # program, slots of each layer, spares
    *((AGAIN, (slots, 1), 1) for slots in (1, 2)),
    *((program, (1, 1), spares) for program in (WHILE_COMPUTING, BEFORE) for spares in (0, 1)),
    (BEFORE, (2, 1), 1),
    *((program, (2, 2), 0) for program in (WHILE_COMPUTING, BEFORE)),
    *((WAVES, (1, 1), spares) for spares in (0, 1, 2)),
    *((WAVES, (2, 1), spares) for spares in (0, 1)),
    *((AHEAD, (slots, 1), spares) for slots in (1, 2) for spares in (1, 2)),
    *((AHEAD, (2, 2), spares) for spares in (1, 2)),
    *((CHANGED, slots, 1) for slots in ((1, 1), (2, 2))),
]
WIDE = [  # for which there is time now and then
    *((CHANGED, slots, 2) for slots in ((1, 1), (2, 2))),
    *((program, (2, 2), 2) for program in (WHILE_COMPUTING, BEFORE, WAVES)),
]
LEFT = {"leaves": ("stop", "forget", "close")}
HAZARDS = {  # what goes wrong once in a run, wherever it can; the fewest runs that must come of it
    "nothing": ({}, 450),
    "a load fails": ({"failures": 1}, 3_000),
    "a load is refused": ({"refusals": 1}, 2_400),
    "Ctrl-C": ({"interrupts": 1}, 2_500),
    "a use is left": (LEFT, 13_000),
}


def scenarios(policy: type[Policy], pools=POOLS, **hazard) -> list[Scenario]:
    return [
        Scenario(f"{policy.__name__}, pool {number}, {hazard}", *pool, policy, **hazard)
        for number, pool in enumerate(pools)
    ]


def check(policy: type[Policy], kinds: dict, fewest: int, pools=POOLS) -> None:
    runs = sum(explore(scenario) for scenario in scenarios(policy, pools, **kinds))
    print(f"{policy.__name__}, {kinds}: {runs} interleavings")
    assert runs >= fewest, "the search has become smaller than it was meant to be"


@pytest.mark.slow
@pytest.mark.parametrize("hazard", HAZARDS)
def test_the_pool_stays_right_for_any_policy_and_whatever_the_link_does(hazard):
    check(Whim, *HAZARDS[hazard])


@pytest.mark.full
@pytest.mark.parametrize("hazard", HAZARDS)
def test_the_pool_stays_right_in_wider_pools(hazard):
    check(Whim, *HAZARDS[hazard], WIDE)


MORE = {
    "Ctrl-C twice": (LRU, {"interrupts": 2}, 800),
    "a failure and a use that is left": (KeepNothing, {"failures": 1, **LEFT}, 7_000),
    "Ctrl-C twice and a refusal": (KeepNothing, {"interrupts": 2, "refusals": 1}, 3_500),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE)
def test_the_pool_stays_right_when_more_than_one_thing_goes_wrong(case):
    check(*MORE[case], POOLS[:-2])


@pytest.mark.full
def test_the_pool_stays_right_when_a_load_fails_and_a_use_is_left():
    check(LRU, {"failures": 1, **LEFT}, 13_000)


# ---------------------------------------------------------------------- seeded bugs
SEEDED = {  # the bug: with which hazard, where, the text that is right, the text that is wrong
    "a needed expert may be chosen to leave": (
        "nothing",
        *(LayerCache, "_admit"),
        *("self.resident - spared or self.resident", "self.resident"),
    ),
    "a needed expert is overwritten before its use": (
        "nothing",
        *(Pool, "_start_all"),
        *("decision.victim in unused or ", ""),
    ),
    "a block is handed out before its bytes are there": (
        "nothing",
        *(Pool, "_await"),
        *("slot.ticket.wait(counters)", "None"),
    ),
    "a wrong guess is not called back": (
        "nothing",
        *(Spares, "drop"),
        *("slot.ticket.cancel()", "None"),
    ),
    "a block forgets whom it waits for when its guess is called back": (
        "nothing",
        *(Spares, "drop"),
        *("slot.after)", "None)"),
    ),
    "a layer gives no block for the one that a guess has brought": (
        "nothing",
        *(Pool, "_start"),
        *("if keep:", "if False:"),
    ),
    "a guess does not wait for its turn": (
        "nothing",
        *(Pool, "_guesses_first"),
        *("if any(decision.victim in needed for decision in decisions):", "if False:"),
    ),
    "a guess holds the room of a load whose turn comes before": (
        "nothing",
        *(Pool, "_guesses_first"),
        *("self.spares.drop(layer, expert)", "None"),
    ),
    "a guess never gives way": (
        "nothing",
        *(Pool, "_has_block"),
        *(" or self.spares.drop_last(nbytes)", ""),
    ),
    "a scratch block is given back while it is moved into": (
        "a use is left",
        *(Pool, "_repair"),
        *("slot.ticket.wait()", "None"),
    ),
    "a scratch copy is never given back": (
        "nothing",
        *(Pool, "experts"),
        *("if not slot.keep:", "if False:"),
    ),
    "a load does not wait until compute has left the block": (
        "nothing",
        *(Pool, "_drop"),
        *("self.link.mark()", "None"),
    ),
    "a block is lost when a load cannot be started": (
        "a load is refused",
        *(pool, "start"),
        *("blocks.popleft()", "None"),
        *("block, after = blocks[0]", "block, after = blocks.popleft()"),
    ),
    "a block is lost when a load fails": (
        "a load fails",
        *(Pool, "_repair"),
        *("self._drop(layer, expert)", "self.table[layer].pop(expert)"),
    ),
    "the cache is not told of a failure": (
        "a load fails",
        *(Pool, "_repair"),
        *("self.caches[layer].reconcile(self.table[layer])", "None"),
    ),
    "a failed guess is not discarded before its demand": (
        "a load fails",
        *(Spares, "resolve_guesses"),
        *(" or ticket.failed()", ""),
    ),
    "an expert is loaded twice": (
        "nothing",
        *(Pool, "_start_all"),
        *("to_load.popleft()", "to_load[0]"),
    ),
    "a guess loads what is there already": (
        "nothing",
        *(Pool, "guess"),
        *(" if not any(guess[0] in some for some in there)", ""),
    ),
    "a use that was left keeps its spares": (
        "a use is left",
        *(Pool, "experts"),
        *("for left in list(self.unfinished):", "for left in {layer} & {*self.unfinished}:"),
    ),
    "an old use ends a new one of the same layer": (
        "a use is left",
        *(Pool, "experts"),
        *("if self.unfinished.get(layer) is use:", "if layer in self.unfinished:"),
    ),
    "a use goes on in a closed pool": (
        "a use is left",
        *(Pool, "_check_goes_on"),
        *("self.unfinished.get(layer) is not use", "False"),
    ),
    "an interrupted use is forgotten": (
        "Ctrl-C",
        *(Pool, "experts"),
        *("self._repair(layer)\n", "self.unfinished.pop(layer)\n"),
    ),
    "a wrong guess is no waste": (
        "nothing",
        *(Slot, "uncount"),
        *("if self.guessed:", "if False:"),
    ),
    "a load that never arrived is counted": (
        "a load fails",
        *(Slot, "uncount"),
        *("if self.ticket.failed():", "if False:"),
    ),
    "a late guess is counted as a miss too": (
        "nothing",
        *(Pool, "_count"),
        *(
            "counters.count(list(outcomes.values()))",
            "counters.count(v := list(outcomes.values())); counters.misses += v.count('late')",
        ),
    ),
}


def seed(monkeypatch, owner: Any, method: str, *texts: str) -> None:
    """Put a bug into a method: its text, with the right words replaced by wrong ones."""
    text = textwrap.dedent(inspect.getsource(getattr(owner, method)))
    for right, wrong in zip(texts[::2], texts[1::2], strict=True):
        assert text.count(right) == 1, f"{method} has changed: adapt this seeded bug to it"
        text = text.replace(right, wrong)
    methods: dict = {}
    source = inspect.getmodule(getattr(owner, method))
    exec(text, vars(source), methods)
    monkeypatch.setattr(owner, method, methods[method])


@pytest.mark.parametrize("bug", SEEDED)
def test_the_search_finds_this_seeded_bug(bug, monkeypatch):
    hazard, *change = SEEDED[bug]
    seed(monkeypatch, *change)
    with pytest.raises((AssertionError, MoEColabError, LookupError)):
        for scenario in scenarios(Whim, **HAZARDS[hazard][0]):
            explore(scenario)
