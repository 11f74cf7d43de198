"""Links: they move an expert's bytes from its home into a block, and own only their queue.

Knows homes and blocks (anything with a writable `buffer`). Knows no experts, layers, policies or
torch. Every link moves one chunk at a time, so that a demand load overtakes a guess. There are
three kinds: ThreadLink (a thread reads on the CPU) here, ClockLink (virtual time) in clock_link.py,
CudaLink in offload/cuda.py.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

from ..errors import CLOSED, MoEColabError
from . import homes
from .homes import Home
from .stats import Counters

QUEUED, MOVING, DONE, FAILED, CANCELLED = "queued", "moving", "done", "failed", "cancelled"


class Block(Protocol):
    buffer: memoryview


class Ticket:
    """One load under way. Its link changes its state, under the link's condition."""

    def __init__(self, link: Link, home: Home, block: Block, after: Any, urgent: bool):
        self.link, self.home, self.block, self.after, self.urgent = link, home, block, after, urgent
        self.state = QUEUED
        self.moved = 0  # bytes that have moved, the chunk under way included; 0 once it has failed
        self.chunks: Iterator[int] | None = None  # of the bytes, once the first has begun
        self.error: Exception | None = None

    def done(self) -> bool:
        """True once the bytes are in the block. False for a failed load."""
        return self.state == DONE

    def failed(self) -> bool:
        """True once the load has ended without its bytes."""
        return self.state in (FAILED, CANCELLED)

    def promote(self) -> None:
        """Turn a guess into a demand load."""
        self.link.promote(self)

    def cancel(self) -> bool:
        """Move no further chunk; False if the load has ended. The next load of the same link may
        use the block at once: it begins after the chunk that is moving."""
        return self.link.cancel(self)

    def wait(self, counters: Counters | None = None) -> None:
        """Return when compute may use the block, and add the seconds of waiting to `counters`.
        Raises MoEColabError if the load failed."""
        if self.state in (QUEUED, MOVING):
            seconds = self.link.await_end(self)
            if counters is not None:
                counters.stall_seconds += seconds
        if self.error is not None:
            raise self.error
        if self.state == CANCELLED:
            raise MoEColabError(
                "this model was closed while an expert was being loaded: load it again with "
                "mc.load()."
            )


class Link(ABC):
    """What all links share: a queue of demand loads before guesses, each in the order of asking. A
    load stays in its queue until it ends; the first one moves its next chunk."""

    ticket_class = Ticket

    def __init__(self):
        self.changed = threading.Condition()
        self.closing = False
        # Demand loads, then guesses.
        self.queues: tuple[deque[Ticket], deque[Ticket]] = (deque(), deque())

    def start(self, home: Home, block: Block, after: Any = None, urgent: bool = True) -> Ticket:
        """Begin to fill `block` once compute has passed the mark `after` (None: at once)."""
        ticket = self.ticket_class(self, home, block, after, urgent)
        with self.changed:
            if self.closing:  # it would never be moved
                raise MoEColabError(CLOSED)
            self._queue(ticket).append(ticket)
            self.changed.notify_all()
        return ticket

    def mark(self) -> Any:
        """A point in compute: a block that was used before it may be overwritten after it. None on
        a CPU, where compute ends when the call returns."""

    def begin_forward(self) -> None:
        """A forward of the model begins in this thread: later marks come after all compute of
        earlier forwards. On a CPU they do."""

    def time(self) -> float:
        """Seconds since any fixed point, as compute sees them."""
        return time.perf_counter()

    def promote(self, ticket: Ticket) -> None:
        with self.changed:
            if not ticket.urgent and ticket in self._queue(ticket):
                self._queue(ticket).remove(ticket)
                ticket.urgent = True
                self._queue(ticket).append(ticket)

    def cancel(self, ticket: Ticket) -> bool:
        with self.changed:
            if ticket.state not in (QUEUED, MOVING):
                return False
            self._end(ticket, CANCELLED)
            return True

    def book_stalls(self) -> None:
        """Add all stall times to their counters, before these are read. Without a GPU they are
        added when they happen."""

    def stop(self) -> None:
        """Cancel all loads, without waiting for the chunk that is moving."""
        with self.changed:
            self.closing = True
            for ticket in [ticket for queue in self.queues for ticket in queue]:
                self.cancel(ticket)
            self.changed.notify_all()

    def close(self) -> None:
        """Cancel all loads; no byte moves afterwards."""
        self.stop()

    @abstractmethod
    def await_end(self, ticket: Ticket) -> float:
        """Wait until a load has ended; returns the seconds of waiting."""

    def next_queued(self) -> Ticket | None:
        return next((queue[0] for queue in self.queues if queue), None)

    def _queue(self, ticket: Ticket) -> deque[Ticket]:
        return self.queues[0 if ticket.urgent else 1]

    def _end(self, ticket: Ticket, state: str, error: Exception | None = None) -> None:
        """Take a load out of its queue. `wait` raises the error."""
        self._queue(ticket).remove(ticket)
        ticket.error, ticket.state, ticket.chunks = error, state, None
        if state == FAILED:
            ticket.moved = 0

    def _carry_out(self, ticket: Ticket) -> None:
        """Move all bytes of a load at once, for links without a thread; it ends."""
        try:
            for _ in ticket.home.fill(ticket.block.buffer):
                pass
        except Exception as error:
            self._end(ticket, FAILED, error)
        else:
            self._end(ticket, DONE)


class ThreadLink(Link):
    """One thread that reads while the caller computes: file reads and large copies release the GIL.
    After every chunk it takes the load that is first in the queue."""

    def __init__(self):
        super().__init__()
        self.thread: threading.Thread | None = None

    def start(self, home, block, after=None, urgent=True):
        if self.thread is None and not self.closing:
            self.thread = threading.Thread(target=self._run, name="moe_colab-link", daemon=True)
            self.thread.start()
        return super().start(home, block, after, urgent)

    def await_end(self, ticket):
        start = time.perf_counter()
        self.promote(ticket)
        with self.changed:
            self.changed.wait_for(lambda: ticket.state not in (QUEUED, MOVING))
        return time.perf_counter() - start

    def close(self):
        super().close()
        if self.thread is not None:
            self.thread.join()

    def _run(self) -> None:
        while (turn := self._next()) is not None:
            ticket, chunks = turn
            try:
                ended = self.move_chunk(ticket, chunks)
            except Exception as error:
                self._arrived(ticket, FAILED, error)
            else:
                if ended:
                    self._arrived(ticket, DONE)

    def _next(self) -> tuple[Ticket, Iterator[int]] | None:
        """Wait for a load, and return it with its chunks; None when the link closes."""
        with self.changed:
            self.changed.wait_for(lambda: self.closing or self.next_queued())
            ticket = self.next_queued()
            if ticket is None:
                return None
            ticket.state = MOVING
            ticket.moved += min(homes.CHUNK, ticket.home.nbytes - ticket.moved)
            ticket.chunks = ticket.chunks or self.chunks_of(ticket)
            return ticket, ticket.chunks

    def _arrived(self, ticket: Ticket, state: str, error: Exception | None = None) -> None:
        with self.changed:
            if ticket.state == MOVING:  # it may have been cancelled
                self._end(ticket, state, error)
            self.changed.notify_all()

    def chunks_of(self, ticket: Ticket) -> Iterator[int]:
        """Move a load, chunk by chunk, and yield the bytes of each."""
        return ticket.home.fill(ticket.block.buffer)

    def move_chunk(self, ticket: Ticket, chunks: Iterator[int]) -> bool:
        """Move the next chunk; True once all have moved and the bytes were checked."""
        if next(chunks, None) is None:
            return True
        if ticket.moved < ticket.home.nbytes:
            return False
        for _ in chunks:
            pass
        return True
