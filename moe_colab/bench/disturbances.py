"""Disturbed work: kills, interrupts, full disks, read errors. Afterwards the same work gives the
right result.

Knows the work and what disturbs it; knows no counts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import moe_colab as mc

from .. import files
from .trials import Aside, Kind, Trial, Wrong, replaced
from .work import WORKS, Work

EVENTS = ("call", "c_return")  # after these, and not before a call, Python handles signals
SPARED = {"logging"}  # modules of Python that keep their lock where a signal raises an error


# ---------------------------------------------------------------------- moments
class Moment:
    """Does something at the n-th call of a function in this thread, counted from 0; inside SPARED
    modules, at the next one outside."""

    def __init__(self, n: int | None, act: Callable[[], Any] = int):
        self.n, self.act, self.seen = n, act, 0

    def __call__(self, frame: FrameType, event: str, function: Any) -> None:
        if event in EVENTS:
            self.seen += 1
            if self.n is not None and self.seen > self.n and not spared(frame):
                sys.setprofile(None)
                self.act()


def spared(frame: FrameType | None) -> bool:
    """Whether a spared module is at work."""
    while frame is not None:
        if frame.f_globals.get("__name__") in SPARED:
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def meanwhile(moment: Moment) -> Iterator[None]:
    """Let this thread meet the moment."""
    sys.setprofile(moment)
    try:
        yield
    finally:
        sys.setprofile(None)


def calls_of(work: Work) -> int:
    """How many moments the work has, from its beginning."""
    work.clear()
    moment = Moment(None)
    with meanwhile(moment):
        work.do()
    return moment.seen


# ---------------------------------------------------------------------- disturbances
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(folder: Path, make: Callable[[Path], Work]) -> Trial:
    """The process is killed at some moment of the work, which goes on in another one."""
    work = make(folder)
    calls = calls_of(work)

    def trial(dice: Random) -> None:
        work.clear()
        child = os.fork()
        if child == 0:
            signal.setitimer(signal.ITIMER_REAL, 0)
            code = 1
            with contextlib.suppress(BaseException):
                with meanwhile(Moment(dice.randrange(calls), die)):
                    work.do()
                code = 0
            os._exit(code)
        try:
            _, status = os.waitpid(child, 0)
        except BaseException:
            os.kill(child, signal.SIGKILL)
            raise
        if os.waitstatus_to_exitcode(status) not in (0, -signal.SIGKILL):
            raise Wrong(f"the process that was to be killed failed: {status}")
        work.peek()
        work.finish()

    return trial


def interrupted(folder: Path, make: Callable[[Path], Work]) -> Trial:
    """Ctrl-C at some moment of the work. Another thread does it again, for the interrupted one may
    hold no lock; then the interrupted one does, for no state of torch may be left in it."""
    work = make(folder)
    calls = calls_of(work)

    def trial(dice: Random) -> None:
        work.clear()
        interrupt = partial(signal.raise_signal, signal.SIGINT)
        moment = Moment(dice.randrange(calls), interrupt)
        with contextlib.suppress(KeyboardInterrupt), meanwhile(moment):
            work.do()
        Aside(work.peek).end()
        Aside(work.finish).end()
        work.clear()
        work.finish()

    return trial


def without_room(folder: Path, make: Callable[[Path], Work]) -> Trial:
    """No file can get longer than so many bytes, as on a full disk."""
    work = make(folder)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]

    def trial(dice: Random) -> None:
        work.clear()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        refused = None
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (dice.randrange(1 + dice.choice(sizes)), before[1])
        )
        try:
            if not work.right(work.do()):
                raise Wrong("another result on a full disk")
        except mc.MoEColabError as error:
            refused = error
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        work.peek()
        work.finish()
        if refused:
            raise refused

    return trial


def unread(folder: Path, make: Callable[[Path], Work]) -> Trial:
    """Reads fail now and then, or bring less than they are asked for."""
    work, real = make(folder), os.preadv

    def trial(dice: Random) -> None:
        work.clear()
        odds, refused = dice.choice((0, 0.003, 0.03, 0.3)), None

        def fail() -> None:
            if dice.random() < odds:
                raise OSError(dice.choice((errno.EIO, errno.ESTALE)), "the disk does not answer")

        def preadv(file: int, parts: list[memoryview], offset: int) -> int:
            fail()
            most = dice.choice((len(parts[0]), dice.randint(1, len(parts[0]))))
            return real(file, [parts[0][:most]], offset)

        class Flawed(files.ReadFile):
            def read(self, size: int = -1) -> bytes:
                fail()
                return super().read(size if size < 2 else dice.randint(1, size))

            def readall(self) -> bytes:
                fail()
                return super().readall()

            def readinto(self, buffer: Any) -> int:
                fail()
                return super().readinto(memoryview(buffer)[: dice.randint(1, len(buffer))])

        with replaced(os, "preadv", preadv), replaced(files, "ReadFile", Flawed):
            try:
                if not work.right(work.do()):
                    raise Wrong("another result while reads fail")
            except mc.MoEColabError as error:
                refused = error
        work.finish()
        if refused:
            raise refused

    return trial


def kinds(
    section: str, prepare: Callable[..., Trial], *, refusable: bool, **counts: int
) -> list[Kind]:
    """The kinds of one section: the disturbance of each work, so many times."""
    return [
        Kind(section, f"{section}: {name}", count, partial(prepare, make=WORKS[name]), refusable)
        for name, count in counts.items()
    ]


KINDS = [
    *kinds(
        "kills", killed, refusable=False, packing=1_000, quantizing=400, loading=600, saving=500
    ),
    *kinds(
        *("interrupts", interrupted),
        **{"packing": 1_000, "quantizing": 400, "loading": 1_000, "saving": 500},
        **{"generating": 3_000, "refusable": False},
    ),
    *kinds(
        *("full disks", without_room),
        **{"packing": 1_000, "quantizing": 400, "loading": 600, "saving": 500, "refusable": True},
    ),
    *kinds(
        *("read errors", unread),
        **{"packing": 1_000, "quantizing": 400, "loading": 1_000, "saving": 500},
        **{"generating": 3_000, "refusable": True},
    ),
]
