"""The CUDA link on a device that is played by hand: streams that run when the dice say so, so that
every wait on an event can be seen to be needed. Nothing here needs a GPU."""

from __future__ import annotations

import contextlib
import inspect
import random
import textwrap
import threading
import time
import zlib
from collections import deque
from dataclasses import dataclass
from io import FileIO
from types import SimpleNamespace

import pytest
import torch

from moe_colab.cache import homes
from moe_colab.cache.homes import DiskHome, HostHome
from moe_colab.cache.layer_cache import LayerCache
from moe_colab.cache.links import MOVING, QUEUED
from moe_colab.cache.policies import make_policy
from moe_colab.cache.pool import Pool
from moe_colab.cache.stats import Counters
from moe_colab.offload import cuda
from moe_colab.offload.slots import host_slab

CHUNK, N = 16, 56  # bytes of a chunk, of an expert
LAYERS, EXPERTS = 3, 6


# ---------------------------------------------------------------------- the device
class Stream:
    """Work in order; each piece is run when the device likes, and an event may hold it up."""

    def __init__(self, device: Device, name: str):
        self.device, self.name, self.work = device, name, deque()

    def add(self, run) -> None:
        with self.device.lock:
            self.work.append(run)

    def wait_event(self, event: Event) -> None:
        self.add(event)

    def synchronize(self) -> None:
        self.device.run_until(lambda: not self.work)

    def may_run(self) -> bool:
        head = self.work[0] if self.work else None
        return head is not None and (not isinstance(head, Event) or head.query())

    def run(self) -> None:
        head = self.work.popleft()
        if not isinstance(head, Event):
            head()


class Event:
    def __init__(self, device: Device):
        self.device, self.passed = device, False

    def record(self, stream: Stream | None = None) -> None:
        (stream or self.device.current_stream()).add(lambda: setattr(self, "passed", True))

    def query(self) -> bool:
        return self.passed

    def synchronize(self) -> None:
        self.device.run_until(self.query)

    def elapsed_time(self, later: Event) -> float:
        assert self.passed and later.passed, "times of events that have not passed"
        return 1.0


class Device:
    """What offload/cuda.py takes for torch.cuda. favoured: streams that run as far as they
    can before the others do, the first named first, or None for any."""

    def __init__(self, seed: int, favoured: str | None):
        self.dice, self.favoured, self.lock = random.Random(seed), favoured, threading.RLock()
        self.compute, self.copies = Stream(self, "compute"), Stream(self, "copies")
        self.others = Stream(self, "others")  # a second stream of the user
        self.streams = (self.compute, self.copies, self.others)
        self.local = threading.local()
        self.cuda = self

    def Stream(self, device) -> Stream:
        return self.copies

    def Event(self, enable_timing: bool = False) -> Event:
        return Event(self)

    def current_stream(self, device=None) -> Stream:
        return getattr(self.local, "stream", self.compute)

    @contextlib.contextmanager
    def stream(self, stream: Stream):
        before, self.local.stream = self.current_stream(), stream
        yield
        self.local.stream = before

    def device(self, device):
        return contextlib.nullcontext()

    def step(self) -> bool:
        """Let one piece of work be done."""
        with self.lock:
            able = [stream for stream in self.streams if stream.may_run()]
            names = (self.favoured or "").split(", ")
            liked = [stream for name in names for stream in able if stream.name == name]
            if able:
                (liked[0] if liked else self.dice.choice(able)).run()
            return bool(able)

    def run_until(self, condition) -> None:
        while not condition():
            assert self.step() or condition() or self.working_elsewhere(), "the device hangs"

    def working_elsewhere(self) -> bool:
        """Another thread may have taken the last step."""
        return any(stream.work for stream in self.streams)


@dataclass
class Copy:
    """As on a device: what lies in `source` when the copy's turn comes is what arrives."""

    target: torch.Tensor
    source: torch.Tensor
    guess: bool

    def __call__(self) -> None:
        self.target.copy_(self.source)


class World:
    """A pool with a CUDA link on such a device, half of its homes on disk, half pinned."""

    def __init__(self, patch, folder, seed: int, favoured: str | None, **settings):
        self.device = Device(seed, favoured)
        patch.setattr(cuda, "torch", self.device)
        patch.setattr(cuda, "pinned_memory", host_slab)
        patch.setattr(cuda, "copy", self.copy)
        patch.setattr(cuda, "CHUNK", CHUNK)
        patch.setattr(homes, "CHUNK", CHUNK)
        self.dice, self.used = random.Random(seed), []
        self.in_stream = 0  # chunks of guesses that lay in the stream at once
        path = folder / "experts"
        path.write_bytes(b"".join(blob(*key) for key in every()))
        self.file = FileIO(path)
        self.link = cuda.CudaLink("cuda")
        slots = settings.get("slots", 2)
        self.pool = Pool(
            self.link,
            [[self.home(layer, e) for e in range(EXPERTS)] for layer in range(LAYERS)],
            [[self.block() for _ in range(slots)] for _ in range(LAYERS)],
            [LayerCache(make_policy("lru", EXPERTS), slots) for _ in range(LAYERS)],
            {N: [self.block() for _ in range(2)]},
        )

    def home(self, layer: int, expert: int):
        data = blob(layer, expert)
        if expert % 2:
            return HostHome(memoryview(data), torch.frombuffer(bytearray(data), dtype=torch.uint8))
        offset = N * every().index((layer, expert))
        return DiskHome(self.file, offset, N, zlib.crc32(data), f"expert {expert}")

    @staticmethod
    def block():
        return SimpleNamespace(tensor=torch.zeros(N, dtype=torch.uint8))

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        with self.device.lock:
            self.device.copies.add(Copy(target, source, guess=not self.moving_urgently()))
            guesses = [work for work in self.device.copies.work if getattr(work, "guess", False)]
            self.in_stream = max(self.in_stream, len(guesses))

    def moving_urgently(self) -> bool:
        ticket = self.link.next_queued()
        return ticket is None or ticket.urgent

    def forward(self, layer: int) -> None:
        """The router speaks, which waits for compute; then its experts are computed. A forward
        runs on one of two streams."""
        if layer == 0:
            streams = (self.device.compute, self.device.others)
            self.device.local.stream = self.dice.choice(streams)
            self.link.begin_forward()
        self.device.current_stream().synchronize()
        needed = sorted(self.dice.sample(range(EXPERTS), self.dice.randint(1, 5)))
        ahead = [((layer + 1) % LAYERS, [(e, 1.0) for e in self.dice.sample(range(EXPERTS), 3)])]
        for expert, block in self.pool.experts(layer, needed, None, ahead):
            self.compute(layer, expert, block)
            for _ in range(self.dice.randint(0, 3)):
                self.device.step()

    def compute(self, layer: int, expert: int, block) -> None:
        def use():
            self.used.append(bytes(block.tensor.numpy()) == blob(layer, expert))

        self.device.current_stream().add(use)

    def check(self, rounds: int = 12) -> None:
        """Everything computed had its own bytes; books can be read; nothing is left behind."""
        try:
            for number in range(rounds * LAYERS):
                self.forward(number % LAYERS)
            self.link.book_stalls()
            self.device.compute.synchronize()
            self.device.others.synchronize()
            assert self.used and all(self.used), "compute has read what was not there"
            waits = self.pool.tracker.stats().stall_seconds * 1000
            assert waits > 0 and waits == pytest.approx(round(waits))
            assert self.in_stream <= 1, "more of a guess than one chunk lies before a demand load"
        finally:
            unawaited = self.link.start(self.home(0, 1), self.block(), None, True)
            while unawaited.state in (QUEUED, MOVING):
                time.sleep(0)
            self.pool.close()
            self.file.close()
        assert not self.link.thread.is_alive()
        assert not self.device.copies.work, "closed while something is still being copied"


def blob(layer: int, expert: int) -> bytes:
    return random.Random(100 * layer + expert).randbytes(N)


def every() -> list[tuple[int, int]]:
    return [(layer, expert) for layer in range(LAYERS) for expert in range(EXPERTS)]


ORDERS = ("compute", "copies", "others, copies", None)
WORLDS = [(seed, favoured) for favoured in ORDERS for seed in range(3)]


@pytest.mark.parametrize(("seed", "favoured"), WORLDS)
def test_compute_reads_what_it_asked_for_whatever_the_device_does_first(
    monkeypatch, tmp_path, seed, favoured
):
    world = World(monkeypatch, tmp_path, seed, favoured)
    world.check()
    stats = world.pool.tracker.stats()
    assert stats.speculative_hits + stats.late > 0 and stats.disk_bytes > 0
    needed = stats.misses + stats.speculative_hits + stats.late
    assert stats.bytes_loaded == N * needed + stats.bytes_wasted


def test_a_wait_for_what_is_there_takes_no_time(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path, 0, None)
    block, counters = world.block(), Counters()
    ticket = world.link.start(world.home(0, 1), block, None, True)
    ticket.wait()
    world.device.copies.synchronize()
    assert ticket.done()
    ticket.wait(counters)
    world.link.book_stalls()
    assert counters.stall_seconds == 0
    world.pool.close()
    world.file.close()


SEEDED = {
    "compute does not wait for a copy": (
        *(cuda.CudaTicket, "wait"),
        *("torch.cuda.current_stream(self.link.device).wait_event(self.event)", "pass"),
    ),
    "what is issued counts as arrived": (
        *(cuda.CudaTicket, "done"),
        *(" and self.event.query()", ""),
    ),
    "a copy does not wait until compute has left its block": (
        *(cuda.CudaLink, "chunks_of"),
        *("self.stream.wait_event(ticket.after)", "pass"),
    ),
    "staging memory is written while it is being copied": (
        *(cuda.Staging, "__getitem__"),
        *("self.copied[self.turn].synchronize()", "pass"),
    ),
    "another stream of the user does not wait for the last one": (
        *(cuda.CudaLink, "begin_forward"),
        *("stream.wait_event(event)", "pass"),
    ),
    "a guess fills the stream": (
        *(cuda.CudaLink, "move_chunk"),
        *("issued.synchronize()", "pass"),
    ),
    "books are read before the events have passed": (
        *(cuda.CudaLink, "book_stalls"),
        *("self.stalls[0][2].synchronize()", "pass"),
    ),
    "the link is closed while it copies": (
        *(cuda.CudaLink, "close"),
        *("self.stream.synchronize()", "pass"),
    ),
}


@pytest.mark.parametrize("bug", SEEDED)
def test_without_this_wait_something_goes_wrong(bug, monkeypatch, tmp_path):
    owner, method, right, wrong = SEEDED[bug]
    text = textwrap.dedent(inspect.getsource(getattr(owner, method)))
    assert text.count(right) == 1, f"{method} has changed: adapt this seeded bug to it"
    text = text.replace(right, wrong).replace("super()", f"super({owner.__name__}, self)")
    methods: dict = {}
    exec(text, vars(cuda), methods)
    monkeypatch.setattr(owner, method, methods[method])
    with pytest.raises(AssertionError):
        for seed, favoured in [*WORLDS, *((seed, None) for seed in range(3, 12))]:
            World(monkeypatch, tmp_path, seed, favoured).check()


def test_every_wait_has_its_seeded_bug():
    """So that a new one is not forgotten."""
    text = inspect.getsource(cuda)
    waits = text.count(".synchronize()") + text.count(".wait_event(") + text.count(".query()")
    assert waits == len(SEEDED) + 1, "one more: stall() asks which events have passed already"
