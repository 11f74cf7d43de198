"""The only CUDA-only part: a link that copies on a stream of its own, and pinned host memory.

Knows streams and events. The pool treats it like any other link: a ticket is done when its event
has passed.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Iterator

import torch

from .errors import MoEColabError
from .links import DONE, QueueTicket, ThreadLink
from .slots import host_slab


class CudaTicket(QueueTicket):
    """DONE means *issued* to the copy stream; `event` tells when the bytes have arrived."""

    event: torch.cuda.Event | None = None

    def done(self) -> bool:
        return self.state == DONE and self.event.query()

    def wait(self, book=None) -> None:
        """The host waits until the copy is issued; the compute stream waits for its end."""
        if not self.done():
            with self.link.stall(book):
                super().wait()
                torch.cuda.current_stream(self.link.device).wait_event(self.event)


class CudaLink(ThreadLink):
    """Reads into pinned staging memory, or takes pinned homes as they are, and copies beside the
    compute stream."""

    ticket_class = CudaTicket

    def __init__(self, device: torch.device, largest: int):
        super().__init__()
        self.device = device
        self.stream = torch.cuda.Stream(device)
        # Two stages: one is filled from disk while the other is being copied.
        self.stages = [pinned_memory(largest) for _ in range(2)]
        self.stage_free: list[torch.cuda.Event | None] = [None, None]
        self.turn = 0
        self.stalls: deque[tuple] = deque()  # (book, event before, event after), oldest first

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    @contextlib.contextmanager
    def stall(self, book) -> Iterator[None]:
        """Time what the compute stream spends between here and the end of the block: it has
        nothing to do but wait. Booked when the events have passed."""
        compute = torch.cuda.current_stream(self.device)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record(compute)
        yield
        after.record(compute)
        if book is not None:
            self.stalls.append((book, before, after))
        while self.stalls and self.stalls[0][2].query():  # past: it needs no waiting for
            self._book_oldest()

    def settle(self) -> None:
        while self.stalls:
            self.stalls[0][2].synchronize()
            self._book_oldest()

    def _book_oldest(self) -> None:
        book, before, after = self.stalls.popleft()
        book.stall_seconds += before.elapsed_time(after) / 1e3

    def close(self) -> None:
        """Copies that were issued and never waited for end before their memory is given away."""
        super().close()
        self.stream.synchronize()

    def move(self, ticket: CudaTicket) -> None:
        home, target = ticket.home, ticket.block.tensor
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            if ticket.after is not None:
                self.stream.wait_event(ticket.after)
            if home.tier == "host":
                target[: home.nbytes].copy_(home.tensor, non_blocking=True)
            else:
                self._through_stage(home, target)
            ticket.event = torch.cuda.Event()
            ticket.event.record(self.stream)

    def _through_stage(self, home, target: torch.Tensor) -> None:
        stage, busy = self.stages[self.turn], self.stage_free[self.turn]
        if busy is not None:
            busy.synchronize()
        done = 0
        try:
            for got in home.fill(memoryview(stage.numpy())):
                target[done : done + got].copy_(stage[done : done + got], non_blocking=True)
                done += got
        finally:
            free = torch.cuda.Event()
            free.record(self.stream)
            self.stage_free[self.turn] = free
            self.turn = 1 - self.turn


def pinned_memory(nbytes: int) -> torch.Tensor:
    """uint8 [nbytes] of page-locked host memory, of exactly that size: torch's own rounds up to a
    power of two."""
    memory = host_slab(nbytes)
    runtime, address = torch.cuda.cudart(), memory.data_ptr()
    code = runtime.cudaHostRegister(address, nbytes, 0)
    if int(code) != 0:
        raise MoEColabError(
            f"the system refused {nbytes / 1e6:.0f} MB of pinned memory (CUDA error {int(code)}): "
            "load with a smaller "
            'ram="...", or close what else uses memory.'
        )
    weakref.finalize(memory, runtime.cudaHostUnregister, address)
    return memory
