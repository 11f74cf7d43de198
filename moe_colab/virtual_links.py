"""Links without a clock on the wall: a test picks what completes, or time is a number.

Know the protocol of links. Both move the bytes for real, when it is their turn.
"""

from __future__ import annotations

from collections.abc import Callable

from .homes import CHUNK
from .links import CANCELLED, MOVING, QUEUED, QueueLink, QueueTicket


class ManualLink(QueueLink):
    """Nothing completes until `finish` or `fail` is called; `on_wait(ticket)` must end a ticket
    that is waited for."""

    def __init__(self, on_wait: Callable[[QueueTicket], None] | None = None):
        super().__init__()
        self.on_wait = on_wait or self.finish

    @property
    def pending(self) -> list[QueueTicket]:
        """Loads not ended, urgent first, in the order of asking."""
        return [ticket for queue in self.queues for ticket in queue]

    def begin(self, ticket: QueueTicket) -> None:
        """The first byte has moved: it can no longer be cancelled."""
        ticket.state = MOVING

    def finish(self, ticket: QueueTicket) -> None:
        self._queue(ticket).remove(ticket)
        self._carry_out(ticket)

    def fail(self, ticket: QueueTicket, error: Exception) -> None:
        self._queue(ticket).remove(ticket)
        self._end(ticket, error)

    def await_end(self, ticket):
        self.on_wait(ticket)
        return 0.0


class ClockLink(QueueLink):
    """A link in virtual time: `bytes_per_second`, one chunk at a time, demand loads first at every
    chunk.

    Time passes only through `compute(seconds)` and through waiting, so that who is late is the same
    in every run. The bytes themselves move for real, when their virtual time has come.
    """

    def __init__(self, bytes_per_second: float, chunk: int = CHUNK):
        super().__init__()
        self.rate, self.chunk = bytes_per_second, chunk
        self.now = 0.0  # what compute has reached, in seconds
        # Whose chunk is on its way, its bytes, and when it has arrived.
        self.moving: tuple[QueueTicket, int, float] | None = None
        self.left: dict[QueueTicket, int] = {}

    def start(self, home, block, after=None, urgent=True):
        ticket = super().start(home, block, after, urgent)
        self.left[ticket] = home.nbytes
        if self.moving is None:
            self._begin_chunk(self.now)
        return ticket

    def compute(self, seconds: float) -> None:
        """Compute for that long; the link goes on meanwhile."""
        self.now += seconds
        while self.moving is not None and self.moving[2] <= self.now:
            self._end_chunk()

    def cancel(self, ticket):
        cancelled = super().cancel(ticket)
        if cancelled:
            del self.left[ticket]
        return cancelled

    def close(self):
        """The bytes of a load move at its end: what is under way is dropped like what is queued."""
        super().close()
        for ticket in self.left:
            self._queue(ticket).remove(ticket)
            ticket.state = CANCELLED
        self.left.clear()
        self.moving = None

    def await_end(self, ticket):
        self.promote(ticket)
        asked = self.now
        while ticket.state in (QUEUED, MOVING):
            self.now = max(self.now, self.moving[2])
            self._end_chunk()
        return self.now - asked

    def _begin_chunk(self, at: float) -> None:
        ticket = self.next_queued()
        if ticket is None:
            self.moving = None
            return
        size = min(self.chunk, self.left[ticket])
        ticket.state = MOVING
        self.moving = (ticket, size, at + size / self.rate)

    def _end_chunk(self) -> None:
        ticket, size, arrived = self.moving
        self.left[ticket] -= size
        if self.left[ticket] == 0:
            del self.left[ticket]
            self._queue(ticket).remove(ticket)
            self._carry_out(ticket)
        self._begin_chunk(arrived)
