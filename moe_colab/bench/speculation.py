"""The gain of speculation, in virtual time and with a link that sleeps: the shipped model's routing
over mixed text through the engine's own pool, with fixed times of loads and compute.

    python -m moe_colab bench speculation [--out FILE]

One layer computes for one unit of time: half of it before its router, the rest in its experts. A
load takes `load` units and moves in 17 chunks, as 68 MB do at 4 MB each. Loads of 5.5 units are
those of Mixtral on a T4. `recovered`: the part of the stall that is saved, of what perfect guesses
at the same moment would save.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..analysis.layer_caches import LayerCaches
from ..analysis.simulator import Clock, RecordedGuesses, Simulation
from ..analysis.tables import recall
from ..cache.governor import Ranked
from ..cache.homes import CHUNK
from ..cache.links import ThreadLink, Ticket
from ..cache.settings import FARTHEST, SOURCES
from ..cache.stats import PHASES
from ..machine.folders import evaluation_folder
from ..offload.load import load
from ..offload.read_text import record_text
from ..trace import Trace
from .machine import describe
from .report import publish

LOADS, SLEPT_LOADS, SLOTS = (20.0, 5.5, 2.0, 0.2), (5.5, 2.0, 0.2), (4, 6)
NBYTES = 17 * CHUNK
BEFORE_ROUTER = 0.5  # of a layer's compute
TOKENS, SLEPT_TOKENS = 200, 20  # of each text
UNIT = 8e-3  # seconds of a layer's compute, where it is slept
SLACK = 5e-4  # seconds: a link that is used again so soon was never idle


@dataclass(frozen=True)
class Variant:
    """How the next layers are guessed: n experts of each layer, up to `ahead` layers ahead.
    perfect: the truth is guessed."""

    n: int = 0
    source: str = SOURCES[0]
    ahead: int = 1
    governed: bool = True
    perfect: bool = False


VARIANTS = {
    "none": Variant(),
    "perfect": Variant(n=8, governed=False, perfect=True),
    "default": Variant(n=2),
    "ungoverned": Variant(n=2, governed=False),
    "3 guesses": Variant(n=3),
    "2 layers ahead": Variant(n=2, ahead=2),
    "from layer output": Variant(n=2, source=SOURCES[1]),
}
SLEPT_VARIANTS = ("none", "perfect", "default")


class PerfectGuesses:
    """For every layer but the first, the experts that it will need, guessed one layer before."""

    source = SOURCES[0]

    def __init__(self, trace: Trace):
        self.trace = trace

    def at(self, step: int, layer: int) -> list[tuple[int, Ranked]]:
        if layer + 1 == self.trace.layers:
            return []
        return [(layer + 1, [(expert, 1.0) for expert in self.trace.needed(layer + 1)[step]])]


class SleepingLink(ThreadLink):
    """A thread that sleeps as long as a link of this speed would move each chunk."""

    def __init__(self, bytes_per_second: float):
        super().__init__()
        self.rate, self.free_at = bytes_per_second, 0.0

    @property
    def now(self) -> float:
        return self.time()

    def compute(self, seconds: float) -> None:
        time.sleep(seconds)

    def note(self) -> None:
        """Does nothing: a simulation calls it to log the last copy of a clock link."""

    def chunks_of(self, ticket: Ticket) -> Iterator[int]:
        for _ in range(ticket.home.nbytes // CHUNK):
            now = time.perf_counter()
            begin = self.free_at if now - self.free_at < SLACK else now
            self.free_at = begin + CHUNK / self.rate
            time.sleep(max(0.0, self.free_at - now))
            yield CHUNK


def record(model: torch.nn.Module, tokenizer: Any, tokens: int) -> Trace:
    """Read `tokens` tokens of every evaluation text, one at a time, with all guesses from both
    sources. Every step counts as decode."""
    record_text(model, tokenizer, "A", tokens=1)  # the first forward finds the norms
    settings = {"prompt": 1, "tokens": tokens, "speculate": max(model.offload.experts)}
    settings |= {"lookahead": FARTHEST, "sources": SOURCES}
    texts = [path.read_text("utf-8") for path in sorted(evaluation_folder().glob("*.txt"))]
    parts = [record_text(model, tokenizer, text[: 40 * tokens], **settings) for text in texts]
    trace = Trace.merge(*parts).sized(NBYTES)
    forwards = trace.forwards.copy()
    forwards["phase"] = PHASES.index("decode")
    return replace(trace, forwards=forwards)


def by_clock(
    trace: Trace, units: float, slots: int, variant: Variant, unit: float = 1.0, link: Any = None
) -> dict[str, Any]:
    """Model a run in virtual time, in units of a layer's compute. unit: seconds of one; link: in
    place of a clock link. The link is still open, so a load under way at the end is no waste."""
    each = (1 - BEFORE_ROUTER) / trace.routing.shape[2]
    clock = Clock(NBYTES / units / unit, BEFORE_ROUTER * unit, each * unit)
    guesses = RecordedGuesses(trace, variant.n, variant.ahead, variant.source)
    guesses = PerfectGuesses(trace) if variant.perfect else guesses
    caches, per_layer = LayerCaches(trace, "lru"), [slots] * trace.layers
    run = Simulation(caches, per_layer, clock, guesses, variant.governed, link)
    begin = run.link.now
    seconds = run.run().link.now - begin
    total, governor = run.tracker.stats().total, run.pool.governor
    return {
        "time": round(seconds / unit, 2),
        "stall": round(total.stall_seconds / unit, 2),
        "loads": total.bytes_loaded / NBYTES,
        "wasted_loads": total.bytes_wasted / NBYTES,
        "hits": total.hits,
        "speculative_hits": total.speculative_hits,
        "late": total.late,
        "misses": total.misses,
        "governor": governor.says() if governor else "",
    }


def by_sleep(trace: Trace, units: float, slots: int, variant: Variant) -> dict[str, Any]:
    """Measure a run with a link and compute that sleep, in the same units."""
    with contextlib.closing(SleepingLink(NBYTES / units / UNIT)) as link:
        return by_clock(trace, units, slots, variant, UNIT, link)


def rows(
    trace: Trace, how: Callable, loads: Sequence[float], variants: Sequence[str]
) -> list[dict[str, Any]]:
    """One row for every load, number of slots and way: its counts, and what the guesses save."""
    out = []
    for units in loads:
        for slots in SLOTS:
            runs = {variant: how(trace, units, slots, VARIANTS[variant]) for variant in variants}
            most_saved = runs["none"]["stall"] - runs["perfect"]["stall"]
            for variant, row in runs.items():
                row["recovered"] = round((runs["none"]["stall"] - row["stall"]) / most_saved, 3)
                row["time_ratio"] = round(row["time"] / runs["none"]["time"], 4)
                row["bytes_ratio"] = round(row["loads"] / runs["none"]["loads"], 4)
                out.append({"load": units, "slots": slots, "way": variant, **row})
    return out


def run(out: str | None) -> int:
    model, tokenizer = load(slots=4, progress=False)
    with model.offload:
        trace = record(model, tokenizer, TOKENS)
    starts = range(0, trace.steps, TOKENS)
    short = Trace.merge(*[trace.between(start, start + SLEPT_TOKENS) for start in starts])
    report = {
        "bench": "speculation",
        "machine": describe(),
        "tokens": trace.steps,
        "slept_tokens": short.steps,
        "unit_seconds_slept": UNIT,
        "load_average": os.getloadavg(),  # a busy machine oversleeps
        "recall": recalls(trace),
        "clock": rows(trace, by_clock, LOADS, list(VARIANTS)),
        "slept": rows(short, by_sleep, SLEPT_LOADS, SLEPT_VARIANTS),
        "slept_by_clock": rows(short, by_clock, SLEPT_LOADS, SLEPT_VARIANTS),  # the same tokens
    }
    print(*(table(report[name]) for name in ("clock", "slept", "slept_by_clock")), sep="\n\n")
    publish(report, out)
    return 0


def recalls(trace: Trace) -> list[dict[str, Any]]:
    """The share of needed experts that were guessed, by source, lookahead and layer."""
    frames = {n: recall(trace, n).set_index(["source", "lookahead"]) for n in (1, 2, 3, 4)}
    return [
        {
            **{"source": source, "lookahead": ahead, "guesses": n},
            "by_layer": [round(share, 3) for share in frame.loc[(source, ahead), "recall"]],
        }
        for source in SOURCES
        for ahead in range(1, FARTHEST + 1)
        for n, frame in frames.items()
    ]


def table(report_rows: list[dict[str, Any]]) -> str:
    names = ("load", "slots", "way", "time", "stall", "recovered", "time_ratio", "bytes_ratio")
    lines = ["".join(f"{name:>18}" for name in names)]
    lines += ["".join(f"{row[name]!s:>18}" for name in names) for row in report_rows]
    return "\n".join(lines)
