"""The figure `residency`: the experts in the slots of one layer, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..errors import MoEColabError
from ..trace.outcomes import SIGNS
from .colours import DIM, PALE, PINK
from .heatmap import label
from .picture import Picture, drawn, plain_axes, rows_of, sign_handle, written

SIGNS = {  # colour, marker and name of a state
    "hit": (SIGNS["hit"].colour, SIGNS["hit"].marker, "hit: was in a slot"),
    "miss": (SIGNS["miss"].colour, SIGNS["miss"].marker, "miss: loaded into a slot"),
    "passing": (PINK, "v", "loaded, used, not kept"),
    "idle": (PALE, "", "grey: has a slot"),
}
MOST = 96  # most steps in one figure
ROOM_FOR_TOKENS = 64  # most steps with the tokens' texts
LONGEST = 9  # letters of a token
LINE, TALLEST = 0.26, 8.0  # inches of an expert, and of all of them


@drawn
def residency(table: Any, first: int = 0, steps: int = 48) -> Picture:
    """The experts in the slots of a layer: experts down, steps across. A bar shows how long an
    expert had a slot; a dot is a hit, a cross a load, a triangle a load that was not kept.

    table: mc.tables.residency. first: the first step shown. steps: how many. Raises
    MoEColabError for a table without rows or without one of the columns, or for no such steps.
    """
    rows = rows_of(table, "residents", "step", "phase", "token", "expert", "state")
    steps = min(steps, MOST)
    experts = max(row["expert"] for row in rows) + 1
    shown = [row for row in rows if first <= row["step"] < first + steps]
    if not shown:
        last = max(row["step"] for row in rows)
        raise MoEColabError(f"there is no step {first} to draw: the last one is {last}.")
    picture = Picture(1.9 + min(LINE * experts, TALLEST), title_of(shown))
    axes = picture.subplots()
    draw_stays(axes, shown)
    draw_states(axes, shown, min(7.0, max(4.0, 50 * TALLEST / experts)))
    words = {row["step"]: word(row) for row in shown}
    frame(axes, words, experts)
    states = {row["state"] for row in shown}
    picture.legend_below([handle(state) for state in SIGNS if state in states], 4)
    return picture


def title_of(shown: Sequence[dict]) -> str:
    states = [row["state"] for row in shown]
    needed = len(states) - states.count("idle")
    return f"{states.count('hit')} of {needed} needed experts were in a slot"


def draw_stays(axes: Axes, shown: Sequence[dict]) -> None:
    """Draw a bar for every stay in a slot, all in one collection."""
    stays: list[list[int]] = []  # expert, first step, last step
    for row in sorted(shown, key=lambda row: (row["expert"], row["step"])):
        if row["state"] == "passing":
            continue
        if stays and stays[-1][0] == row["expert"] and stays[-1][2] == row["step"] - 1:
            stays[-1][2] = row["step"]
        else:
            stays.append([row["expert"], row["step"], row["step"]])
    bars = []
    for expert, first, last in stays:
        left, right, low, high = first - 0.5, last + 0.5, expert - 0.36, expert + 0.36
        bars.append([(left, low), (right, low), (right, high), (left, high)])
    axes.add_collection(
        PolyCollection(bars, facecolor=PALE, edgecolor=DIM, linewidth=0.8, gid="slot")
    )


def draw_states(axes: Axes, shown: Sequence[dict], size: float) -> None:
    """Draw the markers, one invisible line for each state."""
    for state, (colour, marker, _) in SIGNS.items():
        own = [(row["step"], row["expert"]) for row in shown if row["state"] == state]
        if marker and own:
            axes.plot(
                *zip(*own, strict=True), marker=marker, color=colour, linestyle="", markersize=size,
                markeredgecolor="white", markeredgewidth=size / 7, gid=state,
            )  # fmt: skip


def word(row: dict) -> str:
    if row["phase"] == "prompt":
        return "(prompt)"
    return written(row["token"], LONGEST) if row["token"] else ""


def frame(axes: Axes, words: dict[int, str], experts: int) -> None:
    steps = sorted(words)
    axes.set_xlim(steps[0] - 0.6, steps[-1] + 0.6)
    axes.set_ylim(experts - 0.4, -0.6)
    label(axes.yaxis, range(experts))
    axes.set_ylabel("expert")
    axes.tick_params(axis="y", length=0)
    if len(steps) <= ROOM_FOR_TOKENS and any(words.values()):
        axes.set_xticks(steps, [words[step] for step in steps], rotation=90, fontsize=8)
        axes.set_xlabel("one token after the other")
    else:
        axes.set_xlabel("step")
    plain_axes(axes)
    axes.hlines(np.arange(experts), *axes.get_xlim(), color=PALE, linewidth=0.5, zorder=0)


def handle(state: str) -> Patch | Line2D:
    colour, marker, name = SIGNS[state]
    if not marker:
        return Patch(facecolor=colour, edgecolor=DIM, label=name)
    return sign_handle(name, colour, marker)
