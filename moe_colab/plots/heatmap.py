"""Heat maps: one panel of cells, rows down and columns across. Shared by the figures.

Knows numbers, a scale and colours; knows nothing of what the numbers mean.
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

from .colours import PALE, readable_on
from .picture import plain_axes

AMOUNT, DEVIATION = "cividis", "PuOr"  # colour maps for amounts from 0, and for deviations


def draw_cells(
    axes: Axes,
    values: np.ndarray,
    scale: Normalize,
    colours: str,
    tell: Callable[[float], str] | None = None,
) -> AxesImage:
    """Draw `values` [rows, columns]; nan cells are hatched. tell: gives the text in a cell; None
    for cells without text."""
    axes.set_facecolor("white")
    axes.patch.set(hatch="////", edgecolor=PALE)  # visible in nan cells
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


def label(axis: Any, names: Sequence[Any]) -> None:
    """Label an axis with all names (texts or numbers) if there are few, else with some of them."""
    if len(names) <= 16:
        axis.set_ticks(range(len(names)), names)
        return
    places = [round(p) for p in MaxNLocator(9, integer=True).tick_values(0, len(names) - 1)]
    places = [place for place in places if 0 <= place < len(names)]
    axis.set_ticks(places, [names[place] for place in places])
