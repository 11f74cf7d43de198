"""The pool: where every expert lies, what is loaded when, what is counted, and what a failure
leaves behind."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from io import FileIO
from types import SimpleNamespace

import pytest
from census import blocks_counted, census
from hypothesis import given, settings
from hypothesis import strategies as st
from manual_link import ManualLink

from moe_colab.cache.clock_link import ClockLink
from moe_colab.cache.governor import Governor
from moe_colab.cache.homes import DiskHome, HostHome
from moe_colab.cache.layer_cache import LayerCache
from moe_colab.cache.links import Link, ThreadLink
from moe_colab.cache.policies import LRU, POLICIES, make_policy
from moe_colab.cache.pool import Place, Pool
from moe_colab.cache.stats import Counters, StatsTracker
from moe_colab.errors import MoEColabError

N = 64  # bytes of an expert in these tests


class Room:
    """A block of host memory."""

    def __init__(self):
        self.buffer = memoryview(bytearray(N))


def blob(layer: int, expert: int) -> bytes:
    return bytes([16 * layer + expert]) * N


class Bypasser(LRU):
    """Full slots stay as they are: whoever comes later is run from a scratch slot."""

    def victim(self, candidates, newcomer):
        return newcomer


class Experts:
    """A pool of layers with a few experts each, and short words for what tests do with it."""

    def __init__(
        self,
        link: Link | None = None,
        *,
        slots: int = 2,
        experts: int = 6,
        layers: int = 1,
        spares: int = 0,
        policy="lru",
        pinned: Sequence[int] = (),
        homes: Callable | None = None,
        governor: Governor | None = None,
    ):
        self.link, self.started = link or ManualLink(), []
        start = self.link.start
        self.link.start = lambda *load: self.started.append(start(*load)) or self.started[-1]
        homes = homes or (lambda layer, expert: HostHome(memoryview(blob(layer, expert))))
        self.blocks = [[Room() for _ in range(slots)] for _ in range(layers)]
        self.spares = [Room() for _ in range(spares)]
        self.pinned = [{expert: Room() for expert in pinned} for _ in range(layers)]
        for layer, held in enumerate(self.pinned):
            for expert, block in held.items():
                block.buffer[:] = blob(layer, expert)
        self.pool = Pool(
            self.link,
            [[homes(layer, expert) for expert in range(experts)] for layer in range(layers)],
            self.blocks,
            [LayerCache(make_policy(policy, experts), slots) for _ in range(layers)],
            {N: self.spares},
            [dict(held) for held in self.pinned],
            governor=governor,
        )

    def use(self, *needed: int, layer: int = 0) -> list[int]:
        """A whole use; checks every byte. The experts in the order in which they came."""
        came = []
        for expert, block in self.pool.experts(layer, sorted(needed)):
            assert block.buffer == blob(layer, expert)
            came.append(expert)
        assert sorted(came) == sorted(needed)
        return came

    def begin(self, *needed: int, layer: int = 0) -> Iterator:
        """A use that has got its first expert."""
        use = self.pool.experts(layer, sorted(needed))
        next(use)
        return use

    def guess(self, *experts: int, layer: int = 0) -> None:
        self.pool.guess(layer, [(expert, 1.0) for expert in experts])

    def slot(self, expert: int, layer: int = 0) -> str:
        return self.pool.where(layer, expert).slot

    def ready(self, layer: int = 0) -> set[int]:
        homes = self.pool.homes[layer]
        return {expert for expert in range(len(homes)) if self.slot(expert, layer) == "ready"}

    def ticket(self, expert: int, layer: int = 0):
        """The load under way of one expert."""
        (found,) = [t for t in self.link.pending if t.home is self.pool.homes[layer][expert]]
        return found

    def finish(self, *experts: int) -> None:
        for expert in experts:
            self.link.finish(self.ticket(expert))

    def counted(self, **expected: float) -> None:
        """Exactly these counters of all are not 0."""
        counters = self.pool.tracker.stats().total.as_dict()
        assert {name: n for name, n in counters.items() if n and name != "hit_rate"} == expected

    def check_books(self) -> None:
        """Each access is one of four, and each load one that arrived (none is under way)."""
        counters = self.pool.tracker.stats().total
        assert (
            counters.accesses
            == counters.hits + counters.speculative_hits + counters.late + counters.misses
        )
        assert counters.loads == sum(ticket.done() for ticket in self.started)
        assert counters.bytes_loaded == sum(ticket.moved for ticket in self.started)

    def check_whole(self) -> None:
        """Every block is in one place, the cache knows who is there, and the census agrees."""
        pool, counts = self.pool, census(self.pool)
        table = [slot.block for layer in pool.table for slot in layer.values()]
        table += [slot.block for slot in pool.spares.guesses.values()]
        free = [block for where in (*pool.free, pool.spares.available(N)) for block, _ in where]
        assert sorted(map(id, table + free)) == sorted(
            map(id, [*self.spares, *(block for layer in self.blocks for block in layer)])
        )
        homes = ["home_device", "home_host", "home_disk"]
        places = [
            pool.where(layer, expert)
            for layer, homes_of_layer in enumerate(pool.homes)
            for expert in range(len(homes_of_layer))
        ]
        assert [counts[home] for home in homes] == [
            sum(f"home_{place.home}" == home for place in places) for home in homes
        ]
        for state in ("ready", "loading"):
            assert counts[state] == sum(place.slot == state for place in places)
        assert counts["free"] == len(free)
        for layer, cache in enumerate(pool.caches):
            assert cache.resident == set(pool.table[layer])


# ---------------------------------------------------------------------- a use
class TestAUse:
    def test_yields_each_needed_expert_once_residents_first(self):
        it = Experts(slots=3)
        assert it.use(1, 3) == [1, 3]
        assert it.use(0, 1, 3) == [1, 3, 0]
        assert it.use() == []
        it.check_whole()

    def test_issues_every_load_there_is_room_for_before_the_first_expert_is_computed(self):
        it = Experts(slots=4)
        it.use(5)
        use = it.pool.experts(0, [1, 2, 3, 5])
        assert next(use)[0] == 5
        assert [ticket.home for ticket in it.link.pending] == it.pool.homes[0][1:4]
        assert all(ticket.urgent for ticket in it.link.pending)
        assert [expert for expert, _ in use] == [1, 2, 3]

    def test_loads_while_experts_at_home_on_the_device_are_computed(self):
        it = Experts(slots=2, pinned=[4])
        use = it.begin(1, 4)
        assert it.slot(1) == "loading"
        assert [expert for expert, _ in use] == [1]

    def test_runs_in_waves_where_slots_are_short(self):
        it = Experts(slots=2)
        it.use(4, 5)
        use = it.pool.experts(0, [0, 1, 2, 3, 5])
        came = []
        for expert, block in use:
            came.append(expert)
            assert block.buffer == blob(0, expert)
            assert census(it.pool)["ready"] + census(it.pool)["loading"] <= 2
        assert came == [5, 0, 1, 2, 3]
        assert it.ready() == {3, 5}, "the last used of the forward, in ascending order"
        it.counted(accesses=7, hits=1, misses=6, loads=6, evictions=4, bytes_loaded=6 * N)
        it.check_whole()

    def test_one_slot_serves_a_whole_layer(self):
        it = Experts(slots=1)
        assert it.use(*range(6)) == list(range(6))
        assert it.ready() == {5}

    def test_a_block_is_not_overwritten_before_the_next_is_asked_for(self):
        it = Experts(ThreadLink(), slots=1)
        for expert, block in it.pool.experts(0, [0, 1, 2]):
            assert block.buffer == blob(0, expert)
            assert [it.slot(other) for other in {0, 1, 2} - {expert}] == ["absent"] * 2
        it.pool.close()

    def test_experts_at_home_on_the_device_come_first_and_are_never_loaded(self):
        it = Experts(slots=1, pinned=[2, 4])
        assert it.use(1, 2, 4) == [2, 4, 1]
        assert it.use(0, 1, 2, 3, 4, 5) == [2, 4, 1, 0, 3, 5]
        it.counted(accesses=9, hits=5, misses=4, loads=4, evictions=3, bytes_loaded=4 * N)
        assert it.pool.where(0, 2) == Place("device", "ready")
        it.guess(2)
        assert it.link.pending == []
        assert census(it.pool) == {
            **{"home_device": 2, "home_host": 4, "home_disk": 0},
            **{"ready": 3, "loading": 0, "free": 0},
        }

    @pytest.mark.parametrize("policy", POLICIES)
    @settings(max_examples=25, deadline=None)
    @given(history=st.lists(st.sets(st.integers(0, 5), min_size=1), max_size=12))
    def test_does_what_the_cache_decides(self, policy, history):
        """Without guesses, the same routing shown to the cache alone counts the same."""
        it, alone = Experts(slots=2, policy=policy), LayerCache(make_policy(policy, 6), 2)
        expected = Counters()
        for needed in history:
            steps = alone.access(sorted(needed))
            assert it.use(*needed) == [step.expert for step in steps]
            assert it.ready() == alone.resident
            misses = sum(not step.hit for step in steps)
            expected += Counters(
                accesses=len(steps),
                hits=len(steps) - misses,
                misses=misses,
                loads=misses,
                evictions=sum(step.victim is not None for step in steps),
                bypasses=sum(not step.keep for step in steps),
                bytes_loaded=misses * N,
            )
        assert it.pool.tracker.stats().total == expected


# ---------------------------------------------------------------------- spares
class TestBypass:
    def test_runs_a_newcomer_from_a_spare_and_gives_it_back(self):
        it = Experts(slots=2, spares=1, policy=Bypasser)
        it.use(0, 1)
        for expert, block in it.pool.experts(0, [1, 2]):
            assert block.buffer == blob(0, expert)
            assert (block is it.spares[0]) == (expert == 2)
        assert it.ready() == {0, 1}
        it.counted(accesses=4, hits=1, misses=3, loads=3, bypasses=1, bytes_loaded=3 * N)
        it.check_whole()

    def test_fills_as_many_spares_as_there_are_and_waits_for_the_rest(self):
        it = Experts(slots=1, spares=2, policy=Bypasser)
        it.use(0)
        use = it.begin(0, 1, 2, 3, 4)
        assert len(it.link.pending) == 2
        assert [expert for expert, _ in use] == [1, 2, 3, 4]
        assert it.use(1, 2, 3, 4, 5) == [1, 2, 3, 4, 5]
        it.check_whole()

    def test_spares_serve_every_layer(self):
        it = Experts(slots=1, spares=1, layers=3, policy=Bypasser)
        for layer in (0, 1, 2, 0, 1, 2):
            assert it.use(0, 1, 2, layer=layer) == [0, 1, 2]
        it.check_whole()

    def test_a_policy_that_keeps_nothing_uses_the_slots_as_scratch(self):
        it = Experts(slots=2, policy="none")
        for _ in range(2):
            assert it.use(0, 1, 2) == [0, 1, 2]
            assert census(it.pool)["free"] == 2
        it.counted(accesses=6, misses=6, loads=6, bypasses=6, bytes_loaded=6 * N)

    def test_a_policy_that_keeps_nothing_can_be_helped_by_guesses(self):
        it = Experts(slots=2, policy="none", spares=1)
        it.guess(4)
        it.finish(4)
        assert it.use(0, 4) == [4, 0]
        it.counted(
            **{"accesses": 2, "speculative_hits": 1, "misses": 1, "loads": 2, "bypasses": 2},
            **{"bytes_loaded": 2 * N},
        )
        assert census(it.pool)["free"] == 3
        it.check_whole()


# ---------------------------------------------------------------------- what is counted
class TestCounting:
    def test_each_access_is_one_of_four(self):
        it = Experts(slots=4, spares=2)
        it.use(0)
        it.guess(1, 2)
        it.finish(1)
        assert [it.slot(expert) for expert in range(4)] == ["ready", "ready", "loading", "absent"]
        assert it.use(0, 1, 2, 3) == [0, 1, 2, 3]
        it.counted(
            **{"accesses": 5, "hits": 1, "speculative_hits": 1, "late": 1, "misses": 2},
            **{"loads": 4, "bytes_loaded": 4 * N},
        )
        stats = it.pool.tracker.stats()
        assert stats.hit_rate == 2 / 5
        it.use(0, 1, 2, 3)
        assert it.pool.tracker.stats().hits == 5, "a guess is a guess for its first use only"

    def test_a_late_guess_becomes_a_demand_and_its_wait_is_stall(self):
        it = Experts(
            ClockLink(N, chunk=N // 4), slots=2, layers=2, spares=2
        )  # one second an expert
        it.guess(3)
        it.guess(0, layer=1)
        it.link.compute(0.5)
        it.use(3)
        it.counted(accesses=1, late=1, loads=2, bytes_loaded=2 * N, stall_seconds=0.5)
        assert it.slot(0, layer=1) == "loading"
        it.link.compute(0.75)
        it.use(0, layer=1)
        it.counted(accesses=2, late=2, loads=2, bytes_loaded=2 * N, stall_seconds=0.75)

    def test_a_demand_waits_for_one_chunk_of_a_guess(self):
        it = Experts(ClockLink(N, chunk=N // 4), slots=2, layers=2, spares=2)
        it.guess(0, layer=1)
        it.link.compute(0.125)
        it.use(5)
        it.counted(accesses=1, misses=1, loads=2, bytes_loaded=2 * N, stall_seconds=1.125)

    def test_a_guess_in_time_costs_no_stall(self):
        it = Experts(ClockLink(N, chunk=N // 4), slots=2, spares=1)
        it.guess(1)
        it.link.compute(1.0)
        it.use(1)
        it.counted(accesses=1, speculative_hits=1, loads=1, bytes_loaded=N)

    def test_a_wrong_guess_is_waste_and_evicts_nobody(self):
        it = Experts(slots=1, spares=1)
        it.use(0)
        it.guess(1)
        it.finish(1)
        it.use(0)
        it.counted(
            **{"accesses": 2, "hits": 1, "misses": 1, "loads": 2},
            **{"bytes_loaded": 2 * N, "bytes_wasted": N},
        )
        it.check_whole()

    def test_of_a_guess_called_back_what_has_moved_is_waste(self):
        it = Experts(ClockLink(N, chunk=N // 4), slots=2, spares=2, layers=2)
        it.guess(1, 2)
        it.link.compute(0.375)  # one chunk has arrived, the second is under way
        it.use(0)
        it.counted(
            **{"accesses": 1, "misses": 1, "loads": 1, "stall_seconds": 1.125},
            **{"bytes_loaded": N + N // 2, "bytes_wasted": N // 2},
        )
        it.check_whole()
        it.link.compute(10.0)
        assert it.started[0].moved == N // 2 and it.started[1].moved == 0

    def test_a_guess_that_was_used_once_is_no_waste(self):
        it = Experts(slots=1, spares=1)
        it.guess(1)
        it.use(1)
        it.use(2)
        it.counted(accesses=2, late=1, misses=1, loads=2, evictions=1, bytes_loaded=2 * N)

    def test_a_guess_that_gives_way_to_a_likelier_one_is_waste(self):
        it = Experts(slots=1, spares=1)
        it.guess(1)
        it.finish(1)
        it.guess(2)
        it.finish(2)
        it.counted(loads=2, bytes_loaded=2 * N, bytes_wasted=N)
        assert it.ready() == {2}

    def test_what_is_read_from_disk_is_counted_apart(self, tmp_path):
        file = tmp_path / "experts.bin"
        file.write_bytes(b"".join(blob(0, expert) for expert in range(6)))

        def home(layer, expert):
            if expert % 2:
                return HostHome(memoryview(blob(layer, expert)))
            crc = zlib.crc32(blob(layer, expert))
            return DiskHome(opened, N * expert, N, crc, f"expert {expert}")

        with FileIO(file) as opened:
            it = Experts(slots=4, homes=home, spares=1)
            it.use(0, 1, 2)
            it.guess(4)
            it.counted(accesses=3, misses=3, loads=4, bytes_loaded=4 * N, disk_bytes=3 * N)
            it.use(0, 1, 2)
            it.counted(
                **{"accesses": 6, "hits": 3, "misses": 3, "loads": 3},
                **{"bytes_loaded": 3 * N, "disk_bytes": 2 * N},
            )
            assert it.pool.where(0, 2) == Place("disk", "ready")
            assert it.pool.where(0, 3) == Place("host", "absent")

    def test_prompt_and_decode_and_layers_are_told_apart(self):
        it = Experts(slots=2, layers=2)
        it.pool.tracker.forward("prompt", tokens=5)
        it.use(0, 1)
        it.use(0, layer=1)
        it.pool.tracker.forward("decode", tokens=1)
        it.use(1)
        it.use(2, layer=1)
        stats = it.pool.tracker.stats()
        assert (stats.forwards, stats.tokens) == (2, 6)
        assert (stats.prompt.accesses, stats.prompt.misses) == (3, 3)
        assert (stats.decode.accesses, stats.decode.hits, stats.decode.misses) == (2, 1, 1)
        assert [layer.accesses for layer in stats.layers] == [3, 2]
        assert stats.total == stats.prompt + stats.decode == sum(stats.layers, Counters())

    def test_a_load_that_fails_after_a_reset_is_taken_back_where_it_was_counted(self):
        it = Experts(slots=1, spares=1)
        it.guess(1)
        it.pool.tracker.reset()
        it.link.fail(it.ticket(1), MoEColabError("gone"))
        it.use(2)
        it.counted(accesses=1, misses=1, loads=1, bytes_loaded=N)


class TestTheBooks:
    def test_counters_add_up_field_by_field(self):
        a = Counters(accesses=4, hits=1, speculative_hits=2, stall_seconds=0.5)
        b = Counters(accesses=4, late=1, bytes_wasted=7)
        both = a + b
        assert both == Counters(8, 1, 2, 1, bytes_wasted=7, stall_seconds=0.5)
        assert (a.hit_rate, both.hit_rate, Counters().hit_rate) == (0.75, 0.375, 0.0)
        assert a.accesses == 4, "adding changes neither"
        assert both.as_dict()["hit_rate"] == 0.375

    def test_a_snapshot_does_not_change_any_more(self):
        tracker = StatsTracker(2)
        tracker.layer(1).hits += 1
        before = tracker.stats()
        tracker.layer(1).hits += 1
        tracker.forward("decode", 1)
        assert (before.hits, before.layers[1].hits, before.forwards) == (1, 1, 0)
        assert tracker.stats().hits == 2
        with pytest.raises(AttributeError):
            before.forwards = 3

    def test_every_counter_of_the_total_is_an_attribute(self):
        stats = StatsTracker(1).stats()
        for name, value in stats.total.as_dict().items():
            assert getattr(stats, name) == value
        with pytest.raises(AttributeError, match="hit_ratio"):
            stats.hit_ratio  # noqa: B018

    def test_as_dict_can_be_written_as_json(self):
        tracker = StatsTracker(2)
        tracker.forward("decode", 3)
        tracker.layer(0).accesses += 1
        out = json.loads(json.dumps(tracker.stats().as_dict()))
        assert (out["accesses"], out["forwards"], out["tokens"]) == (1, 1, 3)
        assert out["decode"]["accesses"] == out["layers"][0]["accesses"] == 1
        assert out["prompt"]["accesses"] == out["layers"][1]["accesses"] == 0

    def test_reset_forgets_everything(self):
        tracker = StatsTracker(1)
        tracker.forward("decode", 3)
        tracker.layer(0).accesses += 1
        tracker.reset()
        assert tracker.stats() == StatsTracker(1).stats()

    def test_a_recording_may_end_in_another_thread(self, monkeypatch):
        """Between two looks at it."""
        looks = [None, SimpleNamespace(forward="this one")]
        recording = property(lambda _: looks.pop(), lambda *_: None)
        monkeypatch.setattr(StatsTracker, "recording", recording, raising=False)
        tracker = StatsTracker(1)
        assert tracker.recorder == "this one" and tracker.recorder is None


# ---------------------------------------------------------------------- guesses
class TestAGuess:
    def test_never_waits_and_goes_behind_demands(self):
        it = Experts(slots=3, spares=2)
        it.guess(1, 2)
        assert [ticket.urgent for ticket in it.link.pending] == [False, False]
        assert it.slot(1) == it.slot(2) == "loading"
        it.check_whole()

    def test_takes_spares_only(self):
        it = Experts(slots=3, spares=2)
        it.use(0, 1)  # and one slot is free
        it.guess(3, 0, 4, 5)
        assert [it.slot(expert) for expert in (3, 4, 5)] == ["loading", "loading", "absent"]
        assert census(it.pool)["free"] == 1
        assert it.ready() == {0, 1}
        it.check_whole()

    def test_of_somebody_there_or_under_way_does_nothing(self):
        it = Experts(slots=4, spares=2)
        it.use(0)
        it.guess(0, 1)
        it.guess(0, 1)
        assert len(it.link.pending) == 1
        it.counted(accesses=1, misses=1, loads=2, bytes_loaded=2 * N)

    def test_that_was_right_lets_its_layer_have_the_block_for_one_of_its_own(self):
        it = Experts(slots=1, spares=1, layers=2)
        it.use(0)
        it.guess(1)
        (guess,) = it.pool.spares.guesses.values()
        it.finish(1)
        assert it.ready() == {0, 1}, "nobody has left"
        it.use(1)
        assert it.ready() == {1} and it.pool.table[0][1].block is guess.block
        assert [block for block, _ in it.pool.spares.available(N)] == it.blocks[0]
        it.guess(2, layer=1)  # into what was a slot of layer 0
        it.use(2, layer=1)
        it.check_whole()
        it.counted(
            **{"accesses": 3, "misses": 1, "speculative_hits": 1, "late": 1, "loads": 3},
            **{"evictions": 1, "bytes_loaded": 3 * N},
        )

    def test_that_was_right_into_a_free_slot_evicts_nobody(self):
        it = Experts(slots=2, spares=1)
        it.use(0)
        it.guess(1)
        it.use(0, 1)
        assert it.ready() == {0, 1}
        assert census(it.pool)["free"] == 1
        it.check_whole()

    def test_comes_before_the_loads_that_are_asked_for_now(self):
        it = Experts(slots=4, spares=2)
        it.use(3)
        it.guess(5, 4)
        it.finish(5)
        assert it.use(0, 3, 4, 5) == [3, 4, 5, 0]
        it.check_whole()

    def test_keeps_its_turn_where_it_needs_the_slot_of_somebody_still_to_be_used(self):
        it = Experts(slots=2, spares=2)
        it.use(0, 1)
        it.guess(5)
        it.finish(5)
        assert it.use(0, 1, 4, 5) == [0, 1, 4, 5]
        it.check_whole()
        it.counted(
            **{"accesses": 6, "hits": 2, "speculative_hits": 1, "misses": 3, "loads": 4},
            **{"evictions": 2, "bytes_loaded": 4 * N},
        )

    def test_of_another_layer_does_not_touch_the_block_in_use(self):
        it = Experts(slots=1, layers=2, spares=1, policy="lru")
        it.use(3, layer=1)
        for expert, block in it.pool.experts(0, [0, 1]):
            it.guess(expert, layer=1)
            for ticket in it.link.pending:
                it.link.finish(ticket)
            assert block.buffer == blob(0, expert)
        assert it.ready(layer=1) == {1, 3}
        it.use(1, layer=1)
        assert it.ready(layer=1) == {1}
        it.check_whole()

    def test_of_the_layer_in_use_is_not_heard(self):
        it = Experts(slots=2, spares=1)
        use = it.begin(0, 1)
        before = it.link.pending
        it.guess(2)
        assert it.link.pending == before
        assert [expert for expert, _ in use] == [1]

    def test_is_made_behind_the_loads_of_the_layer_at_work(self):
        it = Experts(slots=2, spares=2, layers=2)
        use = it.pool.experts(0, [1], prefetches=[(1, [(3, 0.9), (4, 0.5)])])
        next(use)
        homes = it.pool.homes
        assert [ticket.home for ticket in it.started] == [homes[0][1], homes[1][3], homes[1][4]]
        assert [ticket.urgent for ticket in it.started] == [True, False, False]

    def test_gives_way_to_a_load_that_needs_its_room(self):
        it = Experts(slots=1, spares=2, layers=2, policy=Bypasser)
        it.use(0)
        it.guess(1, 2, layer=1)
        assert it.use(3, 4, 5) == [3, 4, 5]
        assert [it.slot(expert, layer=1) for expert in (1, 2)] == ["absent", "absent"]
        it.check_whole()

    @pytest.mark.parametrize("begun", [False, True])
    def test_that_was_wrong_is_called_back(self, begun):
        it = Experts(slots=2, spares=1)
        it.guess(4)
        ticket = it.ticket(4)
        if begun:
            it.link.begin(ticket, moved=10)
        it.use(0, 1)
        assert ticket.failed() and it.slot(4) == "absent"
        waste = {"bytes_wasted": 10} if begun else {}
        it.counted(accesses=2, misses=2, loads=2, bytes_loaded=2 * N + 10 * begun, **waste)

    @pytest.mark.parametrize("needed", [(4,), (0,), (0, 1), (0, 4)])
    @pytest.mark.parametrize("slots", [1, 2])
    def test_that_failed_is_not_noticed(self, needed, slots):
        it = Experts(slots=slots, spares=1)
        it.guess(4)
        it.link.fail(it.ticket(4), MoEColabError("gone"))
        it.use(*needed)
        n = len(needed)
        it.counted(accesses=n, misses=n, loads=n, bytes_loaded=n * N, **evicted(max(0, n - slots)))
        it.check_whole()

    def test_that_cannot_even_be_started_is_not_noticed(self):
        it = Experts(slots=2, spares=1)
        it.use(0, 1)
        start, it.link.start = it.link.start, refuse
        it.guess(2)
        it.link.start = start
        it.use(0, 1, 2)
        it.check_whole()
        it.check_books()

    def test_that_fails_when_it_is_needed_is_a_failed_load(self):
        it = Experts(slots=1, spares=1)
        it.guess(4)
        it.link.on_wait = lambda ticket: it.link.fail(ticket, MoEColabError("gone"))
        with pytest.raises(MoEColabError, match="gone"):
            it.use(4)
        it.link.on_wait = it.link.finish
        it.use(4)
        it.counted(accesses=2, late=1, misses=1, loads=1, bytes_loaded=N)
        it.check_whole()


def evicted(n: int) -> dict[str, int]:
    return {"evictions": n} if n else {}


# ---------------------------------------------------------------------- when something goes wrong
class Torn(Exception):
    """What a caller's own error is here."""


def fail_load(it: Experts) -> None:
    it.link.on_wait = lambda ticket: it.link.fail(ticket, MoEColabError("the disk is gone"))
    with pytest.raises(MoEColabError, match="the disk is gone"):
        it.use(1, 2, 3)


def fail_start(it: Experts) -> None:
    """The link can start nothing, as when the system has no thread left."""
    start, it.link.start = it.link.start, refuse
    with pytest.raises(RuntimeError, match="can't start"):
        it.use(1, 2, 3)
    it.link.start = start


def refuse(*_):
    raise RuntimeError("can't start new thread")


def interrupt(it: Experts) -> None:
    """Ctrl-C once, then the load arrives."""

    def on_wait(ticket):
        it.link.on_wait = it.link.finish
        raise KeyboardInterrupt

    it.link.on_wait = on_wait
    with pytest.raises(KeyboardInterrupt):
        it.use(1, 2, 3)


def interrupt_twice(it: Experts) -> None:
    """Ctrl-C again while the pool tidies up after the first."""

    def on_wait(ticket):
        raise KeyboardInterrupt

    it.link.on_wait = on_wait
    with pytest.raises(KeyboardInterrupt):
        it.use(1, 2, 3)
    assert 0 in it.pool.unfinished


def stop_asking(it: Experts) -> None:
    it.begin(1, 2, 3).close()


def forget(it: Experts) -> None:
    it.forgotten = it.begin(1, 2, 3)


def fail_while_computing(it: Experts) -> None:
    def compute():
        for expert, _ in it.pool.experts(0, [1, 2, 3]):
            raise Torn(expert)

    with pytest.raises(Torn) as caught:
        compute()
    it.traceback = caught.value  # which holds the frame of the loop


TROUBLES = [
    fail_load,
    fail_start,
    interrupt,
    interrupt_twice,
    stop_asking,
    forget,
    fail_while_computing,
]


@pytest.mark.parametrize("policy", ["lru", "none", Bypasser], ids=["lru", "none", "bypass"])
@pytest.mark.parametrize("trouble", TROUBLES)
class TestAfterTrouble:
    def broken(self, trouble, policy) -> Experts:
        it = Experts(slots=2, layers=2, spares=1, policy=policy)
        it.use(0)
        it.use(4, 5, layer=1)
        trouble(it)
        it.link.on_wait = it.link.finish
        return it

    def test_the_same_layer_goes_on(self, trouble, policy):
        it = self.broken(trouble, policy)
        for needed in ([1, 2, 3], [0, 1], [0, 1, 2, 3, 4, 5]):
            it.use(*needed)
            it.check_whole()

    def test_another_layer_finds_all_spares(self, trouble, policy):
        it = self.broken(trouble, policy)
        it.use(0, 1, 2, 3, layer=1)
        it.check_whole()
        it.use(1, 2)

    def test_guesses_go_on(self, trouble, policy):
        it = self.broken(trouble, policy)
        it.guess(5)
        it.guess(5, layer=1)
        it.use(4, 5)
        it.check_whole()

    def test_another_policy_can_take_over(self, trouble, policy):
        it = self.broken(trouble, policy)
        it.pool.change_cache(0, LayerCache(make_policy("fifo", 6), 2))
        it.use(0, 1, 2, 3)
        it.check_whole()

    def test_the_books_hold_what_arrived(self, trouble, policy):
        it = self.broken(trouble, policy)
        it.use(1, 2, 3)
        it.check_books()


def test_what_arrives_in_spite_of_a_failure_is_kept():
    it = Experts(slots=3)
    fates = {1: ManualLink.finish, 2: ManualLink.fail, 3: ManualLink.finish}

    def on_wait(ticket):
        expert = it.pool.homes[0].index(ticket.home)
        error = [MoEColabError("expert 2 is damaged")] if expert == 2 else []
        fates[expert](it.link, ticket, *error)

    it.link.on_wait = on_wait
    with pytest.raises(MoEColabError, match="expert 2"):
        it.use(1, 2, 3)
    assert it.ready() == {1, 3}
    it.counted(accesses=3, misses=3, loads=2, bytes_loaded=2 * N)
    it.check_whole()


def test_an_old_use_that_is_collected_late_does_not_disturb_a_new_one():
    it = Experts(slots=1, spares=1, policy=Bypasser)
    it.use(0)
    old = it.begin(0, 1, 2)
    new = it.pool.experts(0, [3, 4])
    expert, block = next(new)
    old.close()
    assert block.buffer == blob(0, expert) and it.slot(expert) == "ready"
    assert [expert for expert, _ in new] == [4]
    it.check_whole()


def test_an_old_use_cannot_go_on_after_a_new_one():
    it = Experts(slots=2)
    old = it.begin(0, 1)
    it.use(2, 3)
    with pytest.raises(MoEColabError, match="run again while one of its layers was at work"):
        next(old)
    it.use(0, 1)


def test_a_policy_that_answers_nonsense_leaves_the_pool_whole():
    class Nonsense(LRU):
        def victim(self, candidates, newcomer):
            return 99

    it = Experts(slots=2, policy=Nonsense)
    it.use(0, 1)
    with pytest.raises(MoEColabError, match="Nonsense answered 99"):
        it.use(2)
    it.use(0, 1)
    it.check_whole()
    assert it.ready() == {0, 1}


def test_a_policy_that_fails_half_way_leaves_the_pool_whole():
    class Shy(LRU):
        def admit(self, expert):
            if expert == 3:
                raise Torn

    it = Experts(slots=2, policy=Shy)
    it.use(0, 1)
    with pytest.raises(Torn):
        it.use(3)
    it.use(0, 1)
    it.check_whole()
    assert it.ready() == {0, 1}
    with pytest.raises(Torn):
        it.use(2, 3)
    it.use(0, 1, 2)
    it.check_whole()


# ---------------------------------------------------------------------- close
class TestClose:
    def test_lets_go_of_everything_and_says_so(self):
        it = Experts(slots=2, spares=1, pinned=[5], layers=2)
        it.use(0, 5)
        it.guess(1, layer=1)
        it.pool.close()
        counts = census(it.pool)
        assert counts["ready"] == counts["loading"] == counts["free"] == 0
        assert it.link.pending == []
        for layer in (0, 1):
            with pytest.raises(MoEColabError, match="closed: load it again"):
                it.use(0, layer=layer)
            it.guess(2, layer=layer)
        it.pool.close()

    def test_books_guesses_that_were_dropped(self):
        it = Experts(slots=3, spares=2)
        it.guess(0, 1)
        it.finish(0)
        it.pool.close()
        it.counted(loads=1, bytes_loaded=N, bytes_wasted=N)

    @pytest.mark.parametrize("policy", ["lru", "none"])
    @pytest.mark.parametrize("needed", [(0, 1), (0, 1, 2, 3), (5,), (4, 5)])
    def test_in_the_middle_of_a_use_ends_it(self, policy, needed):
        it = Experts(slots=2, policy=policy, pinned=[5])
        use = it.begin(*needed)
        it.pool.close()
        with pytest.raises(MoEColabError, match="was closed while one of its layers was at work"):
            next(use)

    def test_with_a_use_left_open(self):
        it = Experts(slots=2)
        use = it.begin(0, 1)
        it.pool.close()
        use.close()
        assert census(it.pool)["ready"] == 0

    def test_stops_the_thread(self):
        it = Experts(ThreadLink())
        it.use(0, 1)
        it.pool.close()
        assert not it.link.thread.is_alive()


# ---------------------------------------------------------------------- another policy
class TestChangeCache:
    def test_who_is_there_stays_and_the_new_policy_knows_them(self):
        it = Experts(slots=2, spares=1)
        it.use(0, 5)
        it.use(1)
        it.guess(2)
        it.pool.change_cache(0, LayerCache(make_policy("fifo", 6), 2))
        it.check_whole()
        assert it.ready() == {1, 5} and it.slot(2) == "loading"
        it.use(1, 2)
        assert it.ready() == {1, 2}
        it.use(3)
        assert it.ready() == {2, 3}, "1 was reported first"

    def test_that_keeps_nothing_empties_the_slots(self):
        it = Experts(slots=2)
        it.use(0)
        it.pool.change_cache(0, LayerCache(make_policy("none", 6), 2))
        assert census(it.pool)["free"] == 2
        it.counted(accesses=1, misses=1, loads=1, bytes_loaded=N)
        it.use(0, 1, 2)
        it.pool.change_cache(0, LayerCache(make_policy("lru", 6), 2))
        it.use(0, 1)
        it.check_whole()
        assert it.ready() == {0, 1}


# ---------------------------------------------------------------------- long random runs
def random_run(it: Experts, dice: random.Random, rounds: int, between: Callable) -> None:
    """Forwards over all layers, a guess for the next layer in each."""
    layers, experts = len(it.pool.homes), len(it.pool.homes[0])
    for _ in range(rounds):
        for layer in range(layers):
            needed = sorted(dice.sample(range(experts), dice.randint(1, 4)))
            after = (layer + 1) % layers
            for number, (expert, block) in enumerate(it.pool.experts(layer, needed)):
                if number == 0:
                    it.guess(*dice.sample(range(experts), 2), layer=after)
                between()
                assert block.buffer == blob(layer, expert)
            between()


@pytest.mark.parametrize("policy", [*POLICIES, Bypasser])
class TestLongRuns:
    def test_with_a_thread(self, policy):
        it = Experts(ThreadLink(), slots=3, layers=3, spares=2, policy=policy)
        dice = random.Random(1)
        random_run(it, dice, rounds=40, between=lambda: None)
        it.check_whole()
        it.pool.close()
        it.check_books()

    def test_with_loads_that_begin_finish_and_fail_at_random(self, policy):
        it = Experts(slots=2, layers=3, spares=1, policy=policy, pinned=[5])
        dice, all_blocks = random.Random(2), blocks_counted(it.pool)

        def between():
            assert blocks_counted(it.pool) == all_blocks
            for ticket in it.link.pending:
                fate = dice.choice(["stay", "stay", "begin", "finish", "fail"])
                if fate == "finish":
                    it.link.finish(ticket)
                elif fate == "begin":
                    it.link.begin(ticket)
                elif fate == "fail" and not ticket.urgent:
                    it.link.fail(ticket, MoEColabError("gone"))

        random_run(it, dice, rounds=60, between=between)
        it.check_whole()
        it.pool.close()
        for ticket in it.link.pending:  # a real link would not return before they have ended
            it.link.finish(ticket)
        it.check_books()

    def test_in_virtual_time_twice_the_same(self, policy):
        (stats, now, computed), again = self.timed(policy), self.timed(policy)
        assert (stats, now, computed) == again
        assert now == pytest.approx(stats.stall_seconds + 0.3 * computed)

    @staticmethod
    def timed(policy):
        it = Experts(ClockLink(N, chunk=N // 4), slots=2, layers=3, spares=1, policy=policy)
        computed = []

        def between():
            it.link.compute(0.3)
            computed.append(0.3)

        random_run(it, random.Random(3), rounds=30, between=between)
        it.check_whole()
        return it.pool.tracker.stats(), it.link.now, len(computed)


def test_a_damaged_expert_is_named_by_the_use_that_needs_it(tmp_path):
    path = tmp_path / "experts.bin"
    path.write_bytes(b"".join(blob(0, expert) for expert in range(6)))
    with FileIO(path) as file:
        it = Experts(
            ThreadLink(),
            homes=lambda layer, expert: DiskHome(
                file, N * expert, N, zlib.crc32(blob(layer, expert + (expert == 3))), f"e{expert}"
            ),
        )
        it.guess(3)
        it.use(1, 2)
        with pytest.raises(MoEColabError, match=r"e3 in .*experts\.bin is damaged"):
            it.use(3, 4)
        it.use(1, 2)
        it.check_whole()
        it.pool.close()
