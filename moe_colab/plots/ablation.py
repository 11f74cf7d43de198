"""The paper's rows: what each part of offloading spares, counted, modelled, and as published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from ..errors import MoEColabError
from .picture import DIM, GREEN, HATCHES, INK, ORANGE, Picture, drawn, need, plain_axes, unit_of

ROWS = "full", "no-speculation", "no-cache", "whole-layer"
Row = Mapping[str, Any]


@drawn
def ablation(report: Mapping[str, Any]) -> Picture:
    """What is left of the speed when speculation, then the cache, then the choice of experts is
    taken away: the bytes that are loaded for a token, counted; and a token's time, modelled at the
    stated link, beside what the paper measured on a T4 with another, larger model.

    report: of `mc.benchmark("paper")`. Raises MoEColabError for anything else.
    """
    rows = rows_of(report)
    counted, modelled = report["counted"], report["modelled"]
    picture = Picture(0.62 * len(rows) + 1.9, title_of(rows))
    left, right = picture.subplots(1, 2, sharey=True)
    tokens = counted["tokens"]
    loads = [row["replay"]["bytes_loaded"] / tokens for row in rows]
    unit, factor = unit_of(max(loads))
    bars(left, [one / factor for one in loads], 0, 0.6, GREEN, "counted", "{:.2f}")
    left.set(xlabel=f"{unit} a token", title=f"Counted: {counted['model']}, {tokens:,} tokens")
    ours, theirs = (
        [1 / row[who][name] for row in rows]
        for who, name in (("modelled", OURS), ("paper", "tokens_per_second"))
    )
    bars(right, ours, -0.19, 0.34, GREEN, "modelled, 32 such layers", "{:.2f} s")
    bars(right, theirs, 0.19, 0.34, ORANGE, "the paper's own, measured on a T4", "{:.2f} s")
    link = modelled["stated_link"].rpartition(": ")[2]
    right.set(xlabel="seconds a token", title=f"Modelled at {link}, and measured")
    left.set_yticks(range(len(rows)), [name(row) for row in rows])
    left.invert_yaxis()
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
        plain_axes(axes, "x")
    handles = right.get_legend_handles_labels()[0]
    picture.legend(handles=handles, loc="outside lower left", ncols=2)
    return picture


OURS = "tokens_per_second_of_32_layers"


def rows_of(report: Any) -> list[Row]:
    """In the paper's order, each with less than the one before. Raises MoEColabError where this is
    no such report."""
    if not isinstance(report, Mapping) or not {"rows", "counted", "modelled"} <= set(report):
        raise MoEColabError('this is no report of the paper\'s rows: give mc.benchmark("paper").')
    rows = list(report["rows"])
    need(rows, "the paper's rows", "row", "is", "replay", "modelled", "paper")
    order = {row: place for place, row in enumerate(ROWS)}
    return sorted(rows, key=lambda row: order.get(row["row"], len(order)))


def name(row: Row) -> str:
    told = row["is"].replace(" loaded when", "\nloaded when").replace(" and ", "\nand ")
    return told.replace("of a layer loaded", "of a\nlayer loaded")


def title_of(rows: Sequence[Row]) -> str:
    best, worst = (row["modelled"][OURS] for row in (rows[0], rows[-1]))
    theirs = rows[0]["paper"]["tokens_per_second"] / rows[-1]["paper"]["tokens_per_second"]
    told = f"All of it: {best / worst:.1f} times as fast as the last row, modelled"
    return f"{told}; the paper, measured: {theirs:.1f}"


def bars(
    axes: Axes,
    values: Sequence[float],
    aside: float,
    high: float,
    colour: str,
    label: str,
    told: str,
) -> None:
    drawn = axes.barh(
        [place + aside for place in range(len(values))], values, height=high, color=colour,
        edgecolor="white", hatch=HATCHES[colour], linewidth=0.8, label=label,
    )  # fmt: skip
    drawn.patches[0].set_gid(label)
    for place, value in enumerate(values):
        axes.text(
            value, place + aside, " " + told.format(value), va="center", color=INK, fontsize=9
        )
    axes.set_xlim(0, max(axes.get_xlim()[1], 1.22 * max(values)))
    axes.spines["bottom"].set_color(DIM)
