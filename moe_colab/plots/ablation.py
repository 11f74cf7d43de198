"""The figure `ablation`: the speed without each part of offloading, as in the paper's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from ..errors import MoEColabError
from .colours import DIM, GREEN, INK, ORANGE, hatched
from .picture import Picture, drawn, plain_axes, rows_of, unit_of

ROWS = "full", "no-speculation", "no-cache", "whole-layer"
Row = Mapping[str, Any]


@drawn
def ablation(report: Mapping[str, Any]) -> Picture:
    """The cost of a token without prefetching, then also without the cache, then with whole layers
    loaded: the counted bytes per token, and the modelled seconds per token at the stated link,
    beside the paper's measurements on a T4 with another, larger model.

    report: mc.benchmark("paper"). Raises MoEColabError for anything else.
    """
    rows = paper_rows(report)
    counted, modelled = report["counted"], report["modelled"]
    picture = Picture(0.62 * len(rows) + 1.9, title_of(rows))
    left, right = picture.subplots(1, 2, sharey=True)
    tokens = counted["tokens"]
    loads = [row["replay"]["bytes_loaded"] / tokens for row in rows]
    unit, factor = unit_of(max(loads))
    bars(left, [one / factor for one in loads], 0, 0.6, GREEN, "counted", "{:.2f}")
    left.set(xlabel=f"{unit} per token", title=f"Counted: {counted['model']}, {tokens:,} tokens")
    ours, theirs = (
        [1 / row[source][name] for row in rows]
        for source, name in (("modelled", OURS), ("paper", "tokens_per_second"))
    )
    bars(right, ours, -0.19, 0.34, GREEN, "modelled, 32 such layers", "{:.2f} s")
    bars(right, theirs, 0.19, 0.34, ORANGE, "the paper's own, measured on a T4", "{:.2f} s")
    link = modelled["stated_link"].rpartition(": ")[2]
    right.set(xlabel="seconds per token", title=f"Modelled at {link}, and measured")
    left.set_yticks(range(len(rows)), [name(row) for row in rows])
    left.invert_yaxis()
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
        plain_axes(axes, "x")
    picture.legend_below(right.get_legend_handles_labels()[0], 2)
    return picture


OURS = "tokens_per_second_of_32_layers"


def paper_rows(report: Any) -> list[Row]:
    """The rows of the report in the paper's order. Raises MoEColabError for anything else than such
    a report."""
    if not isinstance(report, Mapping) or not {"rows", "counted", "modelled"} <= set(report):
        raise MoEColabError('not the report of the paper\'s rows: use mc.benchmark("paper").')
    columns = ("row", "is", "replay", "modelled", "paper")
    rows = rows_of(report["rows"], "the paper's rows", *columns)
    order = {row: place for place, row in enumerate(ROWS)}
    return sorted(rows, key=lambda row: order.get(row["row"], len(order)))


def name(row: Row) -> str:
    text = row["is"].replace(" loaded when", "\nloaded when").replace(" and ", "\nand ")
    return text.replace("of a layer loaded", "of a\nlayer loaded")


def title_of(rows: Sequence[Row]) -> str:
    best, worst = (row["modelled"][OURS] for row in (rows[0], rows[-1]))
    theirs = rows[0]["paper"]["tokens_per_second"] / rows[-1]["paper"]["tokens_per_second"]
    ours = f"The first row is {best / worst:.1f} times as fast as the last"
    return f"{ours} (in the paper {theirs:.1f} times)"


def bars(
    axes: Axes,
    values: Sequence[float],
    aside: float,
    high: float,
    colour: str,
    label: str,
    form: str,
) -> None:
    drawn = axes.barh(
        [place + aside for place in range(len(values))], values, height=high, label=label,
        **hatched(colour),
    )  # fmt: skip
    drawn.patches[0].set_gid(label)
    for place, value in enumerate(values):
        axes.text(
            value, place + aside, " " + form.format(value), va="center", color=INK, fontsize=9
        )
    axes.set_xlim(0, max(axes.get_xlim()[1], 1.22 * max(values)))
    axes.spines["bottom"].set_color(DIM)
