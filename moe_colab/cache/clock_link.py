"""ClockLink: a link in virtual time, for replays and tests that must be repeatable.

Knows the protocol of links. Each load's bytes move for real when it ends.
"""

from __future__ import annotations

from .homes import CHUNK
from .links import CANCELLED, MOVING, QUEUED, Link, Ticket


class ClockLink(Link):
    """Moves `bytes_per_second`, one chunk at a time; at every chunk demand loads come first.

    Time passes only in `compute(seconds)` and while compute waits, so every run has the same late
    loads.
    """

    def __init__(self, bytes_per_second: float, chunk: int = CHUNK):
        super().__init__()
        self.rate, self.chunk = bytes_per_second, chunk
        self.now = 0.0  # seconds that compute has reached
        self.moving: tuple[Ticket, float] | None = None  # a load, its chunk's end

    def time(self) -> float:
        return self.now

    def start(self, home, block, after=None, urgent=True):
        ticket = super().start(home, block, after, urgent)
        if self.moving is None:
            self._begin_chunk(self.now)
        return ticket

    def compute(self, seconds: float) -> None:
        """Compute for `seconds`; the link moves chunks meanwhile."""
        self.now += seconds
        while self.moving is not None and self.moving[1] <= self.now:
            self._end_chunk()

    def close(self):
        super().close()
        self.moving = None

    def await_end(self, ticket):
        self.promote(ticket)
        start = self.now
        while ticket.state in (QUEUED, MOVING):
            self.now = max(self.now, self.moving[1])
            self._end_chunk()
        return self.now - start

    def _begin_chunk(self, at: float) -> None:
        ticket = self.next_queued()
        if ticket is None:
            self.moving = None
            return
        left = ticket.home.nbytes - ticket.moved
        size = left if ticket.urgent else min(self.chunk, left)  # nothing overtakes a demand load
        ticket.state = MOVING
        ticket.moved += size
        self.moving = (ticket, at + size / self.rate)

    def _end_chunk(self) -> None:
        ticket, arrived = self.moving
        if ticket.moved == ticket.home.nbytes and ticket.state != CANCELLED:
            self._carry_out(ticket)
        self._begin_chunk(arrived)
