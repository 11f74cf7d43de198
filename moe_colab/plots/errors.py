"""The figure `errors`: a heat map of the quantization error by layer and expert."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.gridspec import SubplotSpec
from matplotlib.image import AxesImage

from ..errors import MoEColabError
from .heatmap import AMOUNT, draw_cells, label
from .picture import Picture, drawn, layer_of, rows_of

SIDE_BY_SIDE = 16  # most columns of panels side by side
BAR = 3.0  # most inches of the colour bar
ROOM_FOR_NUMBERS = {1: 24, 2: 10}  # most columns with numbers, by the panels side by side


@dataclass(frozen=True)
class Panel:
    """One heat map. rows, columns: names or numbers. values [rows, columns]: nan where nothing was
    quantized."""

    title: str
    across: str
    rows: list[Any]
    columns: list[Any]
    values: np.ndarray


@drawn
def errors(frame: Any) -> Picture:
    """The relative error of every quantized matrix: one panel for each matrix of the experts,
    layers down and experts across, and one for the dense matrices if there are any. The panels of
    the experts share one scale. Cells of matrices that were not quantized are hatched.

    frame: `Summary.frame()`, or rows with layer, expert, matrix and relative_error. If rows have a
    `part`, other parts than "experts" are dense, and their matrix is a module's path. Raises
    MoEColabError if nothing was quantized.
    """
    rows = rows_of(frame, "errors", "layer", "expert", "matrix", "relative_error")
    parts = [part for part in (expert_panels(rows), dense_panels(rows)) if part]
    if not any(np.isfinite(panel.values).any() for part in parts for panel in part):
        raise MoEColabError("nothing in this table was quantized: there are no errors to draw.")
    lines = [line for part in parts for line in arrange(part)]
    heights = [max(panel_height(panel) for panel in line) for line in lines]
    picture = Picture(sum(heights) + 0.4, title_of(parts))
    places = iter(picture.add_gridspec(len(lines), 2, height_ratios=heights))
    for part in parts:
        draw_part(picture, places, part)
    return picture


def draw_part(picture: Picture, places: Iterator[SubplotSpec], part: list[Panel]) -> None:
    """Draw panels that share one scale. places: the halves of the lines, from left to right."""
    values = np.concatenate([panel.values.ravel() for panel in part])
    if not np.isfinite(values).any():
        return
    scale = Normalize(*widened(np.nanmin(values), np.nanmax(values)))
    below = []
    for line in arrange(part):
        left, right = next(places), next(places)
        wide = len(line[0].columns) > SIDE_BY_SIDE
        spots = [left.get_gridspec()[left.rowspan.start, :]] if wide else [left, right]
        for panel, spot in zip(line, spots, strict=False):
            below.append(picture.add_subplot(spot))
            image = draw(below[-1], panel, scale, 1 if wide else 2)
    bar = picture.colorbar(
        image, ax=below, format=lambda value, _: f"{100 * value:g} %", pad=0.02, fraction=0.05,
        aspect=18, shrink=min(1.0, BAR / sum(panel_height(p) for p in part[:1])), anchor=(0, 1),
    )  # fmt: skip
    bar.set_label("norm of the error / norm")
    bar.outline.set_visible(False)


def expert_panels(rows: list[dict]) -> list[Panel]:
    rows = [row for row in rows if row.get("part", "experts") == "experts"]
    panels = []
    for matrix in dict.fromkeys(row["matrix"] for row in rows):
        own = [row for row in rows if row["matrix"] == matrix]
        cells = {(row["layer"], row["expert"]): row["relative_error"] for row in own}
        layers, experts = (sorted(set(ids)) for ids in zip(*cells, strict=True))
        panels.append(Panel(matrix, "expert", layers, experts, grid(cells, layers, experts)))
    return panels


def dense_panels(rows: list[dict]) -> list[Panel]:
    cells: dict[tuple[Any, str], float] = {}
    for row in rows:
        error = row["relative_error"]
        if row.get("part", "experts") != "experts" and not math.isnan(error):
            layer, name = layer_of(row["matrix"])
            cells["model" if layer is None else layer, name.rpartition(".")[2]] = error
    if not cells:
        return []
    layers = sorted({layer for layer, _ in cells}, key=lambda one: (isinstance(one, str), one))
    columns = list(dict.fromkeys(name for _, name in cells))
    return [Panel("dense matrices", "matrix", layers, columns, grid(cells, layers, columns))]


def grid(cells: dict, rows: list, columns: list) -> np.ndarray:
    return np.array([[float(cells.get((r, c), math.nan)) for c in columns] for r in rows])


def widened(low: float, high: float) -> tuple[float, float]:
    """The range, made wider if it is empty."""
    return (low, high) if high > low else (low - 0.005, high + 0.005)


def arrange(panels: list[Panel]) -> list[list[Panel]]:
    """The panels in lines: two narrow ones side by side, a wide one alone."""
    lines: list[list[Panel]] = []
    for panel in panels:
        narrow = len(panel.columns) <= SIDE_BY_SIDE
        if narrow and lines and len(lines[-1]) == 1 and len(lines[-1][0].columns) <= SIDE_BY_SIDE:
            lines[-1].append(panel)
        else:
            lines.append([panel])
    return lines


def panel_height(panel: Panel) -> float:
    """The height of a panel in inches."""
    return min(5.5, max(1.2, 0.3 * len(panel.rows))) + 0.75


def title_of(parts: list[list[Panel]]) -> str:
    means = " and ".join(
        f"{np.nanmean(np.concatenate([panel.values.ravel() for panel in part])):.1%} of "
        + ("the experts" if part[0].across == "expert" else "the rest")
        for part in parts
    )
    return f"Quantizing loses {means}, on average"


def draw(axes: Axes, panel: Panel, scale: Normalize, in_line: int) -> AxesImage:
    room = len(panel.columns) <= ROOM_FOR_NUMBERS[in_line] and len(panel.rows) <= 32
    image = draw_cells(axes, panel.values, scale, AMOUNT, percent if room else None)
    mean = np.nanmean(panel.values) if np.isfinite(panel.values).any() else math.nan
    summary = "not quantized" if math.isnan(mean) else f"{mean:.1%} on average"
    axes.set(title=f"{panel.title}: {summary}", xlabel=panel.across, ylabel="layer")
    label(axes.xaxis, panel.columns)
    label(axes.yaxis, panel.rows)
    if panel.across == "matrix":
        axes.tick_params(axis="x", labelsize=9, rotation=0 if len(panel.columns) < 6 else 30)
    return image


def percent(value: float) -> str:
    return f"{100 * value:.0f}" if value >= 0.0995 else f"{100 * value:.1f}"
