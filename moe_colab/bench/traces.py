"""What recording costs, and how fast a trace is replayed; one JSON at the end.

    python -m moe_colab.bench.traces [--out FILE]

Recording: the small model generates with and without it, in turns, and the medians are compared, in
seconds and in seconds of CPU, which other work on the machine disturbs less. Replays: of made-up
traces of the sizes that count, each layer's tables made before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..analysis.replay import replay
from ..offload.load import load
from ..offload.record import record
from ..trace import Builder, Trace
from .machine import describe

PAIRS, NEW_TOKENS, SLOTS = 40, 64, 4
PROMPT = "I would like to book a table for"
SIZES = {"1000 x 32 x 8, top-2": (1000, 32, 8, 2), "1000 x 48 x 128, top-8": (1000, 48, 128, 8)}
POLICIES = ("lru", "lfu", "fifo", "random", "none", "optimal", "optimal-bypass")
KEPT_TOKENS = 500


def made_up(tokens: int, layers: int, experts: int, top_k: int) -> Trace:
    """Random routing, a token a step; nothing compresses worse."""
    dice = np.random.default_rng(0)
    header = {"model": "made up", "experts": (experts,) * layers, "expert_bytes": (1,) * layers}
    builder = Builder(header)
    for step in range(tokens):
        forward = builder.begin("decode", 1, 1, step, dice.integers(0, 32000, (1, 1)))
        for layer in range(layers):
            logits = dice.normal(size=(1, experts))
            index = np.argsort(-logits)[:, :top_k]
            forward.routed(layer, index, logits)
            for expert in sorted(index[0].tolist()):
                outcome = "hit" if dice.random() < 0.5 else "miss"
                forward.accessed(layer, expert, outcome, 10**8)
                forward.waited(layer, expert, float(dice.random()))
        builder.end()
    return builder.trace()


def cost_of_recording() -> dict[str, Any]:
    """Medians over PAIRS generations of each kind."""
    model, tokenizer = load(slots=SLOTS, device="cpu", progress=False)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids

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
    out: dict[str, Any] = {"tokens": NEW_TOKENS, "pairs": PAIRS}
    for place, name in enumerate(("seconds", "cpu_seconds")):
        without, during = (statistics.median(t[place] for t in kind) for kind in (plain, recorded))
        slower = statistics.median(
            b[place] / a[place] for a, b in zip(plain, recorded, strict=True)
        )
        out[name] = {"without": without, "with": during, "ratio": slower}
    return out


def speed_of_replays() -> dict[str, dict[str, float]]:
    """Seconds by size and policy, with SLOTS slots a layer."""
    found: dict[str, dict[str, float]] = {}
    for name, size in SIZES.items():
        trace = made_up(*size)
        for layer in range(trace.layers):
            trace.needed(layer)
        found[name] = {policy: timed(replay, trace, policy, SLOTS) for policy in POLICIES}
    return found


def timed(work: Callable[..., object], *given) -> float:
    """The best of three: whatever else ran made the others slower."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        work(*given)
        seconds.append(time.perf_counter() - start)
    return round(min(seconds), 4)


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        kept = made_up(KEPT_TOKENS, 32, 8, 2).save(Path(folder) / "trace.npz").stat().st_size
    return {
        "bench": "traces",
        "machine": describe(torch.device("cpu")),
        "recording": cost_of_recording(),
        "replay_seconds": speed_of_replays(),
        "bytes_of_500_tokens_32_layers_8_experts": kept,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report = run()
    print(json.dumps(report))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
