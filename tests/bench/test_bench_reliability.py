"""The benchmark of reliability: how trials end, its short form, what it finds where something is
broken, and its command line."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import partial
from operator import attrgetter
from pathlib import Path
from random import Random

import pytest

import moe_colab as mc
from moe_colab.__main__ import main
from moe_colab.bench import concurrency, damage, disturbances, processes, reliability
from moe_colab.bench.processes import run_all
from moe_colab.bench.trials import FAULTS, Kind, Limits, Wrong, run_kind
from moe_colab.cache.homes import DiskHome

BY_NAME = {kind.name: kind for kind in reliability.KINDS}


# ---------------------------------------------------------------------- how a trial ends
def refuse(text: str) -> None:
    raise mc.MoEColabError(text)


def fail(error: BaseException) -> None:
    raise error


def wait_whatever_happens() -> None:
    while True:
        try:
            time.sleep(1)
        except Exception:
            continue


class Panic(BaseException):
    """As of a library in Rust."""


ENDS = {
    "nothing": (lambda: None, "right"),
    "a refusal": (partial(refuse, "one line"), "refused"),
    "two lines": (partial(refuse, "one line\nand another"), "raw_errors"),
    "wrong": (partial(fail, Wrong("another text")), "wrong"),
    "raw": (partial(fail, KeyError("x")), "raw_errors"),
    "assertion": (partial(fail, AssertionError()), "raw_errors"),
    "out of memory": (partial(fail, MemoryError()), "raw_errors"),
    "panic": (partial(fail, Panic()), "raw_errors"),
    "exit": (partial(fail, SystemExit(0)), "raw_errors"),
    "hang": (partial(time.sleep, 30), "hangs"),
    "hang that catches errors": (wait_whatever_happens, "hangs"),
    "a little memory": (lambda: bytearray(8 << 20), "right"),
    "much memory": (lambda: bytearray(b"x") * (80 << 20), "over_allocations"),
}


@pytest.mark.parametrize("name", ENDS)
def test_how_a_trial_ends(name):
    call, outcome = ENDS[name]
    kind = Kind("section", name, 1, lambda folder: lambda dice: call())
    (ended,) = run_kind(kind, [7], 0, Limits(seconds=0.3, nbytes=40 << 20))
    assert (ended.kind, ended.number, ended.outcome) == (name, 7, outcome)
    assert ended.detail or outcome == "right"
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_refusal_is_wrong_where_nothing_may_be_refused():
    kind = Kind("s", "k", 1, lambda folder: lambda dice: refuse("no room"), refusable=False)
    (ended,) = run_kind(kind, [0], 0)
    assert ended.outcome == "wrong" and "no room" in ended.detail


def test_dice_depend_on_seed_kind_and_number_alone(cache_folder):
    seen = []

    def prepare(folder: Path):
        assert list(folder.iterdir()) == []
        assert Path(os.environ["MOE_COLAB_CACHE"]).parent == folder
        return lambda dice: seen.append(dice.random())

    def throw(name: str, numbers: list[int], seed: int) -> list[float]:
        seen.clear()
        assert len(list(run_kind(Kind("s", name, 9, prepare), numbers, seed))) == len(numbers)
        return list(seen)

    first = throw("a", [0, 1, 2], 5)
    assert throw("a", [2], 5) == first[2:]
    assert len({*first, *throw("b", [0], 5), *throw("a", [0], 6)}) == 5
    assert os.environ["MOE_COLAB_CACHE"] == str(cache_folder)


# ---------------------------------------------------------------------- processes
def crashing(folder: Path):
    return lambda dice: os._exit(3) if dice.random() < 0.3 else None


def deaf(folder: Path):
    """Holds the process so that no alarm is heard."""

    def trial(dice: Random) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        time.sleep(600)

    return trial


def harmless(folder: Path):
    return lambda dice: None


def unprepared(folder: Path):
    raise ValueError("no such thing")


def gone(folder: Path):
    os._exit(4)


@pytest.mark.slow
def test_a_process_that_crashes_or_falls_silent_is_started_again(monkeypatch):
    monkeypatch.setattr(processes, "SILENCE", 12)
    kinds = [
        Kind("s", "crashing", 2, crashing),
        Kind("s", "deaf", 1, deaf),
        Kind("s", "harmless", 40, harmless),
    ]
    ended = list(run_all(kinds, 0, 1))
    crashes = [Random(f"0/crashing/{number}").random() < 0.3 for number in range(2)]
    assert any(crashes) and not all(crashes)
    expected = ["raw_errors" if crash else "right" for crash in crashes] + ["hangs"]
    assert [one.outcome for one in ended] == expected + ["right"] * 40
    assert [one.number for one in ended] == [0, 1, 0, *range(40)]


@pytest.mark.slow
def test_processes_share_the_trials():
    kinds = [Kind("s", name, count, harmless) for name, count in {"a": 5, "b": 1, "c": 4}.items()]
    ended = sorted((one.kind, one.number) for one in run_all(kinds, 0, 2))
    assert ended == [("a", n) for n in range(5)] + [("b", 0)] + [("c", n) for n in range(4)]
    assert [(one.kind, one.number) for one in run_all(kinds[2:], 0, 2, trial=3)] == [("c", 3)]


@pytest.mark.slow
@pytest.mark.parametrize("prepare, says", [(unprepared, "no such thing"), (gone, "ended: 4")])
def test_trials_that_cannot_be_prepared_end_the_run(prepare, says):
    with pytest.raises(mc.MoEColabError, match=f"trials of bad could not.*{says}"):
        list(run_all([Kind("s", "good", 2, harmless), Kind("s", "bad", 2, prepare)], 0, 1))


# ---------------------------------------------------------------------- the short form
@pytest.mark.parametrize("kind", [*disturbances.KINDS, *concurrency.KINDS], ids=attrgetter("name"))
def test_disturbed_work(kind):
    ended = list(run_kind(kind, range(6), 1))
    assert len(ended) == 6 and not [one for one in ended if one.outcome in FAULTS]


def test_the_long_run_is_long():
    counts = {}
    for kind in reliability.KINDS:
        counts[kind.section] = counts.get(kind.section, 0) + kind.count
    assert counts["mutants"] == 100_000 and counts["live changes"] == 2_000
    assert {*counts} == {
        *("mutants", "flipped bits", "kills", "interrupts", "live changes", "threads"),
        *("full disks", "read errors"),
    }
    assert len(BY_NAME) == len(reliability.KINDS)


# ---------------------------------------------------------------------- what it finds
def faults_of(name: str, count: int) -> set[str]:
    return {one.outcome for one in run_kind(BY_NAME[name], range(count), 2)} & {*FAULTS}


def unchecked(home: DiskHome, buffer: memoryview):
    home._read(buffer, home.offset)
    yield len(buffer)


def in_place(path, content):
    """Not by way of another file, and slowly."""
    with open(path, "wb", buffering=0) as file:
        for start in range(0, len(content), 64):
            file.write(content[start : start + 64])
    return Path(path)


@pytest.mark.parametrize("name", ["bit of an expert", "bit under a model"])
def test_experts_that_are_not_checked_are_found(name, monkeypatch):
    monkeypatch.setattr(DiskHome, "fill", unchecked)
    assert faults_of(name, 30) == {"wrong"}


@pytest.mark.parametrize("name", ["kills: saving", "interrupts: saving", "full disks: saving"])
def test_files_that_are_written_in_place_are_found(name, monkeypatch):
    monkeypatch.setattr("moe_colab.trace.archive.write_file", in_place)
    assert faults_of(name, 60)


def test_short_reads_that_are_taken_for_whole_ones_are_found(monkeypatch):
    monkeypatch.setattr(
        DiskHome, "_read", lambda self, part, at: os.preadv(self.file.fileno(), [part], at)
    )
    assert faults_of("read errors: generating", 20) & {"wrong", "raw_errors"}


def test_a_setting_that_changes_the_tokens_is_found(monkeypatch):
    def broken(handle, dice):
        handle._model().lm_head.weight.data.neg_()
        return "lru"

    monkeypatch.setitem(concurrency.SETTINGS, "policy", broken)
    assert faults_of("live changes", 3) == {"wrong"}


def test_a_raw_error_of_a_thread_is_found(monkeypatch):
    def broken(handle, dice):
        raise ZeroDivisionError

    monkeypatch.setitem(concurrency.SETTINGS, "policy", broken)
    assert faults_of("live changes", 2) == faults_of("threads", 8) == {"raw_errors"}


# ---------------------------------------------------------------------- the command line
def broken(folder: Path):
    return lambda dice: fail(KeyError("x")) if dice.random() < 0.2 else refuse("no")


@pytest.mark.slow
def test_a_fault_is_printed_so_that_it_can_be_repeated(monkeypatch, tmp_path, capsys):
    kinds = [Kind("s", "good", 2_000, harmless), Kind("t", "bad", 20_000, broken)]
    monkeypatch.setattr(reliability, "KINDS", kinds)
    out = tmp_path / "report.json"
    command = ["bench", "reliability", "--processes", "1", "--seed", "3"]
    assert main([*command, "--scale", "0.001", "--out", str(out)]) == 1
    said, report = capsys.readouterr().out, json.loads(out.read_text())
    numbers = [n for n in range(20) if Random(f"3/bad/{n}").random() < 0.2]
    assert [fault["trial"] for fault in report["faults"]] == numbers and numbers
    assert f"raw_errors: --kind 'bad' --trial {numbers[0]} --seed 3" in said
    assert json.loads(said.splitlines()[-1]) == report
    assert report["sections"] == {"s": 2, "t": 20}
    good, bad = report["kinds"]
    assert (good["right"], bad["raw_errors"], bad["refused"]) == (
        2,
        len(numbers),
        20 - len(numbers),
    )
    assert report["total"]["trials"] == 22 and report["total"]["raw_errors"] == len(numbers)
    assert main([*command, "--kind", "bad", "--trial", str(numbers[0])]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["total"]["trials"] == 1
    assert main([*command, "--kind", "good", "--trial", "0"]) == 0


@pytest.mark.parametrize(
    "arguments, says",
    [(["--kind", "nonsense"], "'manifest'"), (["--scale", "0"], "--scale")],
)
def test_arguments_that_make_no_sense(arguments, says, capsys):
    assert main(["bench", "reliability", *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_benchmark_in_short(tmp_path):
    """At least one trial of each kind, in a process of its own."""
    kinds = reliability.scaled(reliability.KINDS, 0.0005)
    report = reliability.measure(kinds, seed=4, processes=1)
    assert not report["faults"] and not any(report["total"][name] for name in FAULTS)
    assert report["total"]["trials"] == sum(kind.count for kind in kinds)
    assert all(row["trials"] and row["per_second"] > 0 for row in report["kinds"])
    assert {kind.section for kind in damage.KINDS} < {*report["sections"]}
