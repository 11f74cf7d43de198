"""Trials: one function is called with many dice, and what came of each call is counted.

Everything random in a trial comes from its dice, which follow from the seed, the kind and the
number. Knows time and memory of one process; knows nothing of what is tried.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import torch

from ..errors import MoEColabError
from .machine import resident_peak

HANG = 20.0  # seconds
OVER = 512 << 20  # bytes
DEPTH = 8  # calls of each thread that the report of a hang shows
FAULTS = ("wrong", "raw_errors", "hangs", "over_allocations")
OUTCOMES = ("right", "refused", *FAULTS)

Trial = Callable[[Random], None]
"""Raises Wrong where something is wrong, MoEColabError where what it tried was refused."""


class Wrong(Exception):
    """What a trial found to be wrong."""


class Hang(BaseException):
    """The time of a trial is over. No `except Exception` may keep it."""


@dataclass(frozen=True)
class Kind:
    """One kind of trial. count: trials of the long run. prepare: makes, in an empty folder, what
    the trials need, and returns the trial; another process can import it. refusable: whether a
    trial may be refused."""

    section: str
    name: str
    count: int
    prepare: Callable[[Path], Trial]
    refusable: bool = True


@dataclass(frozen=True)
class Limits:
    """What one trial may take: seconds, and bytes of memory over what was in use before."""

    seconds: float = HANG
    nbytes: int = OVER


@dataclass(frozen=True)
class Ended:
    """How one trial ended. outcome: of OUTCOMES. detail: what was wrong."""

    kind: str
    number: int
    outcome: str
    detail: str = ""
    seconds: float = 0.0


# ---------------------------------------------------------------------- one process
def run_kind(
    kind: Kind, numbers: Iterable[int], seed: int, limits: Limits | None = None
) -> Iterator[Ended]:
    """Run these trials of a kind, in a folder and with a cache folder of their own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, surroundings(folder):
        trial = kind.prepare(Path(folder))
        for number in numbers:
            dice, start = Random(f"{seed}/{kind.name}/{number}"), time.perf_counter()
            outcome, detail = attempt(trial, dice, limits or Limits(), kind.refusable)
            yield Ended(kind.name, number, outcome, detail, time.perf_counter() - start)


@contextlib.contextmanager
def surroundings(folder: str) -> Iterator[None]:
    """One thread for products, a cache folder of one's own, and a Ctrl-C that acts."""
    threads, cache = torch.get_num_threads(), os.environ.get("MOE_COLAB_CACHE")
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    os.environ["MOE_COLAB_CACHE"] = os.path.join(folder, "cache")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGINT, handler)
        del os.environ["MOE_COLAB_CACHE"]
        if cache is not None:
            os.environ["MOE_COLAB_CACHE"] = cache


def attempt(trial: Trial, dice: Random, limits: Limits, refusable: bool) -> tuple[str, str]:
    """Call a trial: (outcome, detail)."""
    before = resident_peak(reset=True)
    try:
        with alarm(limits.seconds):
            outcome = call(trial, dice)
    except Hang as error:
        return "hangs", str(error)
    if outcome[0] == "refused" and not refusable:
        return "wrong", f"refused: {outcome[1]}"
    if (taken := resident_peak() - before) > limits.nbytes:
        return "over_allocations", f"{taken:,} bytes of memory"
    return outcome


def call(trial: Trial, dice: Random) -> tuple[str, str]:
    try:
        trial(dice)
    except MoEColabError as error:
        lines = str(error).count("\n") + 1
        return ("refused", str(error)) if lines == 1 else ("raw_errors", f"{lines} lines: {error}")
    except Wrong as error:
        return "wrong", str(error)
    except (Hang, KeyboardInterrupt):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        place = traceback.extract_tb(error.__traceback__)[-1]
        return "raw_errors", f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
    return "right", ""


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raises Hang in the main thread after so many seconds, again and again until it ends."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang(where_threads_are())

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def where_threads_are() -> str:
    """The innermost calls of every thread, as "function (file:line) < its caller < ..."."""
    stacks = []
    for top in sys._current_frames().values():
        calls = reversed(traceback.extract_stack(top, limit=DEPTH))
        stacks.append(" < ".join(f"{c.name} ({Path(c.filename).name}:{c.lineno})" for c in calls))
    return " | ".join(stacks)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another value for one attribute meanwhile."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class Aside(threading.Thread):
    """A thread that keeps its error for the one that waits for it."""

    def __init__(self, call: Callable[[], Any]):
        super().__init__(daemon=True)
        self.work, self.error = call, None
        self.start()

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        """Wait for it. Raises its error."""
        self.join()
        if self.error is not None:
            raise self.error
