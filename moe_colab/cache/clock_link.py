"""Links without a clock on the wall: a test picks what completes, or time is a number.

Know the protocol of links. Both move the bytes for real, when it is their turn.
"""

from __future__ import annotations

from collections.abc import Callable

from .homes import CHUNK
from .links import CANCELLED, DONE, FAILED, MOVING, QUEUED, QueueLink, QueueTicket


class VirtualLink(QueueLink):
    """Moves all the bytes of a load in the moment in which it ends."""

    def _carry_out(self, ticket: QueueTicket) -> None:
        try:
            for _ in ticket.home.fill(ticket.block.buffer):
                pass
        except Exception as error:
            self._end(ticket, FAILED, error)
        else:
            self._end(ticket, DONE)


class ManualLink(VirtualLink):
    """Nothing completes until `finish` or `fail` is called; `on_wait(ticket)` must end a ticket
    that is waited for."""

    def __init__(self, on_wait: Callable[[QueueTicket], None] | None = None):
        super().__init__()
        self.on_wait = on_wait or self.finish

    @property
    def pending(self) -> list[QueueTicket]:
        """Loads not ended, urgent first, in the order of asking."""
        return [ticket for queue in self.queues for ticket in queue]

    def begin(self, ticket: QueueTicket, moved: int = 1) -> None:
        """So many bytes have moved, as far as anybody can see."""
        ticket.state, ticket.moved = MOVING, moved

    def finish(self, ticket: QueueTicket) -> None:
        ticket.moved = ticket.home.nbytes
        self._carry_out(ticket)

    def fail(self, ticket: QueueTicket, error: Exception) -> None:
        self._end(ticket, FAILED, error)

    def await_end(self, ticket):
        self.on_wait(ticket)
        return 0.0


class ClockLink(VirtualLink):
    """A link in virtual time: `bytes_per_second`, one chunk at a time, demand loads first at every
    chunk.

    Time passes only through `compute(seconds)` and through waiting, so that who is late is the same
    in every run. The bytes themselves move for real, when their virtual time has come.
    """

    def __init__(self, bytes_per_second: float, chunk: int = CHUNK):
        super().__init__()
        self.rate, self.chunk = bytes_per_second, chunk
        self.now = 0.0  # what compute has reached, in seconds
        self.moving: tuple[QueueTicket, float] | None = None  # whose chunk, and when it has arrived

    def time(self) -> float:
        return self.now

    def start(self, home, block, after=None, urgent=True):
        ticket = super().start(home, block, after, urgent)
        if self.moving is None:
            self._begin_chunk(self.now)
        return ticket

    def compute(self, seconds: float) -> None:
        """Compute for that long; the link goes on meanwhile."""
        self.now += seconds
        while self.moving is not None and self.moving[1] <= self.now:
            self._end_chunk()

    def close(self):
        super().close()
        self.moving = None

    def await_end(self, ticket):
        self.promote(ticket)
        asked = self.now
        while ticket.state in (QUEUED, MOVING):
            self.now = max(self.now, self.moving[1])
            self._end_chunk()
        return self.now - asked

    def _begin_chunk(self, at: float) -> None:
        ticket = self.next_queued()
        if ticket is None:
            self.moving = None
            return
        left = ticket.home.nbytes - ticket.moved
        size = left if ticket.urgent else min(self.chunk, left)  # nobody overtakes what is urgent
        ticket.state = MOVING
        ticket.moved += size
        self.moving = (ticket, at + size / self.rate)

    def _end_chunk(self) -> None:
        ticket, arrived = self.moving
        if ticket.moved == ticket.home.nbytes and ticket.state != CANCELLED:
            self._carry_out(ticket)
        self._begin_chunk(arrived)


def with_compute_times(pool, before_router: float, per_expert: float) -> None:
    """Let `pool`, whose link is a ClockLink, see compute of declared length: so many seconds before
    every router speaks, so many for each expert that is computed."""
    experts = pool.experts

    def timed(*use, **more):
        pool.link.compute(before_router)
        for expert in experts(*use, **more):
            yield expert
            pool.link.compute(per_expert)

    pool.experts = timed
