"""The pool: all experts' homes and slots. It alone starts loads.

Knows homes, blocks (slots and spares) and links. Asks each layer's `LayerCache` which experts to
keep and the governor how much may be guessed. Knows no torch, and nothing of what experts compute.

Only the thread that runs the model calls it. A slot is ABSENT (not in the table), LOADING (its
ticket is under way) or READY. Weights are read-only, so nothing is written back. Guesses stay in
spares until the router asks for them, so they do not change which experts are kept.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import CLOSED, MoEColabError
from .governor import Governor, Ranked
from .homes import Home
from .layer_cache import Decision, LayerCache
from .links import Block, Link
from .policies import Tokens
from .spares import Slot, Spares, start
from .stats import Counters, StatsTracker


@dataclass(frozen=True, slots=True)
class Place:
    """Where one expert is: its home ("device", "host" or "disk") and the state of its slot
    ("absent", "loading" or "ready"). A pinned expert is at home on the device and "ready"."""

    home: str
    slot: str


class Pool:
    """Homes, slots and spares of all layers.

    homes[layer][expert]; blocks[layer]: the layer's slots; spares: by the bytes of an expert, the
    blocks that layers with experts of this size share, for guesses and for loads that bypass the
    cache; pinned[layer]: the pinned experts, with their blocks. Without a governor
    every guess for which there is room is made.
    """

    def __init__(
        self,
        link: Link,
        homes: Sequence[Sequence[Home]],
        blocks: Sequence[Sequence[Block]],
        caches: Sequence[LayerCache],
        spares: Mapping[int, Sequence[Block]] | None = None,
        pinned: Sequence[dict[int, Block]] | None = None,
        tracker: StatsTracker | None = None,
        governor: Governor | None = None,
    ):
        self.link, self.homes, self.caches, self.governor = link, homes, list(caches), governor
        self.experts_of = [len(layer) for layer in homes]  # stays when `homes` is let go
        self.pinned = list(pinned or [{} for _ in homes])
        self.tracker = tracker or StatsTracker(len(homes))
        self.table: list[dict[int, Slot]] = [{} for _ in homes]
        # Earlier compute may still read the memory that the blocks were made of.
        fresh = link.mark()
        self.free: list[deque[tuple[Block, Any]]] = [
            deque((b, fresh) for b in layer) for layer in blocks
        ]
        self.spares = Spares(link, homes, spares or {}, fresh, governor)
        self.unfinished: dict[int, Any] = {}  # by layer: a use that has not ended
        self.guessed: dict[int, Ranked] = {}  # the last guesses for each layer
        self.router_calls = [0] * len(homes)  # how often each layer's router ran
        self.closed = False

    # ------------------------------------------------------------------ use
    def experts(
        self,
        layer: int,
        needed: Sequence[int],
        tokens: Tokens | None = None,
        prefetches: Sequence[tuple[int, Ranked]] = (),
    ) -> Iterator[tuple[int, Block]]:
        """Yield each needed expert once, with the block that holds it: hits first, then right
        guesses, then loads, as many at once as there is room for. The prefetches begin behind
        these loads.

        needed: distinct experts, ascending. prefetches: the guesses for later layers. A block is
        the caller's until it asks for the next one. A new use ends the one before. Raises
        MoEColabError where a load fails; the pool stays consistent.
        """
        self.check_open()
        for left in list(self.unfinished):  # it may hold spares
            self._repair(left)
        if layer == 0 and self.governor is not None:
            self.governor.forward(decode=self.tracker.phase == "decode")
        counters, pinned, table = self.tracker.layer(layer), self.pinned[layer], self.table[layer]
        self.router_calls[layer] += 1
        guessed = self.guessed.pop(layer, ())
        if guessed and self.governor is not None:
            self.governor.judge(layer, guessed, needed)
        self.spares.resolve_guesses(layer, needed)
        use = self.unfinished[layer] = object()
        try:
            decisions = self.caches[layer].access([e for e in needed if e not in pinned], tokens)
            decisions = self._guesses_first(layer, decisions)
            self._count(layer, needed, decisions, counters)
            to_load = deque(decision for decision in decisions if not decision.hit)
            unused = {decision.expert for decision in decisions}
            self._start_all(layer, to_load, unused, counters)
            for other, ranked in prefetches:
                self.guess(other, ranked)
            for expert in needed:
                if expert in pinned:
                    yield expert, pinned[expert]
                    self._check_goes_on(layer, use)
            for decision in decisions:
                self._start_all(layer, to_load, unused, counters)
                slot = table[decision.expert]
                self._await(layer, decision.expert, slot, counters)
                slot.guessed = False
                yield decision.expert, slot.block
                self._check_goes_on(layer, use)
                unused.discard(decision.expert)
                if not slot.keep:
                    self._drop(layer, decision.expert)
            del self.unfinished[layer]
        finally:
            if self.unfinished.get(layer) is use:  # an error, Ctrl-C, or a caller that stopped
                self._repair(layer)

    def guess(self, layer: int, ranked: Ranked, phase: str | None = None) -> None:
        """Begin to load what `layer` may need next, into spares, without waiting. phase: of the
        forward that needs it, by default this thread's."""
        if self.closed or layer in self.unfinished:
            return
        self.guessed[layer] = ranked
        there = (self.table[layer], self.pinned[layer])
        absent = [guess for guess in ranked if not any(guess[0] in some for some in there)]
        self.spares.guess(layer, absent, self.tracker.layer(layer, phase))

    # ------------------------------------------------------------------ ask
    @property
    def wants_guesses(self) -> bool:
        """False while the governor allows no guesses: then none need be made."""
        return self.governor is None or self.governor.on

    def lacks_any(self, layer: int) -> bool:
        """Whether some expert of this layer would have to be loaded."""
        return len(self.table[layer]) + len(self.pinned[layer]) < self.experts_of[layer]

    def check_open(self) -> None:
        """Raises MoEColabError for a closed pool."""
        if self.closed:
            raise MoEColabError(CLOSED)

    def where(self, layer: int, expert: int) -> Place:
        """The home of an expert and the state of its slot."""
        if expert in self.pinned[layer]:
            return Place("device", "ready")
        slot = self.table[layer].get(expert) or self.spares.guesses.get((layer, expert))
        state = "absent" if slot is None else "ready" if slot.ticket.done() else "loading"
        return Place(self.homes[layer][expert].tier, state)

    def change_cache(self, layer: int, cache: LayerCache) -> None:
        """Use another cache from now on. The experts in slots stay, unless it keeps nothing."""
        self._repair(layer)
        if cache.slots == 0:
            for expert in list(self.table[layer]):
                self._drop(layer, expert)
        self.caches[layer] = cache
        cache.reconcile(self.table[layer])

    def govern(self, governor: Governor | None) -> None:
        """Use another governor from now on; None: no limit on guesses."""
        self.governor = self.spares.governor = governor

    def close(self) -> None:
        """Stop the link and release every block. Any use after this raises MoEColabError."""
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
        self, layer: int, to_load: deque[Decision], unused: set[int], counters: Counters
    ) -> None:
        """Start loads, in order, as far as there is room: a victim that is still to be used keeps
        its slot."""
        while to_load:
            decision = to_load[0]
            if decision.victim in unused or not self._has_block(layer, decision):
                return
            self._start(layer, to_load.popleft(), counters)

    def _start(self, layer: int, decision: Decision, counters: Counters) -> None:
        if decision.victim is not None:
            self._drop(layer, decision.victim)
            counters.evictions += 1
        expert, keep, own = decision.expert, decision.keep, self.free[layer]
        home = self.homes[layer][expert]
        spares = self.spares.available(home.nbytes)
        slot = self.spares.guesses.pop((layer, expert), None)
        if slot is None:
            blocks = own or spares
            slot = start(self.link, home, blocks, counters, True, keep, spare=blocks is spares)
        else:  # a guess; the layer takes its block and gives a free one back
            slot.keep, slot.spare = keep, not keep
            if keep:
                spares.append(own.popleft())
        self.table[layer][expert] = slot

    def _has_block(self, layer: int, decision: Decision) -> bool:
        """Whether there is a block for a load. For one that will not be kept, a guess for a later
        layer may be dropped."""
        if decision.keep or self.free[layer] or (layer, decision.expert) in self.spares.guesses:
            return True
        nbytes = self.homes[layer][decision.expert].nbytes
        return bool(self.spares.available(nbytes)) or self.spares.drop_last(nbytes)

    def _drop(self, layer: int, expert: int) -> None:
        """Free the block of an expert."""
        slot, home = self.table[layer].pop(expert), self.homes[layer][expert]
        slot.uncount()
        blocks = self.spares.available(home.nbytes) if slot.spare else self.free[layer]
        blocks.append((slot.block, self.link.mark()))

    def _repair(self, layer: int) -> None:
        """End a use: wait for its loads, keep those that arrived, and make the cache agree with
        the table."""
        for expert, slot in list(self.table[layer].items()):
            with contextlib.suppress(Exception):  # the generation that needs it raises it
                slot.ticket.wait()
            if slot.ticket.failed() or not slot.keep:
                self._drop(layer, expert)
        self.caches[layer].reconcile(self.table[layer])
        self.unfinished.pop(layer, None)

    def _check_goes_on(self, layer: int, use: object) -> None:
        """Raises MoEColabError where the pool was closed or used again during a use."""
        if self.unfinished.get(layer) is not use:
            what = "was closed" if self.closed else "was run again"
            raise MoEColabError(f"this model {what} while one of its layers was at work.")

    def _guesses_first(self, layer: int, decisions: list[Decision]) -> list[Decision]:
        """Move right guesses before loads, because they arrive first. The order stays where a
        load waits until a needed expert was used and leaves its slot."""
        guessed, needed = self.spares.guessed(layer), {decision.expert for decision in decisions}
        if any(decision.victim in needed for decision in decisions):
            if any(not (decision.hit or decision.keep) for decision in decisions):
                for expert in guessed:  # a load before them may wait for their block
                    self.spares.drop(layer, expert)
            return decisions
        return sorted(decisions, key=lambda d: 0 if d.hit else 1 if d.expert in guessed else 2)

    # ------------------------------------------------------------------ count
    def _count(
        self, layer: int, needed: Sequence[int], decisions: Sequence[Decision], counters: Counters
    ) -> None:
        """Count each access as exactly one of hit, speculative hit, late and miss."""
        outcomes = dict.fromkeys(needed, "hit")
        for decision in decisions:
            expert, hit = decision.expert, decision.hit
            slot = self.spares.guesses.get((layer, expert)) or self.table[layer].get(expert)
            counters.bypasses += not (hit or decision.keep)
            if slot is None:
                outcomes[expert] = "miss"
            elif slot.guessed:
                outcomes[expert] = "speculative_hit" if slot.ticket.done() else "late"
            if not hit and self.governor is not None:
                self.governor.needed(self.homes[layer][expert].nbytes)
        counters.count(list(outcomes.values()))
        if self.tracker.recorder is not None:
            for expert, outcome in outcomes.items():
                nbytes = self.homes[layer][expert].nbytes if outcome == "miss" else 0
                self.tracker.recorder.accessed(layer, expert, outcome, nbytes)

    def _await(self, layer: int, expert: int, slot: Slot, counters: Counters) -> None:
        """Wait until compute may use the slot."""
        before = counters.stall_seconds
        slot.ticket.wait(counters)
        if self.tracker.recorder is not None:
            self.tracker.recorder.waited(layer, expert, counters.stall_seconds - before)
