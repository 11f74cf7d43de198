"""Traces made up for tests, and what tests read off a trace."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from moe_colab.cache.stats import PHASES
from moe_colab.trace import Builder, Trace

BYTES = 5_000_000  # of an expert in the first layer of a trace that is made up

CSV = """# route_trace v1
# model=/models/some-moe-Q4.gguf arch=some n_layer=2 n_expert=9 n_expert_used=2
# layer=0 expert_bytes=100 dense_bytes=7
# layer=1 expert_bytes=200 dense_bytes=7
turn,phase,step,layer,slot,expert,weight,residency,expert_bytes
0,0,0,0,0,8,0.6,0,100
0,0,0,0,1,3,0.4,0,100
0,0,1,0,0,3,0.7,0,0
0,0,1,0,1,5,0.3,0,100
0,0,1,1,0,1,0.9,0,200
0,0,1,1,1,0,0.1,0,200
0,1,2,0,0,5,0.8,1,0
0,1,2,0,1,4,0.2,0,100
0,1,2,1,0,0,0.5,1,0
0,1,2,1,1,1,0.5,1,0
1,0,3,0,0,2,0.5,0,100
1,0,3,0,1,5,0.5,1,0
1,0,3,1,0,0,0.5,1,0
1,0,3,1,1,7,0.5,0,200
"""


COUNTED = ("accesses", "hits", "misses", "loads", "evictions", "bypasses", "bytes_loaded")


def counted(counters) -> dict[str, int]:
    return {name: getattr(counters, name) for name in COUNTED}


def made_up(seed: int, steps: int = 12, layers: int = 3, experts: int = 6, most: int = 2) -> Trace:
    """Every step one token, or a short prompt of up to `most` distinct experts a layer."""
    dice = random.Random(seed)
    sizes = tuple(BYTES * (1 + layer) for layer in range(layers))
    builder = Builder({"model": "made up", "experts": (experts,) * layers, "expert_bytes": sizes})
    for step in range(steps):
        length = dice.randint(1, most) if step % 5 == 0 else 1
        phase = "prompt" if step % 5 == 0 else "decode"
        forward = builder.begin(phase, 1, length, 0, None)
        for layer in range(layers):
            chosen = [dice.sample(range(experts), 2 if length == 1 else 1) for _ in range(length)]
            forward.routed(layer, np.array(chosen), None)
        builder.end()
    return builder.trace()


def each_token(trace: Trace):
    """(place, phase, label, sequence, position), in the order of the arrays."""
    place = 0
    for forward in trace.forwards:
        for _ in range(forward["rows"]):
            for at in range(forward["length"]):
                position = int(forward["past"]) + at
                label = trace.labels[forward["label"]]
                yield place, PHASES[forward["phase"]], label, int(forward["sequence"]), position
                place += 1


def went(trace: Trace, place: int, layer: int) -> list[int]:
    return [e for e in trace.routing[place, layer].tolist() if e >= 0]


def relabelled(trace: Trace, new: list[int]) -> Trace:
    """The same trace where expert e is called new[e], in every layer."""
    names = np.array([*new, -1])
    routing = names[trace.routing].astype(np.int16)
    logits = np.empty_like(trace.logits)
    logits[..., new] = trace.logits
    return replace(trace, routing=routing, logits=logits)
