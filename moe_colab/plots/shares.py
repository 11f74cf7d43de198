"""The figures `shares` and `specialisation`: the tokens of each expert of one layer, with
intervals, in all and by kind of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from ..errors import MoEColabError
from .colours import DIM, GREEN, INK, ORANGE, PALE, PINK
from .heatmap import label
from .picture import Picture, drawn, plain_axes, rows_of, rows_of_layer, written

SIGNS = [  # colour and marker of a label
    *((GREEN, "o"), (ORANGE, "s"), (PINK, "^"), (INK, "D"), (DIM, "P")),
    *((GREEN, "v"), (ORANGE, "X"), (PINK, "*"), (INK, "<"), (DIM, ">")),
]
FEW = 32  # up to so many experts, bars have a dark edge
LONGEST = 16  # letters of a label
MOST = 12  # most experts of `specialisation`
COLUMNS = ("expert", "share", "low", "high", "uniform")
WHISKER = {"linestyle": "", "elinewidth": 1.2, "capsize": 2.5}


@drawn
def shares(table: Any, layer: int | None = None) -> Picture:
    """A bar for every expert of a layer: the share of its tokens that it is sent, with the 95 %
    interval, against the share that an even router would give. Dark where the interval does not
    hold the even share.

    table: of mc.tables.activations. layer: which; the first in the table by default. Raises
    MoEColabError for a table without rows or without one of the columns.
    """
    rows, layer = rows_of_layer(table, layer, "shares of", *COLUMNS)
    if not rows[0]["uniform"] > 0:
        raise MoEColabError(f"layer {layer} routed no token, so there is nothing to draw.")
    rows.sort(key=lambda row: row["expert"])
    picture = Picture(3.3, shares_title(rows, layer))
    axes, places = picture.subplots(), [row["expert"] for row in rows]
    uneven = [not row["low"] <= row["uniform"] <= row["high"] for row in rows]
    axes.bar(
        places, [row["share"] for row in rows], width=0.72, linewidth=0.8,
        color=[DIM if one else PALE for one in uneven], edgecolor=INK if len(rows) <= FEW else DIM,
    )  # fmt: skip
    whiskers(axes, places, rows, INK, gid="interval")
    frame(axes, rows, f"expert of layer {layer}")
    patches = [
        Patch(facecolor=DIM, edgecolor=INK, label="even share outside the 95 % interval"),
        Patch(facecolor=PALE, edgecolor=INK, label="not significantly uneven"),
    ]
    picture.legend_below([*axes.get_legend_handles_labels()[0], *patches], 3)
    return picture


def shares_title(rows: Sequence[dict], layer: int) -> str:
    most, least = (pick(rows, key=lambda row: row["share"]) for pick in (max, min))
    most_times, least_times = (row["share"] / row["uniform"] for row in (most, least))
    return (
        f"In layer {layer}, expert {most['expert']} gets {most_times:.1f} times an even share, "
        f"expert {least['expert']} only {least_times:.1f} times"
    )


@drawn
def specialisation(table: Any, experts: Sequence[int] | None = None) -> Picture:
    """The share of the tokens of each kind of text that every expert of a layer gets, with the 95 %
    interval, beside an even share.

    table: mc.tables.specialisation. experts: the experts shown; None: the twelve whose shares
    differ most between kinds of text. Raises MoEColabError for a table without rows or without one
    of the columns.
    """
    rows = rows_of(table, "specialisations", "layer", "label", *COLUMNS)
    labels = list(dict.fromkeys(row["label"] for row in rows))
    shown = most_different(rows) if experts is None else list(experts)
    picture = Picture(3.6, specialisation_title([r for r in rows if r["expert"] in shown]))
    axes = picture.subplots()
    for number, one in enumerate(labels):
        own = [row for row in rows if row["label"] == one and row["expert"] in shown]
        colour, marker = SIGNS[number % len(SIGNS)]
        aside = 0.7 * ((number + 0.5) / len(labels) - 0.5)
        places = [shown.index(row["expert"]) + aside for row in own]
        whiskers(axes, places, own, colour, marker=marker, label=named(one))
    frame(axes, [r for r in rows if r["expert"] in shown], f"expert of layer {rows[0]['layer']}")
    axes.set_xticks(range(len(shown)), list(map(str, shown)))
    for border in range(1, len(shown)):
        axes.axvline(border - 0.5, color=PALE, linewidth=0.8, zorder=0)
    axes.set_xlim(-0.5, len(shown) - 0.5)
    picture.legend_below(axes.get_legend_handles_labels()[0], 5)
    return picture


def most_different(rows: Sequence[dict]) -> list[int]:
    """The experts whose shares differ most between kinds of text, by number."""
    shares_of: dict[int, list[float]] = {}
    for row in rows:
        shares_of.setdefault(row["expert"], []).append(row["share"])
    most = sorted(shares_of, key=lambda one: min(shares_of[one]) - max(shares_of[one]))[:MOST]
    return sorted(most)


def specialisation_title(rows: Sequence[dict]) -> str:
    """Names the kind of text that is significantly above even and farthest from the others."""
    best = (0.0, "")
    for row in rows:
        others = [r["share"] for r in rows if r["expert"] == row["expert"] and r is not row]
        if others and row["low"] > row["uniform"] and row["share"] - max(others) > best[0]:
            title = (
                f"In layer {row['layer']}, expert {row['expert']} gets {row['share']:.0%} of "
                f"{named(row['label'])}, and at most {max(others):.0%} of any other text"
            )
            best = row["share"] - max(others), title
    if len({row["label"] for row in rows}) == 1:
        return "This trace holds one kind of text only"
    return best[1] or "No kind of text differs significantly from the others"


def named(label: str) -> str:
    """A trace's label as text in the legend, shortened."""
    return written(label, LONGEST) if label else "all of it"


def whiskers(axes: Axes, places: Sequence, rows: Sequence[dict], colour: str, **settings) -> None:
    """Draw shares with their intervals, or only the intervals if no marker is given."""
    values = np.array([row["share"] for row in rows])
    ends = np.array([[row["low"] for row in rows], [row["high"] for row in rows]])
    gid = settings.pop("gid", settings.get("label"))
    drawn = axes.errorbar(
        places, values, yerr=np.abs(ends - values), color=colour, ecolor=colour,
        **{"markersize": 6, "markeredgecolor": "white", **WHISKER, **settings},
    )  # fmt: skip
    drawn.lines[2][0].set_gid(gid)


def frame(axes: Axes, rows: Sequence[dict], across: str) -> None:
    even = rows[0]["uniform"]
    axes.axhline(
        even, color=INK, linewidth=1.2, linestyle=(0, (5, 3)), zorder=3, gid="uniform",
        label=f"even: {even:.1%}",
    )  # fmt: skip
    axes.set(xlabel=across, ylabel="share of the tokens")
    axes.set_ylim(0, 1.06 * max(even, *(row["high"] for row in rows)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    label(axes.xaxis, list(dict.fromkeys(row["expert"] for row in rows)))
    plain_axes(axes, "y")
