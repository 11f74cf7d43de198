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

from ..cache.homes import CHUNK
from ..cache.links import DONE, QueueTicket, ThreadLink
from ..errors import MoEColabError
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
    compute stream, chunk by chunk. Of a guess no more than one chunk lies in the stream, so that a
    demand load waits for no more than that."""

    ticket_class = CudaTicket

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.staging = Staging()
        self.stalls: deque[tuple] = deque()  # (book, event before, event after), oldest first

    def mark(self) -> torch.cuda.Event:
        with torch.cuda.device(self.device):
            return record()

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

    def book_stalls(self) -> None:
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

    def move_chunk(self, ticket, chunks):
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            ended = super().move_chunk(ticket, chunks)
            issued = record()
        if not ticket.urgent:
            issued.synchronize()
        if ended:
            ticket.event = issued
        return ended

    def chunks_of(self, ticket):
        home, target = ticket.home, ticket.block.tensor
        if ticket.after is not None:
            self.stream.wait_event(ticket.after)
        done = 0
        if home.tier == "host":
            while done < home.nbytes:
                end = min(done + CHUNK, home.nbytes)
                copy(target[done:end], home.tensor[done:end])
                yield end - done
                done = end
        else:
            for got in home.fill(self.staging):
                self.staging.copy_to(target[done : done + got])
                done += got
                yield got


class Staging:
    """A few chunks of pinned memory, in turn: one is filled while others are being copied. A home
    writes to it as to a buffer, a slice at a time."""

    def __init__(self, chunks: int = 4):
        self.memory = [pinned_memory(CHUNK) for _ in range(chunks)]
        self.copied: list[torch.cuda.Event | None] = [None] * chunks
        self.turn = 0

    def __getitem__(self, part: slice) -> memoryview:
        """Room for this part of a load, once its last copy is through."""
        self.turn = (self.turn + 1) % len(self.memory)
        if self.copied[self.turn] is not None:
            self.copied[self.turn].synchronize()
        return memoryview(self.memory[self.turn].numpy())[: part.stop - part.start]

    def copy_to(self, target: torch.Tensor) -> None:
        """What was written last: uint8 [bytes] on the device."""
        copy(target, self.memory[self.turn][: len(target)])
        self.copied[self.turn] = record()


def copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source, non_blocking=True)


def record() -> torch.cuda.Event:
    """An event behind all that the current stream was given."""
    event = torch.cuda.Event()
    event.record()
    return event


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
