"""A link whose loads end only when a test says so."""

from __future__ import annotations

from collections.abc import Callable

from moe_colab.cache.links import FAILED, MOVING, Link, Ticket


class ManualLink(Link):
    """Nothing completes until `finish` or `fail` is called. `on_wait(ticket)` must end a ticket
    that compute waits for."""

    def __init__(self, on_wait: Callable[[Ticket], None] | None = None):
        super().__init__()
        self.on_wait = on_wait or self.finish

    @property
    def pending(self) -> list[Ticket]:
        """Loads that have not ended: demand loads first, each kind in the order of asking."""
        return [ticket for queue in self.queues for ticket in queue]

    def begin(self, ticket: Ticket, moved: int = 1) -> None:
        """Say that so many bytes have moved."""
        ticket.state, ticket.moved = MOVING, moved

    def finish(self, ticket: Ticket) -> None:
        ticket.moved = ticket.home.nbytes
        self._carry_out(ticket)

    def fail(self, ticket: Ticket, error: Exception) -> None:
        self._end(ticket, FAILED, error)

    def await_end(self, ticket):
        self.on_wait(ticket)
        return 0.0
