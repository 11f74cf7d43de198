"""The x-ray, read back: what it draws is what was recorded, or what mc.replay counts; whatever the
tokens are, and by mouse or keys alike."""

from __future__ import annotations

import base64
import json
import random
import re
from dataclasses import replace

import numpy as np
import pytest
from browser import plain_page, write_notebook

import moe_colab as mc
from moe_colab import plots, tables, xrays
from moe_colab.excerpt import excerpts
from moe_colab.places import web_asset
from moe_colab.plots.page import contrast
from moe_colab.signs import OUTCOMES
from moe_colab.trace import Trace, arrays
from moe_colab.view import LIMIT, View, packed

POLICIES = xrays.POLICIES
COUNTED = ("accesses", "hits", "misses", "loads", "evictions", "bypasses", "bytes_loaded")
STATES = ["", "idle", "hit", "", "", "miss", "passing"]  # of replay.js, as mc.tables calls them
PROSE = Trace.load().only("prose")


# ---------------------------------------------------------------------- traces made up
def made_up(seed: int, **shape) -> Trace:
    """Random routing: several sequences, each a prompt of some tokens and decoded ones; batches,
    tokens that a layer leaves out, layers of different size; accesses are not known."""
    rng = np.random.default_rng(seed)
    layers = shape.get("layers", int(rng.integers(1, 5)))
    most = shape.get("experts", int(rng.integers(2, 14)))
    experts = shape.get("each") or tuple(
        int(n) for n in rng.integers(max(1, most - 2), most + 1, layers)
    )
    top_k = min(shape.get("top_k", int(rng.integers(1, 5))), min(experts))
    rows = shape.get("rows", int(rng.integers(1, 3)))
    forwards = []
    for sequence in range(shape.get("sequences", int(rng.integers(1, 4)))):
        past = 0
        decoded = shape.get("decoded", int(rng.integers(3, 25)))
        for length in [shape.get("prompt", int(rng.integers(2, 9))), *[1] * decoded]:
            forwards.append((int(past > 0), rows, length, past, sequence, 0, 0.0))
            past += length
    forwards = np.array(forwards, arrays.FORWARD)
    N = int((forwards["rows"] * forwards["length"]).sum())
    chance = rng.dirichlet(np.full(max(experts), 0.6), layers)  # some experts are liked
    routing = np.full((N, layers, top_k), arrays.NOBODY, np.int16)
    for layer, count in enumerate(experts):
        liked = np.log(chance[layer, :count] + 1e-9) + rng.gumbel(size=(N, count))
        routing[:, layer] = np.argsort(-liked, axis=1)[:, :top_k]
    routing[rng.random((N, layers, top_k)) < shape.get("left_out", 0.05)] = arrays.NOBODY
    logits = np.full((N, layers, max(experts)), np.nan, np.float16)
    if shape.get("logits"):
        for layer, count in enumerate(experts):
            logits[:, layer, :count] = rng.normal(size=(N, count))
    none = arrays.empty(layers, top_k, max(experts))
    found = {"forwards": forwards, "routing": routing, "logits": logits}
    found["tokens"] = rng.integers(0, 50, N).astype(np.int32)
    found["spoke"] = np.full((len(forwards), layers), np.nan, np.float32)
    sizes = tuple(1000 + 37 * layer for layer in range(layers))
    return Trace("made up", experts, sizes, **{**none, **found})


def recorded(trace: Trace, seed: int = 0) -> Trace:
    """The same with an outcome for every access, drawn at random."""
    rng = np.random.default_rng(seed)
    rows = [
        (step, layer, expert, rng.integers(0, 4), 0, 0.0)
        for layer in range(trace.layers)
        for step, needed in enumerate(trace.needed(layer))
        for expert in needed
    ]
    accesses = np.array(rows, arrays.ACCESS)
    missed = accesses["outcome"] == 3
    accesses["bytes"] = np.where(missed, np.array(trace.expert_bytes)[accesses["layer"]], 0)
    return replace(trace, accesses=accesses)


def slots_of(trace: Trace, slots: int) -> list[int]:
    return [min(slots, count) for count in trace.experts]


def part_of(trace: Trace, view: View) -> Trace:
    """The steps that a view replays, by what it says of them."""
    steps = view.data["phases"].shape[0]
    last = np.searchsorted(trace.bounds, view.data["first"] + len(view.data["words"]) - 1, "right")
    return trace.between(int(last) - steps, int(last))


# ---------------------------------------------------------------------- the replay on the page
CODE = "\n".join(map(web_asset, ("view.js", "replay.js", "xray_draw.js", "xray.js")))
REPLAY = f"""([told, wanted]) => {{
{CODE}
const root = document.createElement("div");
root.innerHTML = '<script type="application/json"></' + 'script>';
root.firstChild.textContent = told;
const data = unpack(root), needed = neededOf(data), phases = [...data.phases.values];
return wanted.map(([policy, slots]) => {{
    const made = replay(needed, phases, data.experts, data.bytes, policy, slots);
    return {{books: made.books, states: Array.from(made.states)}};
}});
}}"""


@pytest.mark.browser
def test_replays_on_the_page_are_those_of_python(chromium):
    """50 traces, every policy that is offered, every number of slots: each count of each layer and
    phase; and who lies where after every step."""
    choice = random.Random(7)
    offered = re.findall(r'\["[^"]+", "([\w-]+)"\]', web_asset("replay.js"))
    assert tuple(offered) == POLICIES
    with plain_page(chromium, "<!doctype html><title>-</title>") as watched:
        for seed in range(50):
            trace = made_up(seed)
            if seed % 5 == 0:  # only some tokens are shown, of one row: the others count as well
                last = len(trace.tokens) // trace.forwards["rows"].max()
                view = mc.xray(trace, first=last // 3, tokens=max(1, last // 2))
                excerpt = next(excerpts(trace, 0, last // 3, max(1, last // 2), LIMIT))
                part = excerpt.trace
                assert view.data["begins"] and part.steps == len(view.data["phases"])
            else:
                view, part = mc.xray(trace, row=int(trace.forwards["rows"].max()) - 1), trace
            wanted = [(p, n) for p in POLICIES for n in range(1, max(trace.experts) + 1)]
            found = watched.page.evaluate(REPLAY, [packed(view.data), wanted])
            for (policy, slots), made in zip(wanted, found, strict=True):
                check_books(part, policy, slots, made["books"])
            (policy, slots), made = choice.choice(list(zip(wanted, found, strict=True)))
            check_states(part, policy, slots, made["states"])
        watched.check_quiet()


def check_books(trace: Trace, policy: str, slots: int, books: list) -> None:
    """Each phase over all layers, and each layer over both phases."""
    told = mc.replay(trace, policy, slots_of(trace, slots))
    for phase, layers in zip((told.prompt, told.decode), books, strict=True):
        for name in COUNTED:
            assert sum(book[name] for book in layers) == getattr(phase, name)
    for truth, prompt, decode in zip(told.layers, *books, strict=True):
        for name in COUNTED:
            assert prompt[name] + decode[name] == getattr(truth, name)


def check_states(trace: Trace, policy: str, slots: int, states: list[int]) -> None:
    states = np.array(states).reshape(trace.steps, trace.layers, max(trace.experts))
    for layer, own in enumerate(slots_of(trace, slots)):
        table = tables.residency(trace, layer, policy, own)
        truth = set(table[["step", "expert", "state"]].itertuples(index=False, name=None))
        found = zip(*np.nonzero(states[:, layer]), strict=True)
        assert {(s, e, STATES[states[s, layer, e]]) for s, e in found} == truth
