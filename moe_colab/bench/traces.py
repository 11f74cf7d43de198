"""A benchmark of traces: what recording costs, and how fast a replay is.

    python -m moe_colab.bench.traces [--out FILE]

Recording: the small model generates by turns with and without it. The medians are compared, in
seconds and in CPU seconds, which other processes disturb less. Replays: of random traces as large
as those of Mixtral (8 experts) and Qwen3-30B (128); the tables of each layer are made before.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis.replay import replay
from ..offload.load import load
from ..offload.record import record
from ..offload.text_ids import text_ids
from ..trace import Builder, Trace
from .machine import describe
from .report import main

PAIRS, NEW_TOKENS, SLOTS = 40, 64, 4
PROMPT = "I would like to book a table for"
SIZES = {"1000 x 32 x 8, top-2": (1000, 32, 8, 2), "1000 x 48 x 128, top-8": (1000, 48, 128, 8)}
POLICIES = ("lru", "lfu", "fifo", "random", "none", "optimal", "optimal-bypass")
KEPT_TOKENS = 500


def made_up(tokens: int, layers: int, experts: int, top_k: int) -> Trace:
    """A trace of random routing, one token per step: the trace that compresses worst."""
    random = np.random.default_rng(0)
    header = {"model": "made up", "experts": (experts,) * layers, "expert_bytes": (1,) * layers}
    builder = Builder(header)
    for step in range(tokens):
        forward = builder.begin("decode", 1, 1, step, random.integers(0, 32000, (1, 1)))
        for layer in range(layers):
            logits = random.normal(size=(1, experts))
            index = np.argsort(-logits)[:, :top_k]
            forward.routed(layer, index, logits)
            for expert in sorted(index[0].tolist()):
                outcome = "hit" if random.random() < 0.5 else "miss"
                forward.accessed(layer, expert, outcome, 10**8)
                forward.waited(layer, expert, float(random.random()))
        builder.end()
    return builder.trace()


def cost_of_recording() -> dict[str, Any]:
    """Medians of the times without and with recording, and of the ratio of each pair."""
    model, tokenizer = load(slots=SLOTS, device="cpu", progress=False)
    ids = text_ids(tokenizer, PROMPT, goes_on=True)

    def generate() -> tuple[float, float]:
        start, cpu = time.perf_counter(), time.process_time()
        model.generate(ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)
        return time.perf_counter() - start, time.process_time() - cpu

    with model.offload:
        generate()
        plain, recorded = [], []
        for _ in range(PAIRS):
            plain.append(generate())
            with record(model):
                recorded.append(generate())
    ratios = np.divide(recorded, plain)  # [pairs, clocks]
    medians = np.median([plain, recorded, ratios], axis=1).T.tolist()  # [clocks, 3]
    columns = ("without", "with", "ratio")
    seconds, cpu_seconds = (dict(zip(columns, row, strict=True)) for row in medians)
    return {
        **{"tokens": NEW_TOKENS, "pairs": PAIRS},
        **{"seconds": seconds, "cpu_seconds": cpu_seconds},
    }


def speed_of_replays() -> dict[str, dict[str, float]]:
    """Seconds of a replay by size of the trace and policy, with SLOTS slots per layer."""
    seconds: dict[str, dict[str, float]] = {}
    for name, size in SIZES.items():
        trace = made_up(*size)
        for layer in range(trace.layers):
            trace.needed(layer)
        seconds[name] = {policy: timed(replay, trace, policy, SLOTS) for policy in POLICIES}
    return seconds


def timed(function: Callable[..., object], *args) -> float:
    """Seconds of the fastest of three calls: other processes made the others slower."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        function(*args)
        seconds.append(time.perf_counter() - start)
    return round(min(seconds), 4)


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file_bytes = made_up(KEPT_TOKENS, 32, 8, 2).save(Path(folder) / "trace.npz").stat().st_size
    return {
        "bench": "traces",
        "machine": describe(),
        "recording": cost_of_recording(),
        "replay_seconds": speed_of_replays(),
        "bytes_of_500_tokens_32_layers_8_experts": file_bytes,
    }


if __name__ == "__main__":
    main(__doc__, measure)
