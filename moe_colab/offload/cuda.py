"""CUDA link, which copies experts on a stream of its own, and pinned host memory.

Knows streams and events; the only module that works with CUDA alone. The pool treats the link like
any other: a ticket is done when its event has passed.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Iterator

import torch

from ..cache.homes import CHUNK
from ..cache.links import DONE, ThreadLink, Ticket
from ..errors import MoEColabError
from .slots import host_slab


class CudaTicket(Ticket):
    """A load whose state DONE means *issued* to the copy stream; once `event` has passed, the bytes
    are there."""

    event: torch.cuda.Event | None = None

    def done(self) -> bool:
        return self.state == DONE and self.event.query()

    def wait(self, counters=None) -> None:
        """The host waits until the copy is issued, the compute stream until it has ended."""
        if not self.done():
            with self.link.stall(counters):
                super().wait()
                torch.cuda.current_stream(self.link.device).wait_event(self.event)


class CudaLink(ThreadLink):
    """Copies chunk by chunk, beside the compute stream, from pinned homes or from files by way of
    pinned staging memory. A prefetch has at most one chunk in the stream, so that a demand load
    waits for no more than that."""

    ticket_class = CudaTicket

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.staging = Staging()
        self.compute: torch.cuda.Stream | None = None  # of the last forward
        self.stalls: deque[tuple] = deque()  # (counters, event before, event after), oldest first

    def mark(self) -> torch.cuda.Event:
        with torch.cuda.device(self.device):
            return record()

    def begin_forward(self) -> None:
        """If the user computes on another stream than last time, it waits for the last one, which
        may still read blocks."""
        stream = torch.cuda.current_stream(self.device)
        if self.compute is not None and stream != self.compute:
            event = torch.cuda.Event()
            event.record(self.compute)
            stream.wait_event(event)
        self.compute = stream

    @contextlib.contextmanager
    def stall(self, counters) -> Iterator[None]:
        """Time the compute stream in this block, in which it only waits. The seconds are added to
        `counters` when the events have passed."""
        compute = torch.cuda.current_stream(self.device)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record(compute)
        yield
        after.record(compute)
        if counters is not None:
            self.stalls.append((counters, before, after))
        while self.stalls and self.stalls[0][2].query():  # passed: no need to wait
            self._book_oldest()

    def book_stalls(self) -> None:
        while self.stalls:
            self.stalls[0][2].synchronize()
            self._book_oldest()

    def _book_oldest(self) -> None:
        counters, before, after = self.stalls.popleft()
        counters.stall_seconds += before.elapsed_time(after) / 1e3

    def close(self) -> None:
        """Stop, and wait until the copies that were issued have ended: their memory is freed."""
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
            for nbytes in home.fill(self.staging):
                self.staging.copy_to(target[done : done + nbytes])
                done += nbytes
                yield nbytes


class Staging:
    """A ring of chunks of pinned memory: one is filled while others are being copied. A home writes
    to it as to a buffer, slice by slice."""

    def __init__(self, chunks: int = 4):
        self.memory = [pinned_memory(CHUNK) for _ in range(chunks)]
        self.copied: list[torch.cuda.Event | None] = [None] * chunks
        self.turn = 0

    def __getitem__(self, part: slice) -> memoryview:
        """Memory for this slice of a load, once the last copy from it has ended."""
        self.turn = (self.turn + 1) % len(self.memory)
        if self.copied[self.turn] is not None:
            self.copied[self.turn].synchronize()
        return memoryview(self.memory[self.turn].numpy())[: part.stop - part.start]

    def copy_to(self, target: torch.Tensor) -> None:
        """Copy the slice that was written last to `target`, uint8 [bytes] on the device."""
        copy(target, self.memory[self.turn][: len(target)])
        self.copied[self.turn] = record()


def copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source, non_blocking=True)


def record() -> torch.cuda.Event:
    """An event that passes when the current stream has done all its work so far."""
    event = torch.cuda.Event()
    event.record()
    return event


def pinned_memory(nbytes: int) -> torch.Tensor:
    """uint8 [nbytes] of page-locked host memory; torch's own would round up to a power of two.
    Raises MoEColabError where the system refuses it."""
    memory = host_slab(nbytes)
    runtime, address = torch.cuda.cudart(), memory.data_ptr()
    code = runtime.cudaHostRegister(address, nbytes, 0)
    if int(code) != 0:
        raise MoEColabError(
            f"the system refused {nbytes / 1e6:.0f} MB of pinned memory (CUDA error {int(code)}): "
            'load with a smaller ram="...", or close other programs.'
        )
    weakref.finalize(memory, runtime.cudaHostUnregister, address)
    return memory
