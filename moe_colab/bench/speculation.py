"""What guessing brings, by the clock link and by a thread that sleeps: the shipped model's routing
over mixed text, through the engine's own pool, with loads and compute of stated length.

    python -m moe_colab bench speculation [--out FILE]

One layer computes for one unit of time: half of it before its router speaks, the rest in its
experts. A load takes `load` units and moves in 17 chunks, as 68 MB do at 4 MB each. Loads of 5.5
units are those of Mixtral on a T4. `recovered`: of the stall that a perfect guess, made at the same
moment, would spare.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..cache.clock_link import ClockLink
from ..cache.governor import Governor
from ..cache.homes import CHUNK
from ..cache.links import ThreadLink
from ..cache.policies import LayerCache, make_policy
from ..cache.pool import Pool
from ..cache.settings import FARTHEST, SOURCES
from ..cache.spares import SPARES
from ..offload.load import load
from .guessed_routing import Said, listen, mixed_text, recall
from .machine import describe

LOADS, SLEPT_LOADS, SLOTS = (20.0, 5.5, 2.0, 0.2), (5.5, 2.0, 0.2), (4, 6)
NBYTES = 17 * CHUNK
BEFORE_ROUTER = 0.5  # of a layer's compute
TOKENS, SLEPT_TOKENS = 200, 20  # of each text
UNIT = 8e-3  # seconds of a layer's compute, where it is slept
SLACK = 5e-4  # seconds: a link that is asked again so soon was never idle


@dataclass(frozen=True)
class Way:
    """How is guessed: n experts of each layer, so far ahead. perfect: as if the next router's word
    was known."""

    n: int = 0
    source: str = SOURCES[0]
    ahead: int = 1
    governed: bool = True
    perfect: bool = False


WAYS = {
    "none": Way(),
    "perfect": Way(n=8, governed=False, perfect=True),
    "default": Way(n=2),
    "ungoverned": Way(n=2, governed=False),
    "3 guesses": Way(n=3),
    "2 layers ahead": Way(n=2, ahead=2),
    "from layer output": Way(n=2, source=SOURCES[1]),
}
SLEPT_WAYS = ("none", "perfect", "default")


@dataclass(frozen=True)
class Weightless:
    """An expert whose bytes need not be there, only the time that they take."""

    wait: Callable[[int], None]
    tier: str = "host"
    nbytes: int = NBYTES

    def fill(self, buffer: None) -> Iterator[int]:
        for _ in range(NBYTES // CHUNK):
            self.wait(CHUNK)
            yield CHUNK


@dataclass(frozen=True)
class Nothing:
    buffer: None = None


class Sleeper:
    """Sleeps as long as a link of this speed would move bytes."""

    def __init__(self, bytes_per_second: float):
        self.rate, self.free_at = bytes_per_second, 0.0

    def __call__(self, nbytes: int) -> None:
        now = time.perf_counter()
        begin = self.free_at if now - self.free_at < SLACK else now
        self.free_at = begin + nbytes / self.rate
        time.sleep(max(0.0, self.free_at - now))


def make_pool(link: Any, slots: int, layers: int, wait: Callable, governed: bool) -> Pool:
    experts = 8
    return Pool(
        link,
        [[Weightless(wait) for _ in range(experts)] for _ in range(layers)],
        [[Nothing() for _ in range(slots)] for _ in range(layers)],
        [LayerCache(make_policy("lru", experts), slots) for _ in range(layers)],
        {NBYTES: [Nothing() for _ in range(SPARES)]},
        governor=Governor(link.time) if governed else None,
    )


def read(pool: Pool, said: list[Said], way: Way, compute: Callable[[float], None]) -> None:
    """Let the pool serve the routing of all tokens."""
    layers = len(said[0].needed)
    for token in said:
        pool.ledger.forward("decode", 1)
        for layer, needed in enumerate(token.needed):
            compute(BEFORE_ROUTER)
            ahead = guesses(token, layer, way)
            early = way.source == SOURCES[0] and pool.wants_guesses
            for _ in pool.experts(layer, needed, None, ahead if early else ()):
                compute((1 - BEFORE_ROUTER) / len(needed))
            if way.source == SOURCES[1] and pool.wants_guesses and layer + 1 < layers:
                for target, ranked in ahead:
                    pool.guess(target, ranked)


def guesses(token: Said, layer: int, way: Way) -> list[tuple[int, list[tuple[int, float]]]]:
    out = []
    for ahead in range(1, way.ahead + 1 if way.n else 1):
        if layer + ahead < len(token.needed):
            ranked = token.guesses[way.source, ahead][layer][: way.n]
            if way.perfect:
                ranked = [(expert, 1.0) for expert in token.needed[layer + ahead]]
            out.append((layer + ahead, ranked))
    return out


def by_clock(said: list[Said], units: float, slots: int, way: Way) -> dict[str, Any]:
    """In units of a layer's compute."""
    link = ClockLink(NBYTES / units)
    pool = make_pool(link, slots, len(said[0].needed), lambda _: None, way.governed)
    read(pool, said, way, link.compute)
    return result(pool, link.now, 1.0)


def by_sleep(said: list[Said], units: float, slots: int, way: Way) -> dict[str, Any]:
    """Seconds on the wall, in the same units."""
    link = ThreadLink()
    wait = Sleeper(NBYTES / units / UNIT)
    pool = make_pool(link, slots, len(said[0].needed), wait, way.governed)
    begin = time.perf_counter()
    read(pool, said, way, lambda part: time.sleep(part * UNIT))
    taken = time.perf_counter() - begin
    pool.link.close()
    return result(pool, taken, UNIT)


def result(pool: Pool, taken: float, unit: float) -> dict[str, Any]:
    """Before the pool is closed: what is under way then is nobody's waste yet."""
    total = pool.ledger.stats().total
    return {
        "time": round(taken / unit, 2),
        "stall": round(total.stall_seconds / unit, 2),
        "loads": total.bytes_loaded / NBYTES,
        "wasted_loads": total.bytes_wasted / NBYTES,
        "hits": total.hits,
        "speculative_hits": total.speculative_hits,
        "late": total.late,
        "misses": total.misses,
        "governor": pool.governor.says() if pool.governor else "",
    }


def rows(
    said: list[Said], how: Callable, loads: Sequence[float], ways: Sequence[str]
) -> list[dict[str, Any]]:
    """Every load and number of slots, every way; beside the counts, what the way has brought."""
    out = []
    for units in loads:
        for slots in SLOTS:
            found = {way: how(said, units, slots, WAYS[way]) for way in ways}
            spared = found["none"]["stall"] - found["perfect"]["stall"]
            for way, row in found.items():
                row["recovered"] = round((found["none"]["stall"] - row["stall"]) / spared, 3)
                row["time_ratio"] = round(row["time"] / found["none"]["time"], 4)
                row["bytes_ratio"] = round(row["loads"] / found["none"]["loads"], 4)
                out.append({"load": units, "slots": slots, "way": way, **row})
    return out


def run(out: str | None) -> int:
    model, tokenizer = load(slots=4, progress=False)
    with model.offload:
        said = listen(model, mixed_text(tokenizer, TOKENS))
    short = [token for i, token in enumerate(said) if i % TOKENS < SLEPT_TOKENS]
    report = {
        "bench": "speculation",
        "machine": describe(torch.device("cpu")),
        "tokens": len(said),
        "slept_tokens": len(short),
        "unit_seconds_slept": UNIT,
        "load_average": os.getloadavg(),  # a busy machine oversleeps
        "recall": [
            {
                **{"source": source, "lookahead": ahead, "guesses": n},
                "by_layer": [round(share, 3) for share in recall(said, source, ahead, n)],
            }
            for source in SOURCES
            for ahead in range(1, FARTHEST + 1)
            for n in (1, 2, 3, 4)
        ],
        "clock": rows(said, by_clock, LOADS, list(WAYS)),
        "slept": rows(short, by_sleep, SLEPT_LOADS, SLEPT_WAYS),
        "slept_by_clock": rows(short, by_clock, SLEPT_LOADS, SLEPT_WAYS),  # the same tokens
    }
    print(*(table(report[name]) for name in ("clock", "slept", "slept_by_clock")), sep="\n\n")
    print(json.dumps(report), flush=True)
    if out:
        Path(out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def table(found: list[dict[str, Any]]) -> str:
    names = ("load", "slots", "way", "time", "stall", "recovered", "time_ratio", "bytes_ratio")
    lines = ["".join(f"{name:>18}" for name in names)]
    lines += ["".join(f"{row[name]!s:>18}" for name in names) for row in found]
    return "\n".join(lines)
