"""Kernel dispatch: a kernel is used where it passed a self-test on this machine.

Knows kernels, the self-test and formats; knows no weights. A choice is made once in a process for
all matrices of one format, shape, dtype and device, so the text never depends on slots or policy.
Another process may measure other times and choose another kernel; "plain" is the same everywhere.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..format import Format, Shape
from .fallback import Fallback
from .int4pack import Int4Pack
from .kernel import Kernel
from .self_test import MOST, SelfTest

AUTO, PLAIN = "auto", "plain"

log = logging.getLogger("moe_colab")


class Case(NamedTuple):
    """What matrices must have in common to use the same kernels."""

    fmt: Format
    shape: Shape
    dtype: torch.dtype
    device: torch.device

    def __str__(self) -> str:
        (rows, columns), fmt = self.shape, self.fmt
        bits = f"{fmt.bits} bits in groups of {fmt.group} along axis {fmt.axis}"
        return f"{rows} x {columns} of {bits}, {str(self.dtype)[6:]} on {self.device}"


@dataclass(frozen=True)
class KernelChoice:
    """The kernels for one case. `kernels`: the best first, the fallback last; `left_out`: {name:
    the reason}."""

    case: Case
    kernels: tuple[Kernel, ...]
    left_out: Mapping[str, str]

    def __str__(self) -> str:
        used = ", then ".join(kernel.name for kernel in self.kernels)
        return f"{self.case}: {used}" + "".join(f"; not {n}: {w}" for n, w in self.left_out.items())


class Dispatcher:
    """Chooses among `kernels`, the best first; the fallback is always there and comes last."""

    def __init__(self, kernels: Sequence[Kernel] = ()):
        self._kernels, self._lock = tuple(kernels), threading.Lock()
        self._choices: dict[Case, KernelChoice] = {}
        self._warned: set[str] = set()

    def choose(
        self, fmt: Format, shape: Shape, dtype: torch.dtype, device: torch.device
    ) -> tuple[Kernel, ...]:
        """The usable kernels, the best first. The first call for such a matrix runs the
        self-test, which takes up to two seconds."""
        case = Case(fmt, tuple(shape), dtype, device)
        if case not in self._choices:
            with self._lock:
                if case not in self._choices:
                    self._choices[case] = self._choose(case)
        return self._choices[case].kernels

    def prepared_bytes(
        self, fmt: Format, shape: Shape, dtype: torch.dtype, device: torch.device
    ) -> int:
        """Bytes that the kernels keep beside such a matrix, at most."""
        kernels = self.choose(fmt, shape, dtype, device)
        return sum(kernel.prepared_bytes(fmt, shape) for kernel in kernels)

    def report(self) -> list[KernelChoice]:
        """Every choice made so far."""
        return list(self._choices.values())

    def _choose(self, case: Case) -> KernelChoice:
        used, left_out = [], {}
        for kernel in self._kernels:
            why, level = self_test(kernel, case)
            if why is None:
                used.append(kernel)
                log.info("%s multiplies %s", kernel.name, case)
                continue
            left_out[kernel.name] = why
            if level == logging.WARNING and kernel.name in self._warned:
                level = logging.INFO  # one warning is enough
            elif level == logging.WARNING:
                self._warned.add(kernel.name)
            log.log(level, "%s is not used for %s: %s", kernel.name, case, why)
        return KernelChoice(case, (*used, Fallback()), left_out)


def self_test(kernel: Kernel, case: Case) -> tuple[str | None, int]:
    """(why the kernel must not be used, or None; the log level of this reason). Only wrong results
    and exceptions are warnings."""
    try:
        if not kernel.fits(*case):
            return "it is not made for this", logging.DEBUG
        with torch.inference_mode():
            test = SelfTest(*case)
            if (fault := test.fault(kernel)) is not None:
                return fault, logging.WARNING
            for rows in (1, min(kernel.max_rows, MOST)):
                plain, own = (1e3 * seconds for seconds in test.times(kernel, rows))
                if own >= plain:
                    took = f"{rows} rows took {own:.2g} ms, half of preparing included"
                    return f"{took}, plain {plain:.2g}", logging.INFO
    except Exception as error:  # a kernel may raise anything: the fallback works
        return f"it raised {type(error).__name__}: {error}", logging.WARNING
    return None, logging.INFO


_DISPATCHERS = {AUTO: Dispatcher([Int4Pack()]), PLAIN: Dispatcher()}


def dispatcher_for(kernels: str) -> Dispatcher:
    """The process's dispatcher for `kernels`: "auto", or "plain", which is the fallback alone."""
    return _DISPATCHERS[kernels]


def report() -> list[KernelChoice]:
    """The choices of "auto" so far in this process: which kernels it uses, which it left out and
    why. Each prints as one line."""
    return dispatcher_for(AUTO).report()
