"""Homes fill buffers and links move bytes: three links, one protocol, and what each adds."""

from __future__ import annotations

import os
import random
import threading
import time
import zlib
from io import FileIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manual_link import ManualLink

from moe_colab.cache import homes
from moe_colab.cache.clock_link import ClockLink
from moe_colab.cache.homes import DiskHome, HostHome
from moe_colab.cache.links import ThreadLink
from moe_colab.cache.stats import Counters
from moe_colab.errors import MoEColabError

CHUNK = 1000  # of homes, in these tests
PATIENCE = 20  # seconds until a thread that should have moved is given up


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(homes, "CHUNK", CHUNK)


class Room:
    """A block of host memory."""

    def __init__(self, nbytes: int):
        self.bytes = bytearray(nbytes)
        self.buffer = memoryview(self.bytes)


def noise(nbytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(nbytes)


def host(data: bytes) -> HostHome:
    return HostHome(memoryview(data))


class WaitingHome(HostHome):
    """Does not move a byte before `go()`, asked in the link's thread, says so."""

    def __init__(self, data: bytes, go):
        super().__init__(memoryview(data))
        self.go, self.begun = go, threading.Event()

    def fill(self, buffer):
        self.begun.set()
        until(self.go)
        yield from super().fill(buffer)


class SteppedHome(HostHome):
    """Moves a chunk only when it is let go: `asked` chunks were begun, `moved` bytes have moved."""

    def __init__(self, data: bytes):
        super().__init__(memoryview(data))
        self.free, self.asked, self.moved = threading.Semaphore(0), 0, 0

    def let_go(self, chunks: int) -> None:
        self.free.release(chunks)

    def fill(self, buffer):
        for start in range(0, self.nbytes, CHUNK):
            self.asked += 1
            assert self.free.acquire(timeout=PATIENCE)
            part = self.memory[start : start + CHUNK]
            buffer[start : start + len(part)] = part
            self.moved += len(part)
            yield len(part)


class BrokenHome(HostHome):
    """Moves one chunk, then fails."""

    def __init__(self, nbytes: int = 2 * CHUNK, error: Exception | None = None):
        super().__init__(memoryview(bytes(nbytes)))
        self.error = error or MoEColabError("expert 7 is damaged")

    def fill(self, buffer):
        yield next(super().fill(buffer))
        raise self.error


def until(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.001)


def link_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "moe_colab-link"]


# ---------------------------------------------------------------------- homes
class Shelf:
    """A file with a few experts in it, and their bytes."""

    def __init__(self, path, sizes):
        self.path, self.data = path, [noise(n, seed=i) for i, n in enumerate(sizes)]
        path.write_bytes(b"header" + b"".join(self.data))
        self.file = FileIO(path)

    def home(self, expert: int) -> DiskHome:
        offset = len("header") + sum(len(data) for data in self.data[:expert])
        data = self.data[expert]
        return DiskHome(self.file, offset, len(data), zlib.crc32(data), f"expert {expert}")

    def damage(self, expert: int, byte: int = 0) -> None:
        at = self.home(expert).offset + byte
        whole = bytearray(self.path.read_bytes())
        whole[at] ^= 1
        self.path.write_bytes(whole)


@pytest.fixture
def shelf(tmp_path):
    shelf = Shelf(tmp_path / "experts.bin", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2500])
    yield shelf
    shelf.file.close()


def fill(home) -> bytes:
    room = Room(home.nbytes)
    for _ in home.fill(room.buffer):
        pass
    return bytes(room.bytes)


@pytest.mark.parametrize("expert", range(6))
def test_disk_and_host_fill_the_same_bytes_chunk_by_chunk(shelf, expert):
    data, disk, memory = shelf.data[expert], shelf.home(expert), host(shelf.data[expert])
    assert (disk.tier, memory.tier) == ("disk", "host")
    for home in (disk, disk, memory):  # the second time unchecked
        room = Room(len(data) + 50)
        moved = list(home.fill(room.buffer))
        assert bytes(room.bytes) == data + bytes(50), "exactly nbytes are written"
        assert home.nbytes == sum(moved) == len(data)
        assert max(moved) <= CHUNK


def test_a_damaged_expert_is_named_and_stays_refused(shelf):
    shelf.damage(5, byte=1700)
    home = shelf.home(5)
    for _ in range(2):
        with pytest.raises(MoEColabError, match=r"expert 5 in .*experts\.bin is damaged"):
            fill(home)
    assert fill(shelf.home(4)) == shelf.data[4], "its neighbour is whole"


@pytest.fixture
def checks(monkeypatch) -> list[int]:
    """The calls of zlib.crc32."""
    calls, real = [], zlib.crc32
    monkeypatch.setattr(zlib, "crc32", lambda *args: calls.append(1) or real(*args))
    return calls


def test_the_crc_is_checked_once_while_the_file_stays_as_it_is(shelf, checks, monkeypatch):
    monkeypatch.setattr(homes, "TICK", 0)
    home = shelf.home(3)
    fill(home)
    checks.clear()
    assert fill(home) == shelf.data[3] and not checks


def test_a_file_that_was_written_just_now_is_checked_again(shelf, checks):
    """A later change could still have the same times."""
    home = shelf.home(3)
    for _ in range(2):
        checks.clear()
        assert fill(home) == shelf.data[3] and checks


@pytest.mark.parametrize("times", ["as they come", "set back"])
def test_a_file_that_changed_after_the_first_read_is_refused(shelf, times, monkeypatch):
    monkeypatch.setattr(homes, "TICK", 0)
    home, before = shelf.home(3), shelf.path.stat()
    assert fill(home) == shelf.data[3]
    time.sleep(0.02)  # more than a tick of the disk's clock
    shelf.damage(3)
    if times == "set back":
        os.utime(shelf.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(MoEColabError, match="expert 3"):
            fill(home)


def test_a_file_that_changes_while_it_is_read_is_refused(shelf, monkeypatch):
    monkeypatch.setattr(homes, "TICK", 0)
    home = shelf.home(3)
    assert fill(home) == shelf.data[3]
    time.sleep(0.02)
    reading = home.fill(Room(home.nbytes).buffer)
    real = os.preadv

    def damaged(*args):
        shelf.damage(3)
        return real(*args)

    monkeypatch.setattr(os, "preadv", damaged)
    with pytest.raises(MoEColabError, match="expert 3"):
        list(reading)


def test_a_first_read_that_was_broken_off_counts_as_no_check(shelf):
    home = shelf.home(5)
    shelf.damage(5, byte=2400)
    next(home.fill(Room(home.nbytes).buffer))
    with pytest.raises(MoEColabError, match="expert 5"):
        fill(home)


def test_a_read_that_brings_less_than_it_was_asked_for_goes_on(shelf, monkeypatch):
    whole_read = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda file, parts, offset: whole_read(file, [parts[0][:300]], offset)
    )
    home = shelf.home(5)
    assert fill(home) == shelf.data[5]
    assert home.checked
    assert fill(home) == shelf.data[5]


@pytest.mark.parametrize("missing", [1, 1500, 2500])
def test_a_file_that_was_cut_is_named(shelf, missing):
    whole = shelf.path.read_bytes()
    shelf.path.write_bytes(whole[:-missing])
    with pytest.raises(MoEColabError, match=r"experts\.bin ends before expert 5"):
        fill(shelf.home(5))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with FileIO(tmp_path / "experts.bin", "w") as file:  # open for writing only
        home = DiskHome(file, 0, 10, 0, "expert 2")
        with pytest.raises(MoEColabError, match=r"reading expert 2 from .*experts\.bin failed"):
            fill(home)


# ---------------------------------------------------------------------- every link
@pytest.fixture(params=[ThreadLink, ManualLink, lambda: ClockLink(1024, chunk=128)])
def link(request):
    link = request.param()
    yield link
    link.close()


class TestEveryLink:
    def test_the_bytes_have_arrived_after_wait(self, link, shelf):
        for home in (host(noise(2500)), shelf.home(5)):
            room = Room(2500)
            ticket = link.start(home, room, link.mark(), True)
            ticket.wait()
            assert ticket.done() and not ticket.failed()
            assert bytes(room.bytes) == fill(home)
            ticket.wait()  # as often as one likes

    def test_waiting_for_what_is_done_costs_nothing(self, link):
        ticket = link.start(host(noise(10)), Room(10), None, True)
        ticket.wait()
        counters = Counters()
        ticket.wait(counters)
        link.book_stalls()
        assert counters.stall_seconds == 0

    @pytest.mark.parametrize("error", [MoEColabError("expert 7 is damaged"), ValueError("odd")])
    def test_an_error_surfaces_in_wait_and_only_there(self, link, error):
        broken = link.start(BrokenHome(error=error), Room(2 * CHUNK), None, True)
        whole = link.start(host(noise(10)), Room(10), None, True)
        for _ in range(2):
            with pytest.raises(type(error), match=str(error)):
                broken.wait()
        assert broken.failed() and not broken.done() and not broken.cancel()
        broken.promote()
        whole.wait()
        assert whole.done()

    def test_what_is_done_cannot_be_cancelled(self, link):
        ticket = link.start(host(noise(10)), Room(10), None, False)
        ticket.wait()
        assert not ticket.cancel() and ticket.done()

    def test_close_twice_is_fine_even_unused(self, link):
        link.close()
        link.close()

    def test_nothing_starts_after_close(self, link):
        link.close()
        with pytest.raises(MoEColabError, match="closed"):
            link.start(host(noise(10)), Room(10), None, True)


# ---------------------------------------------------------------------- a thread
class Busy:
    """A ThreadLink whose thread is held by a first load until `release()`; `order` is who moved."""

    def __init__(self):
        self.link, self.order, self.free = ThreadLink(), [], threading.Event()
        self.first = self.start("first", urgent=True, go=self.free.is_set)
        assert self.first.home.begun.wait(PATIENCE)

    def start(self, name: str, urgent: bool, go=lambda: True):
        def moving():
            self.order += [name] if name not in self.order else []
            return go()

        return self.link.start(WaitingHome(name.encode(), moving), Room(8), None, urgent)

    def release(self) -> None:
        self.free.set()

    def release_when(self, condition) -> None:
        """From a thread of its own, as this one is about to wait."""
        threading.Thread(target=lambda: (until(condition), self.release())).start()


@pytest.fixture
def busy():
    busy = Busy()
    yield busy
    busy.release()
    busy.link.close()


class TestThreadLink:
    def test_demands_move_before_guesses_each_in_the_order_of_asking(self, busy):
        tickets = [busy.start(n, urgent=n.startswith("demand")) for n in ("guess1", "guess2")]
        tickets += [busy.start(n, urgent=True) for n in ("demand1", "demand2")]
        busy.release()
        until(lambda: all(ticket.done() for ticket in tickets))
        assert busy.order == ["first", "demand1", "demand2", "guess1", "guess2"]

    def test_a_promoted_guess_goes_behind_the_demands_and_before_the_guesses(self, busy):
        guess1, guess2 = busy.start("guess1", urgent=False), busy.start("guess2", urgent=False)
        demand = busy.start("demand", urgent=True)
        guess2.promote()
        busy.release()
        until(lambda: guess1.done() and guess2.done() and demand.done())
        assert busy.order == ["first", "demand", "guess2", "guess1"]

    def test_waiting_for_a_guess_promotes_it(self, busy):
        guess1, guess2 = busy.start("guess1", urgent=False), busy.start("guess2", urgent=False)
        busy.release_when(lambda: guess2.urgent)
        guess2.wait()
        until(guess1.done)
        assert busy.order == ["first", "guess2", "guess1"]

    def test_a_load_called_back_before_it_has_begun_moves_nothing(self, busy):
        queued = busy.start("queued", urgent=False)
        assert queued.cancel() and not queued.cancel()
        assert queued.failed() and not queued.done() and queued.moved == 0
        queued.promote()  # too late, and harmless
        busy.release()
        busy.first.wait()
        assert bytes(busy.first.block.bytes[:5]) == b"first"
        after = busy.start("after", urgent=False)
        after.wait()
        assert busy.order == ["first", "after"]
        assert queued.block.bytes == bytes(8)

    def test_a_load_is_called_back_between_two_chunks(self):
        link, home = ThreadLink(), SteppedHome(noise(5 * CHUNK))
        guess = link.start(home, Room(5 * CHUNK), None, False)
        home.let_go(2)
        until(lambda: home.asked == 3)  # two have moved, the third is under way
        assert guess.cancel() and guess.failed() and not guess.done()
        assert guess.moved == 3 * CHUNK
        home.let_go(3)
        after = link.start(host(noise(10, seed=1)), guess.block, None, True)
        after.wait()
        assert home.asked == 3
        expected = noise(10, seed=1) + noise(5 * CHUNK)[10 : 3 * CHUNK] + bytes(2 * CHUNK)
        assert guess.block.bytes == expected, "whoever has the block next comes after that chunk"
        link.close()

    def test_a_demand_overtakes_a_guess_between_two_chunks(self):
        link, home = ThreadLink(), SteppedHome(noise(4 * CHUNK))
        guess = link.start(home, Room(4 * CHUNK), None, False)
        until(lambda: home.asked == 1)
        demand = link.start(host(noise(3 * CHUNK, seed=1)), Room(3 * CHUNK), None, True)
        home.let_go(1)
        demand.wait()
        assert not guess.done() and home.moved == CHUNK, "one chunk, and no more, came before"
        assert demand.block.bytes == noise(3 * CHUNK, seed=1)
        home.let_go(3)
        guess.wait()
        assert guess.block.bytes == noise(4 * CHUNK), "it went on where it was"
        link.close()

    def test_an_error_in_a_later_chunk_counts_no_bytes(self):
        link = ThreadLink()
        ticket = link.start(BrokenHome(3 * CHUNK), Room(3 * CHUNK), None, False)
        until(ticket.failed)
        assert ticket.moved == 0
        link.close()

    def test_the_time_of_waiting_goes_to_the_book(self):
        link, counters = ThreadLink(), Counters()
        begun = time.perf_counter()
        late = link.start(WaitingHome(b"late", lambda: time.perf_counter() > begun + 0.05), Room(4))
        late.wait(counters)
        assert 0 < counters.stall_seconds <= time.perf_counter() - begun
        link.close()

    def test_an_interrupt_while_waiting_leaves_the_load_as_it_is(self, busy, monkeypatch):
        def interrupted(condition):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(busy.link.changed, "wait_for", interrupted)
            busy.first.wait()
        assert not busy.first.done() and not busy.first.failed()
        busy.release()
        busy.first.wait()
        assert busy.first.done()

    def test_close_waits_for_the_chunk_that_moves_and_drops_all(self, busy):
        queued = [busy.start("demand", urgent=True), busy.start("guess", urgent=False)]
        busy.release_when(lambda: busy.link.closing)
        busy.link.close()
        assert not busy.link.thread.is_alive()
        assert busy.order == ["first"] and bytes(busy.first.block.bytes[:5]) == b"first"
        for ticket in [busy.first, *queued]:
            assert ticket.failed() and not ticket.done()
            with pytest.raises(MoEColabError, match="closed while an expert was being loaded"):
                ticket.wait()

    def test_stop_does_not_wait_for_what_moves(self, busy):
        queued = busy.start("queued", urgent=True)
        busy.link.stop()
        assert queued.failed() and bytes(busy.first.block.bytes[:5]) == bytes(5)
        busy.release()
        busy.link.thread.join(PATIENCE)
        assert not busy.link.thread.is_alive() and busy.order == ["first"]

    def test_close_wakes_who_waits_in_another_thread(self, busy):
        queued, heard = busy.start("queued", urgent=True), []

        def wait():
            try:
                queued.wait()
            except MoEColabError as error:
                heard.append(str(error))

        waiter = threading.Thread(target=wait)
        waiter.start()
        busy.link.stop()
        waiter.join(PATIENCE)
        assert not waiter.is_alive() and "closed" in heard[0]

    def test_no_thread_is_left_behind_and_none_is_started_for_nothing(self):
        before = set(link_threads())
        links = [ThreadLink() for _ in range(5)]
        assert set(link_threads()) == before
        for link in links[:4]:
            link.start(host(noise(10)), Room(10)).wait()
        links[0].start(BrokenHome(), Room(2 * CHUNK))
        assert len(set(link_threads()) - before) == 4
        for link in links:
            link.close()
        assert set(link_threads()) == before

    def test_many_loads_all_arrive(self):
        link, data = ThreadLink(), [noise(3000, seed) for seed in range(60)]
        rooms = [Room(3000) for _ in data]
        tickets = [
            link.start(host(d), room, None, urgent=i % 3 == 0)
            for i, (d, room) in enumerate(zip(data, rooms, strict=True))
        ]
        called_back = {i for i in range(1, 60, 7) if tickets[i].cancel()}
        for ticket in tickets[2::3]:
            ticket.promote()
        for i in set(range(60)) - called_back:
            tickets[i].wait()
            assert rooms[i].bytes == data[i]
        for i in called_back:
            assert rooms[i].bytes == bytes(3000)
        link.close()


# ---------------------------------------------------------------------- by hand
class TestManualLink:
    def test_nothing_happens_until_the_test_says_so(self):
        link, room = ManualLink(), Room(5)
        ticket = link.start(host(b"hello"), room)
        assert not ticket.done() and not ticket.failed() and room.bytes == bytes(5)
        link.finish(ticket)
        assert ticket.done() and room.bytes == b"hello" and link.pending == []

    def test_pending_lists_demands_first(self):
        link = ManualLink()
        guess1, demand1, guess2, demand2 = (
            link.start(host(b"x"), Room(1), None, urgent) for urgent in (False, True, False, True)
        )
        assert link.pending == [demand1, demand2, guess1, guess2]
        guess2.promote()
        assert link.pending == [demand1, demand2, guess2, guess1]
        guess2.promote()
        assert link.pending == [demand1, demand2, guess2, guess1]

    def test_a_load_that_has_begun_can_be_promoted_and_called_back(self):
        link = ManualLink()
        guess, wrong = (link.start(host(b"xyz"), Room(3), None, urgent=False) for _ in range(2))
        link.begin(guess, moved=2)
        guess.promote()
        assert guess.urgent and link.pending == [guess, wrong]
        link.finish(guess)
        assert guess.done() and guess.moved == 3
        link.begin(wrong, moved=2)
        assert wrong.cancel() and wrong.failed() and wrong.moved == 2 and link.pending == []

    def test_fail_ends_a_load_with_that_error(self):
        link, room = ManualLink(), Room(5)
        ticket = link.start(host(b"hello"), room)
        link.fail(ticket, MoEColabError("the cable was pulled"))
        assert ticket.failed() and room.bytes == bytes(5) and link.pending == []
        with pytest.raises(MoEColabError, match="cable"):
            ticket.wait()

    def test_on_wait_decides_what_a_wait_brings(self):
        def on_wait(ticket):
            if ticket.home.nbytes == 1:
                raise KeyboardInterrupt
            link.fail(ticket, MoEColabError("no"))

        link = ManualLink(on_wait)
        short, long = link.start(host(b"x"), Room(1)), link.start(host(b"xx"), Room(2))
        with pytest.raises(KeyboardInterrupt):
            short.wait()
        assert not short.failed()
        with pytest.raises(MoEColabError, match="no"):
            long.wait()
        link.finish(short)
        short.wait()

    def test_close_drops_all(self):
        link = ManualLink()
        begun, queued = link.start(host(b"x"), Room(1)), link.start(host(b"y"), Room(1))
        link.begin(begun)
        link.close()
        assert queued.failed() and begun.failed()
        assert link.pending == []


# ---------------------------------------------------------------------- in virtual time
RATE, PART = 1024, 128  # bytes per second and per chunk: all times are exact in binary
BEAT = PART / RATE


def clock() -> ClockLink:
    return ClockLink(RATE, chunk=PART)


def load(link: ClockLink, beats: float, urgent: bool = True):
    data = noise(int(beats * PART))
    return link.start(host(data), Room(len(data)), None, urgent)


class TestClockLink:
    def test_a_load_arrives_when_its_last_chunk_does_and_not_before(self):
        link = clock()
        ticket = load(link, 2.25)
        link.compute(2.25 * BEAT - BEAT / 1024)
        assert not ticket.done()
        assert ticket.block.bytes == bytes(288), "no byte is there before its time"
        link.compute(BEAT / 1024)
        assert ticket.done() and ticket.block.bytes == noise(288)

    def test_compute_overlaps_and_waiting_books_the_rest(self):
        link, counters = clock(), Counters()
        ticket = load(link, 4)
        link.compute(1.5 * BEAT)
        ticket.wait(counters)
        assert counters.stall_seconds == 2.5 * BEAT
        assert link.now == 4 * BEAT
        ticket.wait(counters)
        assert counters.stall_seconds == 2.5 * BEAT

    def test_an_idle_link_begins_when_it_is_asked(self):
        link = clock()
        link.compute(10.0)
        ticket = load(link, 1)
        ticket.wait()
        assert link.now == 10.0 + BEAT

    def test_loads_follow_each_other_without_a_gap(self):
        link, counters = clock(), Counters()
        tickets = [load(link, 1.5), load(link, 2)]
        link.compute(3 * BEAT)
        assert [ticket.done() for ticket in tickets] == [True, False]
        tickets[1].wait(counters)
        assert link.now == 3.5 * BEAT and counters.stall_seconds == 0.5 * BEAT

    def test_a_demand_overtakes_a_guess_at_the_next_chunk(self):
        link, counters = clock(), Counters()
        guess = load(link, 8, urgent=False)
        link.compute(0.5 * BEAT)
        demand = load(link, 2)
        demand.wait(counters)
        assert link.now == 3 * BEAT, "the rest of one chunk, then its own two"
        assert counters.stall_seconds == 2.5 * BEAT
        assert not guess.done()
        guess.wait()
        assert link.now == 10 * BEAT, "the chunks that had moved are not moved again"
        assert guess.block.bytes == noise(8 * PART)

    @settings(max_examples=60, deadline=None)
    @given(
        guesses=st.lists(st.integers(1, 40), max_size=6),
        before=st.integers(0, 100),
        demand=st.integers(1, 20),
    )
    def test_guesses_delay_a_demand_by_one_chunk_at_the_most(self, guesses, before, demand):
        link, counters = clock(), Counters()
        for quarters in guesses:
            load(link, quarters / 4, urgent=False)
        link.compute(before / 16 * BEAT)
        load(link, demand / 4).wait(counters)
        own = demand / 4 * BEAT
        assert own <= counters.stall_seconds <= own + BEAT

    @settings(max_examples=60, deadline=None)
    @given(loads=st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=8))
    def test_the_order_changes_but_the_sum_of_the_work_does_not(self, loads):
        link = clock()
        tickets = [load(link, quarters / 4, urgent) for quarters, urgent in loads]
        whole = sum(quarters for quarters, _ in loads) / 4 * BEAT
        link.compute(whole - BEAT / 8)  # all of it exact in binary
        assert [ticket.done() for ticket in tickets].count(False) == 1
        link.compute(BEAT / 8)
        assert all(ticket.done() for ticket in tickets)

    def test_a_promoted_guess_overtakes_the_other_guesses(self):
        link = clock()
        first, second = load(link, 3, urgent=False), load(link, 2, urgent=False)
        second.promote()
        link.compute(3 * BEAT)
        assert second.done() and not first.done()
        first.promote()  # under way already, and alone
        demand = load(link, 1)
        demand.wait()
        assert link.now == 6 * BEAT and first.done(), "it was asked for before"

    def test_waiting_for_a_guess_promotes_it(self):
        link, counters = clock(), Counters()
        load(link, 3, urgent=False)
        load(link, 2, urgent=False).wait(counters)
        assert counters.stall_seconds == 3 * BEAT, "the chunk under way, then its own two"

    def test_a_guess_that_is_called_back_frees_the_link_after_its_chunk(self):
        link, counters = clock(), Counters()
        moving, queued = load(link, 4, urgent=False), load(link, 2, urgent=False)
        link.compute(1.5 * BEAT)
        assert moving.cancel() and queued.cancel() and queued.failed()
        assert (moving.moved, queued.moved) == (2 * PART, 0)
        load(link, 1).wait(counters)
        assert link.now == 3 * BEAT and counters.stall_seconds == 1.5 * BEAT
        link.compute(10.0)
        assert moving.block.bytes == bytes(4 * PART) and queued.block.bytes == bytes(2 * PART)
        assert link.moving is None

    def test_a_failed_load_ends_when_its_bytes_should_have_come(self):
        link, counters = clock(), Counters()
        broken = link.start(BrokenHome(4 * PART), Room(4 * PART))
        after = load(link, 1)
        with pytest.raises(MoEColabError, match="damaged"):
            broken.wait(counters)
        assert counters.stall_seconds == 4 * BEAT == link.now
        after.wait()
        assert link.now == 5 * BEAT

    def test_no_byte_moves_after_close(self):
        link = clock()
        tickets = [load(link, 2), load(link, 2, urgent=False)]
        link.compute(BEAT)
        link.close()
        link.compute(10.0)
        for ticket in tickets:
            assert ticket.failed() and ticket.block.bytes == bytes(2 * PART)
            with pytest.raises(MoEColabError, match="closed"):
                ticket.wait()

    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 10**6))
    def test_every_run_is_the_same(self, seed):
        assert self.run(seed) == self.run(seed)

    @staticmethod
    def run(seed: int) -> list:
        """Forty random events, and what was seen after each."""
        dice, link, counters, tickets, log = random.Random(seed), clock(), Counters(), [], []
        for _ in range(40):
            event = dice.choice(["load", "guess", "compute", "wait", "promote", "cancel"])
            if event in ("load", "guess"):
                tickets.append(load(link, dice.randint(1, 9) / 3, urgent=event == "load"))
            elif event == "compute":
                link.compute(dice.random())
            elif tickets:
                ticket = dice.choice(tickets)
                if event == "wait" and not ticket.failed():
                    ticket.wait(counters)
                elif event == "promote":
                    ticket.promote()
                elif event == "cancel":
                    ticket.cancel()
            log.append(
                (link.now, counters.stall_seconds, [(t.done(), t.failed()) for t in tickets])
            )
        return log
