"""A benchmark of reliability: does anything that can happen to files, processes and threads lead to
a wrong result?

    python -m moe_colab bench reliability [--quick] [--scale 1.0] [--processes 2] [--seed 0]
                                          [--kind KIND] [--trial N] [--out FILE]

Damages files, kills and interrupts work, fills disks, lets reads fail, changes settings while a
model generates, and uses it in several threads. The result is the right one, or one sentence
(MoEColabError) refuses it. Counts wrong results, other errors, hangs and too much memory by kind;
all of these must be 0.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tqdm.auto import tqdm

from ..errors import MoEColabError
from . import concurrency, damage, disturbances
from .machine import describe
from .processes import run_all
from .report import markdown, publish
from .trials import FAULTS, HANG, OUTCOMES, OVER, Ended, Kind

KINDS = [*damage.KINDS, *disturbances.KINDS, *concurrency.KINDS]
QUICK = 0.002
SHOWN = 20  # faults in the report


def run(
    out: str | None,
    quick: bool = False,
    scale: float = 1.0,
    processes: int = 2,
    seed: int = 0,
    kind: str | None = None,
    trial: int | None = None,
) -> int:
    """Run all trials, print a table and the first faults, publish the report; 0 if there is no
    fault, else 1. kind: only this one. trial: only the trial of that number. Raises MoEColabError
    for a kind that does not exist, and for numbers that make no sense."""
    if scale <= 0 or processes < 1:
        raise MoEColabError("--scale and --processes must be larger than 0.")
    chosen = scaled([one for one in KINDS if kind in (None, one.name)], QUICK if quick else scale)
    if not chosen:
        names = ", ".join(repr(one.name) for one in KINDS)
        raise MoEColabError(f"there is no kind {kind!r}: choose one of {names}.")
    report = measure(chosen, seed, processes, trial)
    rows = [[str(row[name]) for name in report["kinds"][0]] for row in report["kinds"]]
    print(markdown(list(report["kinds"][0]), rows))
    for fault in report["faults"]:
        print(
            f"{fault['outcome']}: --kind {fault['kind']!r} --trial {fault['trial']} --seed {seed}"
        )
        print(f"    {fault['detail']}")
    publish(report, out)
    return 1 if any(report["total"][name] for name in FAULTS) else 0


def scaled(kinds: Iterable[Kind], scale: float) -> list[Kind]:
    """The same kinds with other counts, at least 1."""
    return [replace(kind, count=max(1, round(kind.count * scale))) for kind in kinds]


def measure(
    kinds: list[Kind], seed: int, processes: int = 2, trial: int | None = None
) -> dict[str, Any]:
    """The report. trial: the number of the only trial of each kind that is run."""
    start, faults = time.perf_counter(), []
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    seconds: Counter[str] = Counter()
    total = sum(kind.count for kind in kinds)
    for ended in tqdm(run_all(kinds, seed, processes, trial), total=total, desc="trials"):
        outcomes[ended.kind][ended.outcome] += 1
        seconds[ended.kind] += ended.seconds
        if ended.outcome in FAULTS:
            faults.append(ended)
    rows = [row(kind, outcomes[kind.name], seconds[kind.name]) for kind in kinds]
    return {
        "bench": "reliability",
        "machine": describe(),
        "seed": seed,
        "processes": processes,
        "seconds": round(time.perf_counter() - start, 1),
        "hang_seconds": HANG,
        "over_allocation_bytes": OVER,
        "total": {name: sum(row[name] for row in rows) for name in ("trials", *OUTCOMES)},
        "sections": {
            section: sum(row["trials"] for row in rows if row["section"] == section)
            for section in dict.fromkeys(kind.section for kind in kinds)
        },
        "kinds": rows,
        "faults": [as_dict(ended) for ended in faults[:SHOWN]],
    }


def row(kind: Kind, outcomes: Counter[str], seconds: float) -> dict[str, Any]:
    """The counts of one kind; trials per second of one process."""
    count = sum(outcomes.values())
    return {
        "section": kind.section,
        "kind": kind.name,
        "trials": count,
        **{name: outcomes[name] for name in OUTCOMES},
        "per_second": round(count / seconds, 1) if seconds else 0.0,
    }


def as_dict(ended: Ended) -> dict[str, Any]:
    return {
        "kind": ended.kind,
        "trial": ended.number,
        "outcome": ended.outcome,
        "detail": ended.detail[:1000],
    }
