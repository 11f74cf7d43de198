"""Which ways of multiplying are used: those that passed a trial on this machine.

Knows rungs, trials and formats. A choice holds for the process, for all matrices of one format,
shape, dtype and device, whatever lies in a slot: so text never depends on slots or policy. Another
process may time otherwise and choose otherwise; "plain" is the same everywhere.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..format import Format, Shape
from .int4pack import Int4Pack
from .plain import Plain, Rung
from .self_test import MOST, Trial

AUTO, PLAIN = "auto", "plain"

log = logging.getLogger("moe_colab")


class Case(NamedTuple):
    """What matrices must share to be multiplied alike."""

    form: Format
    shape: Shape
    dtype: torch.dtype
    device: torch.device

    def __str__(self) -> str:
        (rows, columns), form = self.shape, self.form
        bits = f"{form.bits} bits in groups of {form.group} along axis {form.axis}"
        return f"{rows} x {columns} of {bits}, {str(self.dtype)[6:]} on {self.device}"


@dataclass(frozen=True)
class Choice:
    """`rungs`: the usable ones, the best first and plain last; `left_out`: {name: why not}."""

    case: Case
    rungs: tuple[Rung, ...]
    left_out: Mapping[str, str]

    def __str__(self) -> str:
        used = ", then ".join(rung.name for rung in self.rungs)
        return f"{self.case}: {used}" + "".join(f"; not {n}: {w}" for n, w in self.left_out.items())


class Ladder:
    """`rungs`: the best first; plain stands below them and is always there."""

    def __init__(self, rungs: Sequence[Rung] = ()):
        self._above, self._lock = tuple(rungs), threading.Lock()
        self._choices: dict[Case, Choice] = {}
        self._warned: set[str] = set()

    def choose(
        self, form: Format, shape: Shape, dtype: torch.dtype, device: torch.device
    ) -> tuple[Rung, ...]:
        """The usable rungs, the best first. The first call for such a matrix tries them, which
        takes up to a second or two."""
        case = Case(form, tuple(shape), dtype, device)
        if case not in self._choices:
            with self._lock:
                if case not in self._choices:
                    self._choices[case] = self._choose(case)
        return self._choices[case].rungs

    def prepared_bytes(
        self, form: Format, shape: Shape, dtype: torch.dtype, device: torch.device
    ) -> int:
        """What is kept beside such a matrix, at the most."""
        rungs = self.choose(form, shape, dtype, device)
        return sum(rung.prepared_bytes(form, shape) for rung in rungs)

    def report(self) -> list[Choice]:
        """Every choice made so far."""
        return list(self._choices.values())

    def _choose(self, case: Case) -> Choice:
        used, left_out = [], {}
        for rung in self._above:
            why, level = tried(rung, case)
            if why is None:
                used.append(rung)
                log.info("%s multiplies %s", rung.name, case)
                continue
            left_out[rung.name] = why
            if level == logging.WARNING and rung.name in self._warned:
                level = logging.INFO  # one warning is enough
            elif level == logging.WARNING:
                self._warned.add(rung.name)
            log.log(level, "%s is not used for %s: %s", rung.name, case, why)
        return Choice(case, (*used, Plain()), left_out)


def tried(rung: Rung, case: Case) -> tuple[str | None, int]:
    """Why a rung must not be used, if so, and how loudly that is to be said: only what is broken
    deserves a warning."""
    try:
        if not rung.fits(*case):
            return "it is not made for this", logging.DEBUG
        with torch.inference_mode():
            trial = Trial(*case)
            if (fault := trial.fault(rung)) is not None:
                return fault, logging.WARNING
            for rows in (1, min(rung.max_rows, MOST)):
                plain, own = (1e3 * seconds for seconds in trial.times(rung, rows))
                if own >= plain:
                    took = f"{rows} rows took {own:.2g} ms, half of preparing included"
                    return f"{took}, plain {plain:.2g}", logging.INFO
    except Exception as error:  # whatever a kernel may raise: plain is there
        return f"it raised {type(error).__name__}: {error}", logging.WARNING
    return None, logging.INFO


_LADDERS = {AUTO: Ladder([Int4Pack()]), PLAIN: Ladder()}


def named(kernels: str) -> Ladder:
    """The process's ladder for what a user may choose: "auto", or "plain" alone."""
    return _LADDERS[kernels]


def report() -> list[Choice]:
    """What "auto" has chosen so far in this process, and what it left out and why; each prints as
    one line."""
    return named(AUTO).report()
