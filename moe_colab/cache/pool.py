"""The pool: where every expert lies, and the only one that moves it.

Knows homes, blocks (slots and spares), links and each layer's residents; asks `cache` who stays,
`governor` how much may be guessed and `links` to move. Knows nothing of what an expert computes,
and no torch: a block is whatever the link can fill.

Only the thread that runs the model enters. A *slot* is ABSENT (not in the table), LOADING (its
ticket is under way) or READY. Weights are read-only: nothing is ever written back, a slot is only
ever a copy of its expert's home. Who stays does not depend on what was guessed: guesses lie in
scratch until the router has asked for them.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import MoEColabError
from .governor import Governor, Ranked
from .homes import Home
from .layer_cache import Decision, LayerCache
from .links import Block, Link
from .policies import Tokens
from .spares import Slot, Spares, start
from .stats import Counters, Ledger

CLOSED = "this model was closed: load it again with mc.load()."


@dataclass(frozen=True, slots=True)
class Place:
    """Where one expert lies: its home for the session ("device", "host", "disk") and its slot
    ("absent", "loading", "ready"). An expert at home on the device is always "ready"."""

    home: str
    slot: str


class Pool:
    """Homes, slots that cache them, and spares.

    homes[layer][expert]; blocks[layer]: that layer's slots; spares: by the bytes of an expert, the
    blocks that all layers with experts of that size share, for guesses and for loads that bypass
    the cache. `permanent[layer]` maps the experts whose home is the device to the blocks that hold
    them already. Without a governor every guess for which there is room is made.
    """

    def __init__(
        self,
        link: Link,
        homes: Sequence[Sequence[Home]],
        blocks: Sequence[Sequence[Block]],
        caches: Sequence[LayerCache],
        spares: Mapping[int, Sequence[Block]] | None = None,
        pinned: Sequence[dict[int, Block]] | None = None,
        ledger: Ledger | None = None,
        governor: Governor | None = None,
    ):
        self.link, self.homes, self.caches, self.governor = link, homes, list(caches), governor
        self.pinned = list(pinned or [{} for _ in homes])
        self.ledger = ledger or Ledger(len(homes))
        self.table: list[dict[int, Slot]] = [{} for _ in homes]
        # Earlier compute may still read the memory that the blocks were made of.
        fresh = link.mark()
        self.free: list[deque[tuple[Block, Any]]] = [
            deque((b, fresh) for b in layer) for layer in blocks
        ]
        self.spares = Spares(link, homes, spares or {}, fresh, governor)
        self.unfinished: dict[int, Any] = {}  # by layer: its use that has not ended yet
        self.guessed: dict[int, Ranked] = {}  # the last word on a layer whose turn is to come
        self.turns = [0] * len(homes)  # how often each layer's router has spoken
        self.closed = False

    # ------------------------------------------------------------------ use
    def experts(
        self,
        layer: int,
        needed: Sequence[int],
        tokens: Tokens | None = None,
        ahead: Sequence[tuple[int, Ranked]] = (),
    ) -> Iterator[tuple[int, Block]]:
        """Yield each needed expert (distinct, ascending) once with the block that holds it:
        residents first, then guesses that were right, then loads, as many of them at once as there
        is room for. Behind these loads begin the guesses for the layers `ahead`. The block is the
        caller's until it asks for the next. Raises MoEColabError where a load fails; the pool stays
        whole. One use at a time: the next one ends it."""
        self.check_open()
        for left in list(self.unfinished):  # it may hold spares
            self._repair(left)
        if layer == 0 and self.governor is not None:
            self.governor.forward(decode=self.ledger.phase == "decode")
        book, pinned, table = self.ledger.layer(layer), self.pinned[layer], self.table[layer]
        self.turns[layer] += 1
        guessed = self.guessed.pop(layer, ())
        if guessed and self.governor is not None:
            self.governor.heard(layer, guessed, needed)
        self.spares.resolve_guesses(layer, needed)
        use = self.unfinished[layer] = object()
        try:
            steps = self.caches[layer].access([e for e in needed if e not in pinned], tokens)
            steps = self._guesses_first(layer, steps)
            self._count(layer, needed, steps, book)
            to_load = deque(step for step in steps if not step.hit)
            unused = {step.expert for step in steps}
            self._start_all(layer, to_load, unused, book)
            for other, ranked in ahead:
                self.guess(other, ranked)
            for expert in needed:
                if expert in pinned:
                    yield expert, pinned[expert]
                    self._check_goes_on(layer, use)
            for step in steps:
                self._start_all(layer, to_load, unused, book)
                slot = table[step.expert]
                self._await(layer, step.expert, slot, book)
                slot.guessed = False
                yield step.expert, slot.block
                self._check_goes_on(layer, use)
                unused.discard(step.expert)
                if not slot.keep:
                    self._drop(layer, step.expert)
            del self.unfinished[layer]
        finally:
            if self.unfinished.get(layer) is use:  # an error, Ctrl-C, or a caller that stopped
                self._repair(layer)

    def guess(self, layer: int, ranked: Ranked, phase: str | None = None) -> None:
        """Begin to load what `layer` may need next. Changes speed, never output: takes only
        spares, and never waits. `phase`: of the forward that this is for, if not this thread's."""
        if self.closed or layer in self.unfinished:
            return
        self.guessed[layer] = ranked
        there = (self.table[layer], self.pinned[layer])
        absent = [guess for guess in ranked if not any(guess[0] in some for some in there)]
        self.spares.guess(layer, absent, self.ledger.layer(layer, phase))

    # ------------------------------------------------------------------ ask
    @property
    def wants_guesses(self) -> bool:
        """False while the governor stands aside: then there is no need to make any."""
        return self.governor is None or self.governor.on

    def lacks_any(self, layer: int) -> bool:
        """Is there an expert of this layer that would have to be loaded?"""
        return len(self.table[layer]) + len(self.pinned[layer]) < len(self.homes[layer])

    def check_open(self) -> None:
        if self.closed:
            raise MoEColabError(CLOSED)

    def where(self, layer: int, expert: int) -> Place:
        if expert in self.pinned[layer]:
            return Place("device", "ready")
        slot = self.table[layer].get(expert) or self.spares.guesses.get((layer, expert))
        state = "absent" if slot is None else "ready" if slot.ticket.done() else "loading"
        return Place(self.homes[layer][expert].tier, state)

    def census(self) -> dict[str, int]:
        """How many experts have each home, and how many blocks are in each state. Each of the two
        sums is constant."""
        out = dict.fromkeys(
            ("home_device", "home_host", "home_disk", "ready", "loading", "free"), 0
        )
        for layer, homes in enumerate(self.homes):
            for expert in range(len(homes)):
                out["home_" + self.where(layer, expert).home] += 1
            out["ready"] += len(self.pinned[layer])
            out["free"] += len(self.free[layer])
        tables = [slot for table in self.table for slot in table.values()]
        for slot in (*tables, *self.spares.guesses.values()):
            out["ready" if slot.ticket.done() else "loading"] += 1
        out["free"] += self.spares.idle()
        return out

    def change_cache(self, layer: int, cache: LayerCache) -> None:
        """Let another policy decide from now on. Who is there stays, unless it keeps nothing."""
        self._repair(layer)
        if cache.slots == 0:
            for expert in list(self.table[layer]):
                self._drop(layer, expert)
        self.caches[layer] = cache
        cache.reconcile(self.table[layer])

    def govern(self, governor: Governor | None) -> None:
        """Let another governor say from now on how much is guessed."""
        self.governor = self.spares.governor = governor

    def close(self) -> None:
        """Stop the link and let go of every block. Use after this raises MoEColabError."""
        self.closed = True
        self.link.close()
        self.unfinished.clear()
        for layer in range(len(self.homes)):
            for expert in list(self.table[layer]):
                self._drop(layer, expert)
            self.free[layer].clear()
            self.pinned[layer].clear()
        self.spares.clear()

    # ------------------------------------------------------------------ move
    def _start_all(
        self, layer: int, to_load: deque[Decision], unused: set[int], book: Counters
    ) -> None:
        """Issue loads, in order, as far as their room is free: a victim that is still to be used
        keeps its slot."""
        while to_load:
            step = to_load[0]
            if step.victim in unused or not (step.keep or self._has_scratch(layer, step.expert)):
                return
            self._start(layer, to_load.popleft(), book)

    def _start(self, layer: int, step: Decision, book: Counters) -> None:
        if step.victim is not None:
            self._drop(layer, step.victim)
            book.evictions += 1
        home, own = self.homes[layer][step.expert], self.free[layer]
        spares, slot = self.spares.room(home.nbytes), self.spares.take(layer, step.expert)
        if slot is None:
            room = own or spares
            slot = start(self.link, home, room, book, True, step.keep, spare=room is spares)
        else:  # it is there, or on its way; for its block the layer gives one of its own
            slot.keep, slot.spare = step.keep, not step.keep
            if step.keep:
                spares.append(own.popleft())
        self.table[layer][step.expert] = slot

    def _has_scratch(self, layer: int, expert: int) -> bool:
        """Is there a block for an expert that will not stay? A guess for a later layer gives
        way."""
        if (layer, expert) in self.spares.guesses or self.free[layer]:
            return True
        nbytes = self.homes[layer][expert].nbytes
        return bool(self.spares.room(nbytes)) or self.spares.give_way(nbytes)

    def _drop(self, layer: int, expert: int) -> None:
        """The expert leaves its block."""
        slot, home = self.table[layer].pop(expert), self.homes[layer][expert]
        slot.uncount()
        room = self.spares.room(home.nbytes) if slot.spare else self.free[layer]
        room.append((slot.block, self.link.mark()))

    def _repair(self, layer: int) -> None:
        """Let what is moving arrive, keep what is whole, and make the cache agree with the table
        again."""
        for expert, slot in list(self.table[layer].items()):
            with contextlib.suppress(Exception):  # it was raised in the generation that needed it
                slot.ticket.wait()
            if slot.ticket.failed() or not slot.keep:
                self._drop(layer, expert)
        self.caches[layer].reconcile(self.table[layer])
        self.unfinished.pop(layer, None)

    def _check_goes_on(self, layer: int, use: object) -> None:
        """Raises MoEColabError where the caller has closed the pool or used it anew meanwhile."""
        if self.unfinished.get(layer) is not use:
            what = "was closed" if self.closed else "was run anew"
            raise MoEColabError(f"this model {what} while one of its layers was at work.")

    def _guesses_first(self, layer: int, steps: list[Decision]) -> list[Decision]:
        """Guesses arrive before what is asked for now; they keep their turn where somebody must be
        used before the next one can be loaded into his slot."""
        guessed, needed = self.spares.guessed(layer), {step.expert for step in steps}
        if any(step.victim in needed for step in steps):
            if any(not (step.hit or step.keep) for step in steps):
                for expert in guessed:  # their turn may come after one that waits for their room
                    self.spares.drop(layer, expert)
            return steps
        return sorted(steps, key=lambda step: 0 if step.hit else 1 if step.expert in guessed else 2)

    # ------------------------------------------------------------------ count
    def _count(
        self, layer: int, needed: Sequence[int], steps: Sequence[Decision], book: Counters
    ) -> None:
        """Each access is exactly one of hit, speculative hit, late and miss, judged when the router
        has spoken."""
        book.accesses += len(needed)
        book.hits += len(needed) - len(steps)  # at home on the device
        outcomes = dict.fromkeys(needed, "hit")
        for step in steps:
            slot = self.spares.guesses.get((layer, step.expert))
            slot = slot or self.table[layer].get(step.expert)
            book.bypasses += not (step.hit or step.keep)
            if slot is None:
                book.misses += 1
                outcomes[step.expert] = "miss"
            elif not slot.guessed:
                book.hits += 1
            elif slot.ticket.done():
                book.speculative_hits += 1
                outcomes[step.expert] = "speculative_hit"
            else:
                book.late += 1
                outcomes[step.expert] = "late"
            if not step.hit and self.governor is not None:
                self.governor.needed(self.homes[layer][step.expert].nbytes)
        if self.ledger.recorder is not None:
            for expert, outcome in outcomes.items():
                nbytes = self.homes[layer][expert].nbytes if outcome == "miss" else 0
                self.ledger.recorder.accessed(layer, expert, outcome, nbytes)

    def _await(self, layer: int, expert: int, slot: Slot, book: Counters) -> None:
        """Until compute may use the slot."""
        before = book.stall_seconds
        slot.ticket.wait(book)
        if self.ledger.recorder is not None:
            self.ledger.recorder.waited(layer, expert, book.stall_seconds - before)
