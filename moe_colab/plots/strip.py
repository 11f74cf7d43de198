"""The residency strip: who lay in the slots of a layer, step after step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from ..errors import MoEColabError
from ..signs import OUTCOMES, PINK
from .page import PALE, Picture, drawn, need, plain_axes, records

SIGNS = {  # colour, marker and name of a state
    "hit": (OUTCOMES["hit"].colour, OUTCOMES["hit"].marker, "hit: it was there"),
    "miss": (OUTCOMES["miss"].colour, OUTCOMES["miss"].marker, "miss: loaded into a slot"),
    "passing": (PINK, "v", "loaded, used, not kept"),
    "idle": (PALE, "", "grey: has a slot"),
}
MOST = 96  # steps that can be told apart
ROOM_FOR_TOKENS = 64  # steps
LONGEST = 9  # letters of a token


@drawn
def residency(table: Any, first: int = 0, steps: int = 48) -> Picture:
    """Who lay in the slots of a layer: experts down, steps across. A bar is a stay in a slot; on it
    a dot for a hit, a cross where the expert was loaded; a triangle was loaded and not kept.

    table: of mc.tables.residency. first, steps: the first step that is shown, and how many. Raises
    MoEColabError for a table without rows or without one of the columns, or for no such steps.
    """
    rows = records(table)
    need(rows, "residents", "step", "phase", "token", "expert", "state")
    steps = min(steps, MOST)
    experts = max(row["expert"] for row in rows) + 1
    shown = [row for row in rows if first <= row["step"] < first + steps]
    if not shown:
        last = max(row["step"] for row in rows)
        raise MoEColabError(f"there is no step {first} to draw: the last one is {last}.")
    picture = Picture(1.9 + 0.26 * experts, title_of(shown))
    axes = picture.subplots()
    for row in shown:
        draw(axes, row)
    words = {row["step"]: word(row) for row in shown}
    frame(axes, words, experts)
    states = {row["state"] for row in shown}
    picture.legend(
        handles=[handle(state) for state in SIGNS if state in states],
        loc="outside lower left", ncols=4,
    )  # fmt: skip
    return picture


def title_of(shown: Sequence[dict]) -> str:
    states = [row["state"] for row in shown]
    needed = len(states) - states.count("idle")
    return f"{states.count('hit')} of {needed} needed experts lay in a slot already"


def draw(axes: Axes, row: dict) -> None:
    colour, marker, _ = SIGNS[row["state"]]
    place = row["step"], row["expert"]
    if row["state"] != "passing":  # has a slot
        bar = Rectangle((place[0] - 0.5, place[1] - 0.36), 1, 0.72, color=PALE, linewidth=0)
        bar.set_gid("slot")
        axes.add_patch(bar)
    if marker:
        line = axes.plot(*place, marker=marker, color=colour, markersize=7, markeredgecolor="white")
        line[0].set_gid(row["state"])


def word(row: dict) -> str:
    if row["phase"] == "prompt":
        return "(prompt)"
    text = row["token"].replace("\n", "⏎").strip() or "␣"
    text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return text.replace("$", r"\$")


def frame(axes: Axes, words: dict[int, str], experts: int) -> None:
    steps = sorted(words)
    axes.set_xlim(steps[0] - 0.6, steps[-1] + 0.6)
    axes.set_ylim(experts - 0.4, -0.6)
    axes.set_yticks(range(experts))
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
        return Patch(color=colour, label=name)
    return Line2D([], [], marker=marker, color=colour, linestyle="", label=name)
