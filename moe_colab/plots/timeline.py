"""The figure `timeline`: the compute, copies and stalls of one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from ..errors import MoEColabError
from .colours import GREEN, INK, ORANGE, PINK
from .picture import Picture, drawn, plain_axes, readable, rows_of, unformatted

LANES = ("compute", "copy", "stall")  # from the top
BARS = {  # face, edge, hatch, name
    "compute": (GREEN, GREEN, "", "compute"),
    "no": (ORANGE, "white", "", "copy of a chosen expert"),
    "right": (PINK, "white", "///", "copy of a guess, right"),
    "wrong": ("white", PINK, "xxx", "copy of a guess, wasted"),
    "stall": ("white", INK, "....", "stall: waiting for bytes"),
}
WIDE_ENOUGH = 0.035  # share of the axis that an expert's number needs
APART = 0.016  # the same, between the numbers of two layers
LONGEST = 24  # characters of a word
HEIGHT, ABOVE = 0.62, -0.6  # height of a bar; position of the layers' numbers
COLUMNS = ("kind", "step", "layer", "expert", "begin", "end", "bytes", "guess")


@drawn
def timeline(table: Any, step: int, word: str = "") -> Picture:
    """The time of one step: a row of bars for compute, one for the copies on the link, one for
    stalls. Copies of right guesses are hatched, copies of wrong ones crossed; the number in a copy
    is its expert, and the numbers above are the layers.

    table: `mc.timeline(...).frame()`. step: the step to draw. word: the token's text, for the
    title. Raises MoEColabError for a table without rows or without one of the columns, or without
    that step.
    """
    rows = rows_of(table, "events", *COLUMNS)
    own = [row for row in rows if row["step"] == step and row["kind"] != "copy"]
    if not own:
        raise MoEColabError(f"there is no step {step!r} in this timeline.")
    start, end = min(row["begin"] for row in own), max(row["end"] for row in own)
    under_way = [
        row for row in rows if row["kind"] == "copy" and row["end"] > start and row["begin"] < end
    ]
    picture = Picture(3.1, title_of(own, under_way, step, word))
    axes = picture.subplots()
    shown: dict[str, list[dict]] = {}
    for row in own + under_way:
        shown.setdefault(sign_of(row), []).append(row)
    for sign, some in shown.items():
        draw(axes, sign, some, start, end)
    name_layers(axes, own, start)
    axes.set_xlim(0, 1e3 * (end - start))
    axes.set_ylim(len(LANES) - 0.5, -0.85)
    axes.set_yticks([ABOVE, *range(len(LANES))], ["layer", *LANES])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("milliseconds, modelled")
    plain_axes(axes, "x")
    picture.legend_below([handle(sign) for sign in BARS if sign in shown], 3)
    return picture


def sign_of(row: dict) -> str:
    return row["guess"] if row["kind"] == "copy" else row["kind"]


def draw(axes: Axes, sign: str, rows: Sequence[dict], start: float, end: float) -> None:
    """Draw all events of one kind as one collection."""
    lane, whole = LANES.index(rows[0]["kind"]), 1e3 * (end - start)
    spans = []
    for row in rows:
        begin, until = max(row["begin"], start), min(row["end"], end)
        spans.append((1e3 * (begin - start), 1e3 * (until - begin)))
    face, edge, hatch, _ = BARS[sign]
    bars = axes.broken_barh(
        spans, (lane - HEIGHT / 2, HEIGHT), facecolor=face, edgecolor=edge, hatch=hatch,
        linewidth=0.6,
    )  # fmt: skip
    bars.set_gid(sign)
    for row, (begin, wide) in zip(rows, spans, strict=True):
        if row["kind"] == "copy" and wide > WIDE_ENOUGH * whole:
            axes.text(
                begin + wide / 2, lane, str(row["expert"]), ha="center", va="center", fontsize=8.5,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )  # fmt: skip


def name_layers(axes: Axes, own: Sequence[dict], start: float) -> None:
    """Draw a line where each layer begins, and its number above if there is space."""
    whole, last = max(row["end"] for row in own) - start, -1.0
    for layer in sorted({row["layer"] for row in own}):
        begin = 1e3 * (min(r["begin"] for r in own if r["layer"] == layer) - start)
        axes.axvline(begin, color=INK, linewidth=0.6, zorder=0)
        if begin / 1e3 > last + APART * whole or last < 0:
            axes.text(begin, ABOVE, f" {layer}", fontsize=8.5, va="center")
            last = begin / 1e3


def title_of(own: Sequence[dict], copies: Sequence[dict], step: int, word: str) -> str:
    whole = max(row["end"] for row in own) - min(row["begin"] for row in own)
    waited = sum(row["end"] - row["begin"] for row in own if row["kind"] == "stall")
    title = f"“{readable(word, LONGEST)}”" if word.strip() else f"step {step}"
    title += f" takes {1e3 * whole:.1f} ms, of which {1e3 * waited:.1f} ms are stalls"
    # An interrupted copy has several rows.
    guessed = {(r["step"], r["layer"], r["expert"]): r["guess"] for r in copies}
    guesses = [guess for guess in guessed.values() if guess != "no"]
    if guesses:
        title += f"; {guesses.count('right')} of {len(guesses)} guessed copies were right"
    return unformatted(title)


def handle(sign: str) -> Patch:
    face, edge, hatch, name = BARS[sign]
    edge = INK if edge == "white" and not hatch else edge
    return Patch(facecolor=face, edgecolor=edge, hatch=hatch, label=name, linewidth=0.6)
