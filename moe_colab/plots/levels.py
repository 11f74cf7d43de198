"""The figure `levels`: the weights of a matrix, and the values that its codes can represent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .colours import DIM, GREEN, ORANGE, PALE
from .picture import Picture, drawn, plain_axes, rows_of

BINS = 48
FEW = 32  # most levels that are drawn as full lines


@drawn
def levels(rows: Iterable[Mapping[str, Any]]) -> Picture:
    """The distribution of a matrix's weights, and the levels of one group: one panel for each row.
    Grey: all weights of the matrix. Marks: the weights of the group. Lines: its levels, the only
    values that its codes can represent.

    rows: mappings with `name`, `weights` (any shape: the matrix), `group` [G] (the weights of one
    group) and `levels` [2^bits] (in any order). Raises MoEColabError for a table without rows or
    without one of the columns.
    """
    rows = rows_of(rows, "levels", "name", "weights", "group", "levels")
    picture = Picture(3.1, title_of(rows))
    for axes, row in zip(picture.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        draw(axes, row)
    first = picture.axes[0]
    first.set_ylabel("share of its weights")
    picture.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return picture


def title_of(rows: list[dict]) -> str:
    counts = " and ".join(
        f"{np.size(row['group'])} weights share {len(np.unique(row['levels']))} levels"
        for row in rows
    )
    return f"In one group of each matrix, {counts}"


def draw(axes: Axes, row: Mapping[str, Any]) -> None:
    weights, group = np.ravel(row["weights"]), np.ravel(row["group"])
    values = np.unique(row["levels"])
    edges = np.histogram_bin_edges(np.concatenate([weights, values]), BINS)
    heights, edges = np.histogram(weights, edges)
    heights = heights / heights.sum()
    axes.stairs(heights, edges, fill=True, color=PALE, label="the whole matrix")
    axes.stairs(heights, edges, color=DIM, linewidth=0.8)
    top = heights.max() * 1.25
    few = len(values) <= FEW
    axes.vlines(
        values, 0 if few else 0.9 * top, top,
        color=ORANGE, linewidth=1.8 if few else 0.5, label="levels of one group",
    )  # fmt: skip
    axes.plot(
        group, np.full(group.size, -0.06 * top),
        marker="|", markersize=11, color=GREEN, linestyle="", label="weights of that group",
    )  # fmt: skip
    axes.set_ylim(-0.14 * top, top)
    axes.set(title=row["name"], xlabel="weight")
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick < top])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.locator_params(axis="x", nbins=6)
    plain_axes(axes)
