"""`mc.needs`: the bytes that models need, beside the memory that this machine has.

Knows Mixtral's shapes, the files of the small model and the memory of this machine; loads nothing.
"""

from __future__ import annotations

import json

from ..machine.folders import shipped_model
from ..machine.memory import available_memory, total_memory
from . import mixtral
from .preflight import find_gpu
from .sizes import folder_sizes

EVERY, CHOSEN, OTHERS = "used by every token", "experts of one token", "all other experts"
FREE, TAKEN = "free", "in use"
Row = dict[str, object]


def needs() -> list[Row]:
    """What Mixtral-8x7B and the small model need, and what this machine has: rows for
    `mc.plots.needs`, with name, kind ("model" or "memory"), part and bytes. Asks no network and
    imports no torch.

    A model's parts are "used by every token", "experts of one token" (top-k of each layer) and "all
    other experts"; a memory's are "free" and "in use".
    """
    whole, paper = 2 * mixtral.EXPERT_WEIGHTS, mixtral.PAPER_BYTES
    low_bit = mixtral.dense_bytes(mixtral.ATTENTION_BITS)
    share = mixtral.TOP_K / mixtral.EXPERTS
    folder = shipped_model()
    sizes = folder_sizes(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    top_k = config["num_experts_per_tok"] / config["num_local_experts"]
    return [
        *model("Mixtral-8x7B in 16 bits", mixtral.dense_bytes(), whole, share),
        *model("Mixtral-8x7B in 2 bits", low_bit, paper - low_bit, share),
        *model("the small model in 16 bits", sizes.memory.dense, sizes.experts, top_k),
        *memories(),
    ]


def model(name: str, dense: float, experts: float, share: float) -> list[Row]:
    """The rows of a model; share: the part of the experts that one token uses."""
    parts = {EVERY: dense, CHOSEN: experts * share, OTHERS: experts * (1 - share)}
    return [row(name, "model", part, nbytes) for part, nbytes in parts.items()]


def memories() -> list[Row]:
    """The rows of this machine: its RAM, and its GPU if the driver says how much memory it has."""
    found = {"RAM of this machine": (available_memory(), total_memory())}
    gpu = find_gpu()
    if gpu is not None and gpu.free is not None and gpu.total is not None:
        found["GPU of this machine"] = (gpu.free, gpu.total)
    return [
        row(name, "memory", part, nbytes)
        for name, (free, total) in found.items()
        for part, nbytes in ((FREE, free), (TAKEN, max(0, total - free)))
    ]


def row(name: str, kind: str, part: str, nbytes: float) -> Row:
    return {"name": name, "kind": kind, "part": part, "bytes": round(nbytes)}
