"""Weights and the few values that their codes can say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .picture import DIM, GREEN, ORANGE, PALE, Picture, drawn, need, plain_axes, records

BINS = 48
FEW = 32  # levels, at the most, that are drawn through the whole panel


@drawn
def levels(rows: Iterable[Mapping[str, Any]]) -> Picture:
    """How the weights of a matrix are spread, and what is left of one group of them: one panel for
    each row. Grey: all weights of the matrix. Marks: the weights of the group; lines: the levels,
    the only values that its codes can express.

    rows: mappings with `name`, `weights` (any shape: the matrix), `group` [G] (the weights of one
    group) and `levels` [2^bits] (in any order). Raises MoEColabError for a table without rows or
    without one of the columns.
    """
    rows = records(rows)
    need(rows, "levels", "name", "weights", "group", "levels")
    picture = Picture(3.1, title_of(rows))
    for axes, row in zip(picture.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        draw(axes, row)
    first = picture.axes[0]
    first.set_ylabel("share of its weights")
    picture.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return picture


def title_of(rows: list[dict]) -> str:
    told = " and ".join(
        f"{len(np.unique(row['levels']))} levels for {np.size(row['group'])} weights"
        for row in rows
    )
    return f"One group of each matrix: {told}"


def draw(axes: Axes, row: Mapping[str, Any]) -> None:
    weights, group = np.ravel(row["weights"]), np.ravel(row["group"])
    found = np.unique(row["levels"])
    edges = np.histogram_bin_edges(np.concatenate([weights, found]), BINS)
    heights, edges = np.histogram(weights, edges)
    heights = heights / heights.sum()
    axes.stairs(heights, edges, fill=True, color=PALE, label="the whole matrix")
    axes.stairs(heights, edges, color=DIM, linewidth=0.8)
    top = heights.max() * 1.25
    few = len(found) <= FEW
    axes.vlines(
        found, 0 if few else 0.9 * top, top,
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
