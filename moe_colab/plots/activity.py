"""Heat maps of where tokens are sent: every layer's experts, and from one layer to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import FuncNorm, Normalize
from matplotlib.gridspec import GridSpec
from matplotlib.image import AxesImage

from .heatmap import AMOUNT, DEVIATION, draw_cells, label
from .picture import DIM, Picture, drawn, need, records

SIDE_BY_SIDE = 16  # columns, at the most, of two panels in a line
ROOM_FOR_NUMBERS = 10  # columns
BOUND = 4  # a share this many times the expected one, or this part of it, has the last colour
TIMES = {1 / 4: "¼", 1 / 2: "½", 1: "1", 2: "2", 4: "4"}
SEEN = 8  # tokens; what was seen less often makes no headline
UNRELATED = "Every layer has experts of its own: “expert 3” of two layers are two that never met."


@drawn
def activations(table: Any) -> Picture:
    """Layers down, experts across: the share of a layer's tokens that each expert is sent, and how
    often that is the share that an even router would give it. Purple is more, orange is less.

    table: of mc.tables.activations. Raises MoEColabError for a table without rows or without one of
    the columns.
    """
    rows = records(table)
    need(rows, "activations", "layer", "expert", "share", "uniform")
    layers, experts = (sorted({row[name] for row in rows}) for name in ("layer", "expert"))
    places = [(layers.index(row["layer"]), experts.index(row["expert"])) for row in rows]
    shape = len(layers), len(experts)
    shares = spread(shape, places, [row["share"] for row in rows])
    times = spread(shape, places, [row["share"] / row["uniform"] for row in rows])
    told = f"An expert is sent {np.nanmin(times):.2g} to {np.nanmax(times):.2g} times an even share"
    picture, panels = two_panels(shape, told)
    draw_amounts(panels[0], shares, "Share of the layer's tokens")
    draw_times(panels[1], times, "Times an even share")
    for axes in panels:
        axes.set(xlabel="expert", ylabel="layer")
        label(axes.xaxis, list(map(str, experts)))
        label(axes.yaxis, list(map(str, layers)))
    remark(picture, UNRELATED)
    return picture


@drawn
def transitions(table: Any, layer: int | None = None) -> Picture:
    """The experts of a layer down, those of the next across: where the tokens of one expert go, and
    how often that is what two layers that did not know of each other would give. A number is bold
    where that lies outside of the 95 % interval.

    table: of mc.tables.transitions. layer: which, if it holds several; the first by default. Raises
    MoEColabError for a table without rows or without one of the columns.
    """
    rows = records(table)
    layer = min((row["layer"] for row in rows), default=0) if layer is None else layer
    rows = [row for row in rows if row["layer"] == layer]
    need(rows, f"transitions from layer {layer}", "layer", "expert", "next", "share", *BESIDE)
    places = [(row["expert"], row["next"]) for row in rows]
    shape = tuple(max(column) + 1 for column in zip(*places, strict=True))
    shares, lifts = (spread(shape, places, [r[name] for r in rows]) for name in ("share", "lift"))
    picture, panels = two_panels(shape, transitions_title(rows, layer))
    draw_amounts(panels[0], shares, f"Of an expert's tokens, sent on to … in layer {layer + 1}")
    draw_times(panels[1], lifts, "Times what independence gives")
    for axes in panels:
        axes.set(xlabel=f"expert of layer {layer + 1}", ylabel=f"expert of layer {layer}")
        label(axes.xaxis, list(map(str, range(shape[1]))))
        label(axes.yaxis, list(map(str, range(shape[0]))))
    outside = [row for row in rows if stands_out(row)]
    written = {text.get_position(): text for text in panels[1].texts}
    for row in outside if written else ():
        written[row["next"], row["expert"]].set_fontweight("bold")
    told = "in bold, " if written else ""
    remark(
        picture,
        f"{len(outside):,} of {len(rows):,} pairs have independence outside of their 95 % interval "
        f"({told}chance alone would make some {max(1, round(0.05 * len(rows))):,}).",
    )
    return picture


BESIDE = ("tokens", "low", "high", "independent", "lift")


def stands_out(row: dict) -> bool:
    return not row["low"] <= row["independent"] <= row["high"]


def transitions_title(rows: Sequence[dict], layer: int) -> str:
    sure = [r for r in rows if r["low"] > r["independent"] and r["tokens"] >= SEEN]
    if not sure:
        return f"Layers {layer} and {layer + 1}: no pair surely more often than by chance"
    most = max(sure, key=lambda row: row["lift"])
    return (
        f"From expert {most['expert']} of layer {layer} to {most['next']} of layer {layer + 1}: "
        f"{most['lift']:.1f} times what independence gives"
    )


def spread(shape: tuple[int, int], places: Sequence, values: Sequence) -> np.ndarray:
    """A grid that is not a number where nothing was given."""
    out = np.full(shape, math.nan)
    for place, value in zip(places, values, strict=True):
        out[place] = value
    return out


def two_panels(shape: tuple[int, int], title: str) -> tuple[Picture, list[Axes]]:
    """Side by side, or one below the other where they are wide."""
    rows, columns = shape
    height = min(4.2, max(1.2, 0.3 * min(rows, 14))) + 0.9
    stacked = columns > SIDE_BY_SIDE
    picture = Picture(2 * height + 0.5 if stacked else height + 0.55, title)
    places = GridSpec(2, 1, picture) if stacked else GridSpec(1, 2, picture)
    return picture, [picture.add_subplot(places[place]) for place in (0, 1)]


def draw_amounts(axes: Axes, values: np.ndarray, title: str) -> None:
    most = np.nanmax(values, initial=0) or 1
    room = values.shape[1] <= ROOM_FOR_NUMBERS and values.shape[0] <= 32
    image = draw_cells(axes, values, Normalize(0, most), AMOUNT, percent if room else None)
    axes.set_title(title)
    scale(axes, image, format=lambda value, _: f"{100 * value:g} %")


def draw_times(axes: Axes, values: np.ndarray, title: str) -> None:
    room = values.shape[1] <= ROOM_FOR_NUMBERS and values.shape[0] <= 32
    norm = FuncNorm((doublings, lambda power: 2.0**power), 1 / BOUND, BOUND)
    image = draw_cells(axes, values, norm, DEVIATION, times if room else None)
    axes.set_title(title)
    bar = scale(axes, image, ticks=list(TIMES))
    bar.set_ticklabels([f"× {name}" for name in TIMES.values()])
    bar.minorticks_off()


def doublings(values: Any) -> np.ndarray:
    """Of 1, within the bounds."""
    return np.log2(np.clip(np.asarray(values, float), 1 / BOUND, BOUND))


def scale(axes: Axes, image: AxesImage, **settings) -> Any:
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02, fraction=0.06, aspect=22, **settings)
    bar.outline.set_visible(False)
    return bar


def percent(value: float) -> str:
    return f"{100 * value:.0f}"


def times(value: float) -> str:
    return f"{value:.1f}"


def remark(picture: Picture, text: str) -> None:
    picture.supxlabel(text, x=0.01, ha="left", fontsize=9.5, color=DIM)
