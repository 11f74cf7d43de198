"""One panel of cells, rows down and columns across: what every heat map is made of.

Knows numbers, a scale and colours; knows nothing of what the numbers are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from .picture import PALE, plain_axes, readable_on

AMOUNT, DEVIATION = "cividis", "PuOr"  # colours of what begins at nothing, and of what has a middle


def draw_cells(
    axes: Axes,
    values: np.ndarray,
    scale: Normalize,
    colours: str,
    tell: Callable[[float], str] | None = None,
) -> AxesImage:
    """`values` [rows, columns], hatched where one is not a number. tell: the text of a cell's
    number, where there is room for it."""
    axes.set_facecolor("white")
    axes.patch.set(hatch="////", edgecolor=PALE)  # seen where there is no number
    axes.spines[:].set_visible(False)
    image = axes.imshow(
        values, cmap=colormaps[colours], norm=scale, aspect="auto", interpolation="nearest"
    )
    plain_axes(axes)
    for (row, column), value in np.ndenumerate(values) if tell else ():
        if not math.isnan(value):
            axes.text(
                column, row, tell(value), ha="center", va="center", fontsize=8.5,
                color=readable_on(image.cmap(scale(value))), in_layout=False,
            )  # fmt: skip
    return image


def label(axis: Any, names: Sequence[str]) -> None:
    """All of a few names, some of many numbers."""
    if len(names) <= 16:
        axis.set_ticks(range(len(names)), names)
        return
    places = [round(p) for p in MaxNLocator(9, integer=True).tick_values(0, len(names) - 1)]
    places = [place for place in places if 0 <= place < len(names)]
    axis.set_ticks(places, [names[place] for place in places])
