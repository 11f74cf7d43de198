"""Trials in several processes, which outlive crashes and hangs of a trial.

Knows kinds and numbers of trials; knows nothing of what is tried.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import transformers

from ..errors import MoEColabError
from .trials import Ended, Kind, run_kind

SILENCE = 120.0  # seconds after which a process that says nothing is killed


@dataclass
class Worker:
    """A process that runs every `step`-th trial of each kind, from its own `first` on. place and
    number: of the kind and of its trial that run now; None while the kind is prepared."""

    kinds: list[Kind]
    seed: int
    first: int
    step: int
    place: int = 0
    number: int | None = None
    heard: float = 0.0
    process: Any = None
    pipe: Any = None

    def start(self) -> None:
        """Begin, or go on after the trial that ended the process before."""
        context = multiprocessing.get_context("spawn")
        after = self.first if self.number is None else self.number + self.step
        self.pipe, theirs = context.Pipe(duplex=False)
        args = (theirs, self.kinds, self.seed, self.place, after, self.first, self.step)
        self.process = context.Process(target=serve, args=args, daemon=True)
        self.process.start()
        theirs.close()
        self.heard = time.monotonic()

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def died(self) -> Ended:
        """How the trial ended that crashed the process, or holds it so that no alarm is heard."""
        self.process.join(1)
        silent, kind = self.process.is_alive(), self.kinds[self.place].name
        how = "it holds the process" if silent else f"the process ended: {self.process.exitcode}"
        if self.number is None:
            raise MoEColabError(f"the trials of {kind} could not be prepared: {how}.")
        return Ended(kind, self.number, "hangs" if silent else "raw_errors", how)

    def hear(self) -> Ended | None:
        """Take one message: how a trial ended, or None where another one begins. Raises EOFError
        where the process has ended."""
        message, self.heard = self.pipe.recv(), time.monotonic()
        if isinstance(message, str):
            kind = self.kinds[self.place].name
            last = message.strip().splitlines()[-1]
            raise MoEColabError(f"the trials of {kind} could not be prepared: {last}.")
        if isinstance(message, Ended):
            return message
        self.place, self.number = message
        return None


def serve(
    pipe: Connection, kinds: list[Kind], seed: int, place: int, start: int, first: int, step: int
) -> None:
    """A worker's process, from the trial `start` of the kind at `place` on: says which trial begins
    (place, number), and how it ended."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    def announced(here: int, numbers: range) -> Iterator[int]:
        for number in numbers:
            pipe.send((here, number))
            yield number

    try:
        for here, kind in list(enumerate(kinds))[place:]:
            numbers = range(start if here == place else first, kind.count, step)
            if numbers:
                pipe.send((here, None))
                for ended in run_kind(kind, announced(here, numbers), seed):
                    pipe.send(ended)
        pipe.send((len(kinds), None))
    except Exception:
        pipe.send(traceback.format_exc())


def run_all(
    kinds: list[Kind], seed: int, processes: int, trial: int | None = None
) -> Iterator[Ended]:
    """Run all trials of all kinds in so many processes, or only the one of that number. A process
    that crashes or hangs is started again after the trial that did it. Raises MoEColabError where a
    kind cannot be prepared."""
    firsts = range(processes)
    if trial is not None:
        firsts, kinds = range(trial, trial + 1), [replace(kind, count=trial + 1) for kind in kinds]
    running = [Worker(kinds, seed, first, len(firsts)) for first in firsts]
    try:
        for worker in running:
            worker.start()
        while running:
            ready = wait([worker.pipe for worker in running], timeout=1)
            for worker in list(running):
                try:
                    ended = worker.hear() if worker.pipe in ready else None
                    silent = time.monotonic() - worker.heard > SILENCE
                except EOFError:
                    ended, silent = None, True
                if silent:
                    ended = worker.died()
                if ended is not None and (silent or ended.outcome == "hangs"):
                    worker.stop()  # threads of the trial may still run
                    worker.start()
                if ended is not None:
                    yield ended
                elif worker.place == len(kinds):
                    running.remove(worker)
                    worker.stop()
    finally:
        for worker in running:
            worker.stop()
