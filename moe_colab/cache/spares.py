"""Spares: the blocks that no layer owns, and the guesses in them.

A guess is loaded into a spare, so it evicts no expert. If the router asks for it, the layer takes
the block and gives one of its own back: the load began before its victim was chosen. If not, the
block is spare again. Knows homes, blocks and the link, and asks the governor how much may be
guessed; knows no layer's residents.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import MoEColabError
from .governor import Governor, Ranked
from .homes import Home
from .links import Block, Link, Ticket
from .stats import Counters

SPARES = 2  # blocks that all layers share, for guesses and for loads that bypass the cache


@dataclass(slots=True)
class Slot:
    """One expert in one block: LOADING while its ticket is under way, then READY."""

    block: Block
    after: Any  # the mark that its load waits for
    ticket: Ticket
    counters: Counters  # the counters of its load
    guessed: bool = False  # loaded by a guess and not used yet
    keep: bool = True  # False: given back after its use
    spare: bool = False  # the block belongs to the spares

    def count(self) -> None:
        """Count its load."""
        home = self.ticket.home
        self.counters.loads += 1
        self._count_bytes(home, home.nbytes)

    def uncount(self) -> None:
        """Correct the counters when it leaves its block: a load that never arrived is none, and
        all bytes of an unused guess are wasted."""
        home, moved = self.ticket.home, self.ticket.moved
        if self.ticket.failed():
            self.counters.loads -= 1
            self._count_bytes(home, moved - home.nbytes)
        if self.guessed:
            self.counters.bytes_wasted += moved

    def _count_bytes(self, home: Home, nbytes: int) -> None:
        self.counters.bytes_loaded += nbytes
        self.counters.disk_bytes += nbytes if home.tier == "disk" else 0


class Spares:
    """The spare blocks by the bytes of an expert, and the guesses in them. Without a governor every
    guess for which there is room is made."""

    def __init__(
        self,
        link: Link,
        homes: Sequence[Sequence[Home]],
        spares: Mapping[int, Sequence[Block]],
        fresh: Any,
        governor: Governor | None,
    ):
        self.link, self.homes, self.governor = link, homes, governor
        self.free = {size: deque((b, fresh) for b in blocks) for size, blocks in spares.items()}
        self.guesses: dict[tuple[int, int], Slot] = {}  # (layer, expert), in the order of asking

    # ------------------------------------------------------------------ ask
    def available(self, nbytes: int) -> deque[tuple[Block, Any]]:
        """The idle spares for an expert of `nbytes`, each with the mark to wait for."""
        return self.free.setdefault(nbytes, deque())

    def guessed(self, layer: int) -> list[int]:
        """The experts of this layer that are in spares."""
        return [expert for number, expert in self.guesses if number == layer]

    # ------------------------------------------------------------------ guesses
    def guess(self, layer: int, ranked: Ranked, counters: Counters) -> None:
        """Begin to load the experts of `ranked`, most likely first, as far as there is room and the
        governor allows."""
        wanted = [expert for expert, _ in ranked]
        for expert, probability in ranked:
            if (layer, expert) in self.guesses:
                continue
            home = self.homes[layer][expert]
            if not self._allowed(layer, home, probability):
                return
            blocks = self.available(home.nbytes)
            if not blocks:  # drop an older guess that is no longer made
                stale = [other for other in self.guessed(layer) if other not in wanted]
                if not stale:
                    return
                self.drop(layer, stale[0])
            try:
                slot = start(
                    self.link, home, blocks, counters, urgent=False, keep=False, spare=True
                )
            except (MoEColabError, RuntimeError):  # RuntimeError: no thread can be started
                return  # the use that needs this expert raises it
            self.guesses[layer, expert] = slot

    def resolve_guesses(self, layer: int, needed: Sequence[int]) -> None:
        """The router has chosen: drop failed and wrong guesses; a right one becomes a demand."""
        for expert in self.guessed(layer):
            ticket = self.guesses[layer, expert].ticket
            if expert not in needed or ticket.failed():
                self.drop(layer, expert)
            else:
                ticket.promote()

    def drop(self, layer: int, expert: int) -> None:
        """Cancel or forget a guess. The bytes that it moved are wasted."""
        slot = self.guesses.pop((layer, expert))
        slot.ticket.cancel()
        slot.uncount()
        if self.governor is not None:
            self.governor.wasted(slot.ticket.moved)
        # Compute never used it: the next load waits for the same mark.
        self.available(slot.ticket.home.nbytes).append((slot.block, slot.after))

    def drop_last(self, nbytes: int) -> bool:
        """Drop the last guess of `nbytes`; False if there is none."""
        guesses = [key for key, slot in self.guesses.items() if slot.ticket.home.nbytes == nbytes]
        if guesses:
            self.drop(*guesses[-1])
        return bool(guesses)

    def clear(self) -> None:
        """Drop all guesses and blocks."""
        for layer, expert in list(self.guesses):
            self.drop(layer, expert)
        self.free.clear()
        self.homes = []

    def _allowed(self, layer: int, home: Home, probability: float) -> bool:
        if self.governor is None:
            return True
        at_stake = sum(slot.ticket.home.nbytes for slot in self.guesses.values())
        return self.governor.allows(layer, home.nbytes, at_stake, probability)


def start(
    link: Link,
    home: Home,
    blocks: deque[tuple[Block, Any]],
    counters: Counters,
    urgent: bool,
    keep: bool,
    spare: bool,
) -> Slot:
    """Begin to load an expert into the first block of `blocks`; after an error the block stays."""
    block, after = blocks[0]
    slot = Slot(
        block, after, link.start(home, block, after, urgent), counters, not urgent, keep, spare
    )
    blocks.popleft()
    slot.count()
    return slot
