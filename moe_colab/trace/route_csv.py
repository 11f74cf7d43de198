"""Reader of `route_trace v1`, the text format of other engines' routing traces.

Header lines begin with `#`: the model's name and shape, then one line per layer with the bytes of
its experts. The table has a line per (turn, phase, step, layer, slot): expert, weight, residency,
expert_bytes. Steps count tokens; phase 0 is the prompt, computed in one forward, 1 is decode. A
token that skips a layer has no line there. expert_bytes: the bytes loaded for it.
"""

from __future__ import annotations

import io
import os
import re
from typing import Any

import numpy as np

from ..errors import MoEColabError
from ..files import one_line, read_file
from . import arrays
from .header import MOST_BYTES, MOST_EXPERTS

MARK = "# route_trace v1"
MOST = 1 << 32  # bytes of a file, and numbers of its arrays
MOST_LAYERS, NUMBER = 1000, 2**31 - 1  # the least numbers that are too large
COLUMNS = ["turn", "phase", "step", "layer", "slot", "expert", "expert_bytes"]


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read (header, arrays) of a Trace, without logits and times. Raises MoEColabError for a file
    of another format."""
    import pandas as pd

    content = read_file(path, f"{path} cannot be read: there is no such file.", MOST)
    try:
        text = content.decode("utf-8")
        comments = [line for line in text.splitlines() if line.startswith("#")]
        if not comments or comments[0].strip() != MARK:
            raise ValueError(f"its first line is not {MARK!r}")
        table = pd.read_csv(io.StringIO(text), comment="#", usecols=COLUMNS, dtype=np.int64)
        shape = _shape(comments)
        _check(shape, table)
        return shape, _arrays(shape, table)
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError) as error:
        raise MoEColabError(
            f"{path} is not a complete routing trace ({one_line(error)}): it must begin with "
            f"{MARK!r} and hold the columns {', '.join(COLUMNS)}."
        ) from error


def _shape(comments: list[str]) -> dict[str, Any]:
    """The model's name, experts, their bytes and top-k, from the comment lines."""
    text = "\n".join(comments)
    model = re.search(r"model=(\S+)", text)
    numbers = {
        key: int(re.search(rf"\b{key}=(\d+)", text)[1])
        for key in ("n_layer", "n_expert", "n_expert_used")
    }
    if not 0 < numbers["n_layer"] < MOST_LAYERS or not 0 < numbers["n_expert"] <= MOST_EXPERTS:
        raise ValueError("no model has so many layers or experts")
    sizes = dict(re.findall(r"layer=(\d+) expert_bytes=(\d+)", text))
    return {
        "model": re.split(r"[/\\]", model[1])[-1].removesuffix(".gguf"),
        "experts": (numbers["n_expert"],) * numbers["n_layer"],
        "expert_bytes": tuple(int(sizes[str(layer)]) for layer in range(numbers["n_layer"])),
        "top_k": numbers["n_expert_used"],
    }


def _check(shape: dict[str, Any], table) -> None:
    """Raises ValueError where a number cannot be one of a trace, or a choice is there twice."""
    layers, experts, top_k = len(shape["experts"]), shape["experts"][0], shape["top_k"]
    if not 0 < top_k <= experts or max(shape["expert_bytes"]) > MOST_BYTES:
        raise ValueError("its top-k or its bytes are out of range")
    limits = {"turn": NUMBER, "phase": 2, "step": NUMBER, "layer": layers, "slot": top_k}
    for column, limit in {**limits, "expert": experts, "expert_bytes": MOST_BYTES}.items():
        arrays.within(table[column].to_numpy(), 0, limit)
    if table.duplicated(list(limits)).any():
        raise ValueError("a choice is in it twice")
    if len(table) * layers * experts > MOST:
        raise ValueError("it is too large")


def _arrays(shape: dict[str, Any], table) -> arrays.Arrays:
    # The prompt of a turn is one forward, each decode step is one.
    alone = table["step"].where(table["phase"] == 1, -1)
    order = table.assign(forward=alone).groupby(["turn", "phase", "forward"], sort=True)
    forward = order.ngroup().to_numpy()
    tokens, token = np.unique(
        np.stack([forward, table["step"].to_numpy()]), axis=1, return_inverse=True
    )
    first = table.groupby(forward).first()
    experts = shape["experts"]
    F, N, L = len(first), tokens.shape[1], len(experts)
    out = arrays.blank(F, N, L, shape["top_k"], max(experts))
    out["routing"][token.reshape(-1), table["layer"], table["slot"]] = table["expert"]
    out["forwards"]["phase"] = first["phase"]
    out["forwards"]["rows"] = 1
    out["forwards"]["length"] = np.bincount(tokens[0], minlength=F)
    out["forwards"]["sequence"] = np.unique(first["turn"], return_inverse=True)[1]
    begun = first.groupby("turn")["step"].transform("min")
    out["forwards"]["past"] = first["step"] - begun

    loaded = table.assign(step=forward).groupby(["step", "layer", "expert"], sort=True)
    loaded = loaded["expert_bytes"].max().reset_index()
    out["accesses"] = np.zeros(len(loaded), arrays.ACCESS)
    for column in ("step", "layer", "expert"):
        out["accesses"][column] = loaded[column]
    missed = loaded["expert_bytes"] > 0
    out["accesses"]["outcome"] = np.where(missed, 3, 0)
    out["accesses"]["bytes"] = loaded["expert_bytes"]
    arrays.check(out, experts, 1, 0)
    return out
