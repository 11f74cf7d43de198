"""The figure `pareto`: perplexity against bytes for every way to quantize a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..analysis.tables.pareto import front
from .colours import DIM, GREEN, INK, ORANGE, PINK
from .picture import Picture, drawn, need, plain_axes, records, rows_of, sign_handle, unit_of

SIGNS = {16: (INK, "D"), 8: (DIM, "P"), 4: (GREEN, "o"), 3: (ORANGE, "s"), 2: (PINK, "^")}
"""Colour and marker by the bits of the experts."""
COLUMNS = (
    *("bytes", "ratio", "ratio_low", "ratio_high", "tie"),
    *("attention_bits", "expert_bits", "expert_group"),
)
APART = 1.16  # smallest ratio of bytes between two labels
LABEL_WIDTH = 1.5  # of a label, as a ratio of bytes
LABEL_HEIGHT, LABEL_POINTS = 0.04, 24  # in ratios, and in points
Row = Mapping[str, Any]


@drawn
def pareto(rows: Iterable[Row], mine: Iterable[Row] = ()) -> Picture:
    """Every way to quantize as a point: its perplexity as a multiple of full precision, with the 95
    % interval, by its bytes (with scales and zeros). Hollow points are ties: their interval
    contains 1. The line joins the best points: no smaller one is as good.

    rows: mc.benchmark("quality")["rows"], or a frame with the same columns. mine: your own rows,
    drawn as crosses; they need the columns bytes and ratio only. Raises MoEColabError for a
    table without rows or without one of the columns.
    """
    rows, mine = rows_of(rows, "qualities", *COLUMNS), records(mine)
    if mine:
        need(mine, "your qualities", "bytes", "ratio")
    rows.sort(key=lambda row: (row["bytes"], row["ratio"]))
    unit, factor = unit_of(max(row["bytes"] for row in rows))
    picture = Picture(5.2, title_of(rows))
    axes = picture.subplots()
    for row in rows:
        draw(axes, row, factor)
    best = front(rows)
    axes.plot(
        [row["bytes"] / factor for row in best], [row["ratio"] for row in best],
        color=DIM, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1, label="front",
    )  # fmt: skip
    for row in mine:
        axes.plot(
            row["bytes"] / factor, row["ratio"],
            marker="X", markersize=12, color=INK, markeredgecolor="white", zorder=5, label="mine",
        )  # fmt: skip
    axes.axhline(1, color=INK, linewidth=0.8, zorder=0, label="full precision")
    name_some(axes, best, factor)
    frame(axes, unit)
    axes.legend(handles=legend(rows, bool(mine)), loc="upper right")
    return picture


def title_of(rows: Sequence[Row]) -> str:
    ties = [row for row in rows if row["tie"] and row["ratio"] != 1]
    largest = max(rows, key=lambda row: row["bytes"])
    if not ties:
        return f"None of {len(rows)} ways to quantize is as good as full precision"
    least = min(ties, key=lambda row: row["bytes"])
    share = least["bytes"] / largest["bytes"]
    return f"Down to {share:.0%} of the bytes, no loss can be measured: {name(least)}"


def name(row: Row) -> str:
    """The formats of a row in words: "experts 2 (g64), attention 4"."""
    group = row["expert_group"]
    grouped = "" if group is None or group != group else f" (g{int(group)})"
    return f"experts {row['expert_bits']}{grouped}, attention {row['attention_bits']}"


def draw(axes: Axes, row: Row, factor: float) -> None:
    colour, marker = SIGNS[int(row["expert_bits"])]
    low, high = row["ratio"] - row["ratio_low"], row["ratio_high"] - row["ratio"]
    axes.errorbar(
        row["bytes"] / factor, row["ratio"], yerr=[[max(0, low)], [max(0, high)]],
        marker=marker, color=colour, ecolor=colour, elinewidth=1.2, capsize=2.5, linestyle="",
        markerfacecolor="white" if row["tie"] else colour, markeredgewidth=1.6, label=name(row),
    )  # fmt: skip


def name_some(axes: Axes, best: Sequence[Row], factor: float) -> None:
    """Label the best point of the front for each format of the experts, if it is far enough from
    the label before; below that one where they would touch."""
    by_experts = {(row["expert_bits"], name(row).partition(",")[0]): row for row in best}
    last: Row = {"bytes": 0, "ratio": 0}
    below = 0
    for row in sorted(by_experts.values(), key=lambda row: row["bytes"]):
        if row["bytes"] > APART * last["bytes"]:
            touches = row["bytes"] < LABEL_WIDTH * last["bytes"]
            touches = touches and last["ratio"] - row["ratio"] < LABEL_HEIGHT
            below = below + 1 if touches else 0
            axes.annotate(
                name(row).replace(", ", "\n"), (row["bytes"] / factor, row["ratio"]),
                xytext=(-7, -5 - LABEL_POINTS * below), textcoords="offset points",
                ha="right", va="top", fontsize=8.5,
            )  # fmt: skip
            last = row


def frame(axes: Axes, unit: str) -> None:
    axes.set_xscale("log")
    shown = FuncFormatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(shown)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"× {value:g}"))
    axes.set_xlabel(f"bytes of all weights, with scales and zeros ({unit}, log scale)")
    axes.set_ylabel("perplexity / full precision")
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    axes.set_xlim(left / 1.25, right)  # space for the labels
    axes.set_ylim(low - 0.12 * (high - low), high)
    plain_axes(axes, "y")


def legend(rows: Sequence[Row], with_mine: bool) -> list[Line2D]:
    bits_of = sorted({int(row["expert_bits"]) for row in rows}, reverse=True)
    handles = [sign_handle(f"experts of {bits} bits", *SIGNS[bits]) for bits in bits_of]
    hollow = {"markerfacecolor": "white", "markeredgewidth": 1.6}
    handles += [
        sign_handle("hollow: tie, the interval contains 1", DIM, "o", **hollow),
        Line2D([], [], color=DIM, linestyle=(0, (4, 3)), label="best for its size"),
    ]
    return [*handles, sign_handle("yours", INK, "X", markersize=10)] if with_mine else handles
