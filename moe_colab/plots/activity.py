"""The figures `activations` and `transitions`: heat maps of the routing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import FuncNorm, Normalize

from .colours import DIM
from .heatmap import AMOUNT, DEVIATION, draw_cells, label
from .picture import Picture, drawn, rows_of, rows_of_layer

SIDE_BY_SIDE = 16  # most columns of two panels side by side
ROOM_FOR_NUMBERS = 10  # most columns with numbers in the cells
BOUND = 4  # from 1/4 to 4 times the expected share, the colours differ
TIMES = {1 / 4: "¼", 1 / 2: "½", 1: "1", 2: "2", 4: "4"}
SEEN = 8  # fewest tokens of a pair in the title
UNRELATED = "Every layer has its own experts: “expert 3” of two layers are two unrelated experts."


@drawn
def activations(table: Any) -> Picture:
    """The share of a layer's tokens that each expert gets, layers down and experts across, and the
    same as a multiple of an even share. Purple is more, orange is less.

    table: mc.tables.activations. Raises MoEColabError for a table without rows or without one of
    the columns.
    """
    rows = rows_of(table, "activations", "layer", "expert", "share", "uniform")
    layers, experts = (sorted({row[name] for row in rows}) for name in ("layer", "expert"))
    places = [(layers.index(row["layer"]), experts.index(row["expert"])) for row in rows]
    shape = len(layers), len(experts)
    shares = spread(shape, places, [row["share"] for row in rows])
    times = spread(shape, places, [row["share"] / row["uniform"] for row in rows])
    title = f"An expert gets {np.nanmin(times):.2g} to {np.nanmax(times):.2g} times an even share"
    picture = two_maps(
        title, ("Share of the layer's tokens", shares), ("Times an even share", times),
        ("expert", experts), ("layer", layers),
    )  # fmt: skip
    remark(picture, UNRELATED)
    return picture


@drawn
def transitions(table: Any, layer: int | None = None) -> Picture:
    """The routing from one layer to the next, experts of the first down and of the next across: the
    share of an expert's tokens that each next expert gets, and the same as a multiple of what
    independent layers would give. A number is bold if independence is outside of its 95 % interval.

    table: mc.tables.transitions. layer: the first layer, if the table has several; None: the
    lowest. Raises MoEColabError for a table without rows or without one of the columns.
    """
    columns = ("expert", "next", "share", *BESIDE)
    rows, layer = rows_of_layer(table, layer, "transitions from", *columns)
    places = [(row["expert"], row["next"]) for row in rows]
    shape = tuple(max(column) + 1 for column in zip(*places, strict=True))
    shares, lifts = (spread(shape, places, [r[name] for r in rows]) for name in ("share", "lift"))
    picture = two_maps(
        transitions_title(rows, layer),
        (f"Share of an expert's tokens, by expert of layer {layer + 1}", shares),
        ("As a multiple of the expected share", lifts),
        (f"expert of layer {layer + 1}", range(shape[1])),
        (f"expert of layer {layer}", range(shape[0])),
    )
    outside = [row for row in rows if not row["low"] <= row["independent"] <= row["high"]]
    written = {text.get_position(): text for text in picture.axes[1].texts}
    for row in outside if written else ():
        written[row["next"], row["expert"]].set_fontweight("bold")
    bold = "in bold; " if written else ""
    remark(
        picture,
        f"In {len(outside):,} of {len(rows):,} pairs, the expected share is outside the 95 % "
        f"interval ({bold}by chance alone about {max(1, round(0.05 * len(rows))):,}).",
    )
    return picture


BESIDE = ("tokens", "low", "high", "independent", "lift")


def transitions_title(rows: Sequence[dict], layer: int) -> str:
    sure = [r for r in rows if r["low"] > r["independent"] and r["tokens"] >= SEEN]
    if not sure:
        return f"No pair of layers {layer} and {layer + 1} is significantly above chance"
    most = max(sure, key=lambda row: row["lift"])
    return (
        f"Expert {most['expert']} of layer {layer} sends {most['lift']:.1f} times the expected "
        f"share to expert {most['next']} of layer {layer + 1}"
    )


def spread(shape: tuple[int, int], places: Sequence, values: Sequence) -> np.ndarray:
    """The values as a matrix, nan elsewhere."""
    out = np.full(shape, math.nan)
    for place, value in zip(places, values, strict=True):
        out[place] = value
    return out


Axis = tuple[str, Sequence[int]]
"""The name of an axis, and the number of each row or column."""


def two_maps(
    title: str,
    amounts: tuple[str, np.ndarray],
    times: tuple[str, np.ndarray],
    across: Axis,
    down: Axis,
) -> Picture:
    """A picture with two heat maps (title, values): shares, and multiples of the expected share.
    They are side by side, or one below the other if they are wide."""
    rows, columns = amounts[1].shape
    height = min(4.2, max(1.2, 0.3 * min(rows, 14))) + 0.9
    stacked = columns > SIDE_BY_SIDE
    picture = Picture(2 * height + 0.5 if stacked else height + 0.55, title)
    upper, lower = picture.subplots(*((2, 1) if stacked else (1, 2)))
    most = np.nanmax(amounts[1], initial=0) or 1
    text = {"format": lambda value, _: f"{100 * value:g} %"}
    draw(upper, *amounts, Normalize(0, most), AMOUNT, lambda value: f"{100 * value:.0f}", **text)
    norm = FuncNorm((doublings, lambda power: 2.0**power), 1 / BOUND, BOUND)
    bar = draw(lower, *times, norm, DEVIATION, "{:.1f}".format, ticks=list(TIMES))
    bar.set_ticklabels([f"× {name}" for name in TIMES.values()])
    bar.minorticks_off()
    for axes in (upper, lower):
        axes.set(xlabel=across[0], ylabel=down[0])
        label(axes.xaxis, across[1])
        label(axes.yaxis, down[1])
    return picture


def draw(
    axes: Axes,
    title: str,
    values: np.ndarray,
    norm: Normalize,
    colours: str,
    tell: Callable[[float], str],
    **settings,
) -> Any:
    """Draw one heat map, with the numbers in its cells if they fit. Returns its colour bar."""
    rows, columns = values.shape
    room = columns <= ROOM_FOR_NUMBERS and rows <= 32
    image = draw_cells(axes, values, norm, colours, tell if room else None)
    axes.set_title(title)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02, fraction=0.06, aspect=22, **settings)
    bar.outline.set_visible(False)
    return bar


def doublings(values: Any) -> np.ndarray:
    """log2 of the values, limited to the range of the colours."""
    return np.log2(np.clip(np.asarray(values, float), 1 / BOUND, BOUND))


def remark(picture: Picture, text: str) -> None:
    picture.supxlabel(text, x=0.01, ha="left", fontsize=9.5, color=DIM)
