"""The pool: where every expert lies, and the only one that moves it.

Knows homes, blocks (slots and spares), links and each layer's residents; asks `cache` who stays and
`links` to move. Knows nothing of what an expert computes, and no torch: a block is whatever the
link can fill.

Only the thread that runs the model enters. A *slot* is ABSENT (not in the table), LOADING (its
ticket is under way) or READY. Weights are read-only: nothing is ever written back, a slot is only
ever a copy of its expert's home.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .cache import LayerCache, Step, Tokens
from .counters import Counters, Ledger
from .errors import MoEColabError
from .homes import Home
from .links import Block, Link, Ticket

CLOSED = "this model was closed: load it again with mc.load()."


@dataclass(slots=True)
class Slot:
    """One expert in one block."""

    block: Block
    ticket: Ticket
    book: Counters  # where its load was counted
    guessed: bool = False  # brought by speculation and not used yet
    keep: bool = True  # False: a scratch copy, given back after its use
    spare: bool = False  # the block belongs to the shared spares


@dataclass(frozen=True, slots=True)
class Place:
    """Where one expert lies: its home for the session ("device", "host", "disk") and its slot
    ("absent", "loading", "ready"). An expert at home on the device is always "ready"."""

    home: str
    slot: str


class Pool:
    """Homes, slots that cache them, and spares.

    homes[layer][expert]; blocks[layer]: that layer's slots; spares: shared by all layers, for loads
    that bypass the cache. `permanent[layer]` maps the experts whose home is the device to the
    blocks that hold them already.
    """

    def __init__(
        self,
        link: Link,
        homes: Sequence[Sequence[Home]],
        blocks: Sequence[Sequence[Block]],
        caches: Sequence[LayerCache],
        spares: Sequence[Block] = (),
        permanent: Sequence[dict[int, Block]] | None = None,
        ledger: Ledger | None = None,
    ):
        self.link, self.homes, self.caches = link, homes, list(caches)
        self.permanent = list(permanent or [{} for _ in homes])
        self.ledger = ledger or Ledger(len(homes))
        self.table: list[dict[int, Slot]] = [{} for _ in homes]
        fresh = (
            link.mark()
        )  # earlier compute may still read the memory that the blocks were made of
        self.free: list[deque[tuple[Block, Any]]] = [
            deque((b, fresh) for b in layer) for layer in blocks
        ]
        self.spares: deque[tuple[Block, Any]] = deque((b, fresh) for b in spares)
        self.torn: dict[int, Any] = {}  # layers whose last use has not come to its end: which use
        self.closed = False

    # ------------------------------------------------------------------ use
    def experts(
        self, layer: int, needed: Sequence[int], tokens: Tokens | None = None
    ) -> Iterator[tuple[int, Block]]:
        """Yield each needed expert (distinct, ascending) once with the block that holds it, in the
        order of the cache's steps: residents first, then loads, as many of them at once as there is
        room for. The block is the caller's until it asks for the next. Raises MoEColabError where a
        load fails; the pool stays whole. One use at a time: the next one ends it."""
        self.check_open()
        for left in list(self.torn):  # it may hold spares
            self._repair(left)
        book, always, table = self.ledger.layer(layer), self.permanent[layer], self.table[layer]
        self._settle_guesses(layer, needed)
        loading = {expert for expert, slot in table.items() if not slot.ticket.done()}
        use = self.torn[layer] = object()
        try:
            steps = self.caches[layer].access(
                [expert for expert in needed if expert not in always], tokens, loading
            )
            self._count(layer, needed, steps, book)
            to_load = deque(step for step in steps if not step.hit)
            unused = {step.expert for step in steps}
            self._start_all(layer, to_load, unused, book)
            for expert in needed:
                if expert in always:
                    yield expert, always[expert]
                    self._check_goes_on(layer, use)
            for step in steps:
                self._start_all(layer, to_load, unused, book)
                slot = table[step.expert]
                slot.ticket.wait(book)
                slot.guessed = False
                yield step.expert, slot.block
                self._check_goes_on(layer, use)
                unused.discard(step.expert)
                if not slot.keep:
                    self._drop(layer, step.expert)
            del self.torn[layer]
        finally:
            if self.torn.get(layer) is use:  # an error, Ctrl-C, or a caller that stopped asking
                self._repair(layer)

    def guess(self, layer: int, experts: Sequence[int], spared: Sequence[int] = ()) -> None:
        """Begin to load what `layer` may need next. Changes speed, never output: takes only free
        slots and slots of experts that are ready and not in `spared`, and never waits."""
        if self.closed or layer in self.torn:
            return
        table = self.table[layer]
        for expert in experts:
            if expert in table or expert in self.permanent[layer]:
                continue
            loading = [e for e, slot in table.items() if not slot.ticket.done()]
            self.torn[layer] = None  # until the table shows what the cache decides
            step = self.caches[layer].guess(expert, spared=[*spared, *experts, *loading])
            if step is not None:
                self._start(layer, step, self.ledger.layer(layer), urgent=False)
            del self.torn[layer]
            if step is None:
                return

    # ------------------------------------------------------------------ ask
    def check_open(self) -> None:
        if self.closed:
            raise MoEColabError(CLOSED)

    def where(self, layer: int, expert: int) -> Place:
        if expert in self.permanent[layer]:
            return Place("device", "ready")
        slot = self.table[layer].get(expert)
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
            for slot in self.table[layer].values():
                out["ready" if slot.ticket.done() else "loading"] += 1
            out["ready"] += len(self.permanent[layer])
            out["free"] += len(self.free[layer])
        out["free"] += len(self.spares)
        return out

    def change_cache(self, layer: int, cache: LayerCache) -> None:
        """Let another policy decide from now on. Who is there stays, unless it keeps nothing."""
        self._repair(layer)
        if cache.slots == 0:
            for expert in list(self.table[layer]):
                self._drop(layer, expert)
        self.caches[layer] = cache
        cache.reconcile(self.table[layer])

    def close(self) -> None:
        """Stop the link and let go of every block. Use after this raises MoEColabError."""
        self.closed = True
        self.link.close()
        self.torn.clear()
        for layer in range(len(self.homes)):
            for expert in list(self.table[layer]):
                self._drop(layer, expert)
            self.free[layer].clear()
            self.permanent[layer].clear()
        self.spares.clear()

    # ------------------------------------------------------------------ move
    def _start_all(
        self, layer: int, to_load: deque[Step], unused: set[int], book: Counters
    ) -> None:
        """Issue loads, in order, as far as their room is free: a victim that is still to be used
        keeps its slot."""
        while to_load:
            step = to_load[0]
            if step.victim in unused or not (step.keep or self.free[layer] or self.spares):
                return
            self._start(layer, to_load.popleft(), book)

    def _start(self, layer: int, step: Step, book: Counters, urgent: bool = True) -> None:
        if step.victim is not None:
            victim = self.table[layer][step.victim]
            if not victim.ticket.done():  # an unwanted guess, too late to call back, and the last
                with contextlib.suppress(Exception):
                    victim.ticket.wait(book)
            self._drop(layer, step.victim)
            book.evictions += 1
        spare = not self.free[layer]
        room = self.spares if spare else self.free[layer]
        (block, after), home = room[0], self.homes[layer][step.expert]
        ticket = self.link.start(home, block, after, urgent)  # may raise: the block stays free
        room.popleft()
        self.table[layer][step.expert] = Slot(
            block, ticket, book, guessed=not urgent, keep=step.keep, spare=spare
        )
        self._count_load(book, home, 1)

    def _drop(self, layer: int, expert: int) -> None:
        """The expert leaves its block; a load that never arrived is not counted as one, a guess
        that was of no use is counted as waste."""
        slot, home = self.table[layer].pop(expert), self.homes[layer][expert]
        if slot.ticket.failed():
            self._count_load(slot.book, home, -1)
        elif slot.guessed:
            self.ledger.layer(layer).bytes_wasted += home.nbytes
        (self.spares if slot.spare else self.free[layer]).append((slot.block, self.link.mark()))

    def _settle_guesses(self, layer: int, needed: Sequence[int]) -> None:
        """The router has spoken: a failed guess never was, one that is not needed is called back if
        it still can be."""
        table = self.table[layer]
        gone = [
            expert
            for expert, slot in table.items()
            if slot.ticket.failed()
            or (slot.guessed and expert not in needed and slot.ticket.cancel())
        ]
        for expert in gone:
            self._drop(layer, expert)
        if gone:
            self.caches[layer].reconcile(table)

    def _repair(self, layer: int) -> None:
        """Let what is moving arrive, keep what is whole, and make the cache agree with the table
        again."""
        for expert, slot in list(self.table[layer].items()):
            with contextlib.suppress(Exception):  # it was raised in the generation that needed it
                slot.ticket.wait()
            if slot.ticket.failed() or not slot.keep:
                self._drop(layer, expert)
        self.caches[layer].reconcile(self.table[layer])
        self.torn.pop(layer, None)

    def _check_goes_on(self, layer: int, use: object) -> None:
        """Raises MoEColabError where the caller has closed the pool or used it anew meanwhile."""
        if self.torn.get(layer) is not use:
            what = "was closed" if self.closed else "was run anew"
            raise MoEColabError(f"this model {what} while one of its layers was at work.")

    # ------------------------------------------------------------------ count
    def _count(
        self, layer: int, needed: Sequence[int], steps: Sequence[Step], book: Counters
    ) -> None:
        """Each access is exactly one of hit, speculative hit, late and miss, judged when the router
        has spoken."""
        book.accesses += len(needed)
        book.hits += len(needed) - len(steps)  # at home on the device
        for step in steps:
            slot = self.table[layer].get(step.expert)
            if slot is None:
                book.misses += 1
                book.bypasses += not step.keep
            elif not slot.guessed:
                book.hits += 1
            elif slot.ticket.done():
                book.speculative_hits += 1
            else:
                slot.ticket.promote()
                book.late += 1

    @staticmethod
    def _count_load(book: Counters, home: Home, sign: int) -> None:
        book.loads += sign
        book.bytes_loaded += sign * home.nbytes
        book.disk_bytes += sign * home.nbytes if home.tier == "disk" else 0
