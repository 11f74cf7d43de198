"""The ablation of the paper (arXiv 2312.17238, Table 2): each row takes one more thing away.

    python -m moe_colab bench paper [--row ROW] [--engine | --replay] [--out FILE]

The rows: everything, without speculation, also without the cache, and whole layers. Counts are
those of the small model over the text of its trace. `engine` runs the model with its loads on a
clock link, `replay` uses a trace alone, and both must count the same bytes. The trace is recorded
first, on this machine: where two experts are nearly equal for the router, another processor may
round differently and choose the other one. With --replay it is the trace that comes with moe_colab.
Times are modelled by mc.timeline in a T4's proportions; this machine is not timed.

It takes about 80 seconds on 2 CPU cores; with --replay, about 8 seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..analysis.replay import replay
from ..analysis.timeline import timeline
from ..cache.clock_link import ClockLink
from ..cache.settings import SOURCES
from ..cache.stats import Stats
from ..offload.load import load
from ..offload.read_text import read
from ..trace import Trace
from .four_domains import recorded, sequences
from .machine import describe
from .report import publish

SLOTS = 4  # of 8: the paper's k on a GPU of 16 GB
LOAD = 5.7e-3  # seconds: 68 MB, one of Mixtral's experts, at 12 GB/s
COMPUTE = LOAD / 5.5  # seconds of a layer: a T4's proportions
CHUNKS = 16  # of a load; 68 MB move in chunks of 4 MB
MIXTRAL_LAYERS = 32
COUNTED = (
    *("accesses", "hits", "speculative_hits", "late", "misses", "loads", "evictions"),
    *("bytes_loaded", "bytes_wasted"),
)


@dataclass(frozen=True)
class Row:
    """Settings of mc.load and mc.replay. paper: tokens per second that the paper measured on a T4
    (Mixtral-8x7B-Instruct, experts of 2 bits, attention of 4)."""

    label: str
    paper: float
    policy: str = "lru"
    speculate: int = 0
    whole_layer: bool = False

    @property
    def setting(self) -> dict[str, Any]:
        names = ("policy", "speculate", "whole_layer")
        return {name: getattr(self, name) for name in names}


ROWS = {
    "full": Row("LRU cache and speculation", 2.09, speculate=2),
    "no-speculation": Row("LRU cache", 1.57),
    "no-cache": Row("every expert loaded when it is used", 1.17, policy="none"),
    "whole-layer": Row("all experts of a layer loaded", 0.66, whole_layer=True),
}


def clock(nbytes: int) -> dict[str, Any]:
    """The settings of mc.timeline with which a load of so many bytes takes LOAD seconds."""
    return {"link": nbytes / LOAD, "compute": COMPUTE, "chunk": -(-nbytes // CHUNKS)}


def replayed(trace: Trace, row: Row) -> dict[str, int]:
    """The counters of a replay of the trace with the settings of `row`."""
    return counts(replay(trace, slots=SLOTS, **row.setting, **clock(trace.expert_bytes[0])))


def run_engine(row: Row, documents: Sequence[torch.Tensor] | None = None) -> dict[str, int]:
    """Count with the model while it reads `documents`, ids [1, tokens] each; by default those of
    the trace."""
    options = {**row.setting, "stand_aside": False, "device": "cpu", "progress": False}
    model, tokenizer = load(slots=SLOTS + 1, **options)
    if documents is None:
        documents = [ids for label in sequences(tokenizer).values() for ids in label]
    with model.offload as handle:
        read(model, documents[0])  # the first forward finds the norms
        nbytes = handle.entries[0].layout.nbytes
        speed = clock(nbytes)
        handle.make_link = lambda device: ClockLink(speed["link"], speed["chunk"])
        handle.slots = SLOTS  # a new pool on that link, and empty
        top_k = model.config.num_experts_per_tok
        with_compute_times(handle.pool, COMPUTE / 2, COMPUTE / 2 / top_k)
        handle.reset_stats()
        for ids in documents:
            read(model, ids)
        return counts(handle.stats())


def with_compute_times(pool, before_router: float, per_expert: float) -> None:
    """Let computing take time on the ClockLink of `pool`: `before_router` seconds for each layer,
    and `per_expert` seconds for each of its experts."""
    experts = pool.experts

    def timed(*use, **more):
        pool.link.compute(before_router)
        for expert in experts(*use, **more):
            yield expert
            pool.link.compute(per_expert)

    pool.experts = timed


def counts(stats: Stats) -> dict[str, int]:
    """The counters of prompts and decoded tokens together."""
    return {name: getattr(stats.total, name) for name in COUNTED}


def modelled(trace: Trace, row: Row) -> dict[str, float]:
    """Decoding in a T4's proportions. `tokens_per_second_of_32_layers`: for Mixtral's number of
    layers."""
    run = timeline(trace, slots=SLOTS, **row.setting, **clock(trace.expert_bytes[0]))
    rate = run.tokens_per_second
    return {
        "tokens_per_second": round(rate, 3),
        "tokens_per_second_of_32_layers": round(rate * trace.layers / MIXTRAL_LAYERS, 3),
        "stall_share": round(run.stall_share, 4),
        "bytes_per_token": round(run.decode.bytes / run.decode.tokens),
    }


def routed_alike(trace: Trace, other: Trace) -> float | None:
    """The share of the tokens, 0 to 1, that both traces route to the same experts in all layers;
    None where they are not of the same model and tokens."""
    if not (trace.is_like(other) and np.array_equal(trace.tokens, other.tokens)):
        return None
    same = np.sort(trace.routing) == np.sort(other.routing)  # [N, L, K]
    return float(same.all(axis=(1, 2)).mean())


def measure(trace: Trace, names: Sequence[str], methods: Sequence[str]) -> list[dict[str, Any]]:
    """A row of the table for each name. `same`: whether engine and replay count the same, if both
    ran."""
    out = []
    for name in names:
        row = ROWS[name]
        counted = {m: run_engine(row) if m == "engine" else replayed(trace, row) for m in methods}
        line = {"row": name, "is": row.label, "setting": row.setting, **counted}
        if len(counted) == 2:
            line["same"] = counted["engine"] == counted["replay"]
        line["modelled"] = modelled(trace, row)
        line["paper"] = {"tokens_per_second": row.paper}
        out.append(line)
    return out


def run(row: str | None = None, method: str | None = None, out: str | None = None) -> int:
    """Print the table, and the JSON on the last line. Returns 1 where engine and replay differ."""
    names, methods = [row] if row else list(ROWS), [method] if method else ["replay", "engine"]
    shipped = Trace.load()
    trace = recorded(SOURCES[:1]) if "engine" in methods else shipped
    alike = routed_alike(trace, shipped)
    nbytes = trace.expert_bytes[0]
    report = {
        "bench": "paper",
        "machine": describe(),
        "counted": {
            **{"model": trace.model, "layers": trace.layers, "experts": trace.experts[0]},
            **{"expert_bytes": nbytes, "slots": SLOTS, "tokens": len(trace.tokens)},
            "text": f"{', '.join(trace.labels)}: assets/traces",
            "routed_as_in_assets": alike,
        },
        "modelled": {
            "by": "mc.timeline, decoded tokens; not timed on this machine",
            **{"seconds_a_load": LOAD, "seconds_a_layer": COMPUTE, "chunks_a_load": CHUNKS},
            "stated_link": "68 MB, one of Mixtral's experts, in 5.7 ms: 12 GB/s",
            "link_bytes_per_second": nbytes / LOAD,
        },
        "paper": {
            "source": "arXiv 2312.17238, Table 2, T4 on Colab, experts of 2 bits; the paper's own",
            "model": "Mixtral-8x7B-Instruct",
        },
        "rows": measure(trace, names, methods),
    }
    print(table(report["rows"]))
    if alike is not None and alike < 1:
        print(
            f"This machine routes {1 - alike:.2%} of the tokens differently from the machine of "
            "assets/traces: the numbers may differ a little from those in assets/benchmarks."
        )
    publish(report, out)
    if all(line.get("same", True) for line in report["rows"]):
        return 0
    print("engine and replay count differently.", file=sys.stderr)
    return 1


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The counted, the modelled and the paper's numbers in columns."""
    lines = [
        f"{'':16}{'counted':>36}{'modelled, 32 layers':>24}{'the paper, T4':>18}",
        f"{'row':16}{'loads':>12}{'hit rate':>10}{'MB':>14}{'tokens/s':>24}{'tokens/s':>18}",
    ]
    for row in rows:
        counted = row.get("replay") or row["engine"]
        rate = (counted["hits"] + counted["speculative_hits"]) / counted["accesses"]
        lines.append(
            f"{row['row']:16}{counted['loads']:12,}{rate:10.1%}"
            f"{counted['bytes_loaded'] / 1e6:14,.1f}"
            f"{row['modelled']['tokens_per_second_of_32_layers']:24.2f}"
            f"{row['paper']['tokens_per_second']:18.2f}"
        )
    return "\n".join(lines)
