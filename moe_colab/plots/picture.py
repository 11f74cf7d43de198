"""Picture: the figure class with its size, fonts and display; helpers for tables and texts.

Knows matplotlib's Figure, not pyplot, and has its own style: it changes no settings of the user's
figures, and these do not change it. Knows nothing of what is drawn.
"""

from __future__ import annotations

import functools
import io
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import combining

from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D

from ..errors import MoEColabError
from .colours import DIM, INK, PALE
from .saving import Forms, how_to_save, save

WIDTH, DOTS = 8.0, 100  # inches, dots per inch: 800 dots, as GitHub shows
SHARPER = 2  # dots saved per dot shown
STYLE = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "figure.titlesize": 11.5,
    "figure.titleweight": "bold",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": DIM,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "hatch.linewidth": 0.8,
    "legend.facecolor": "white",
    "legend.edgecolor": "white",
    "legend.framealpha": 1,
    "legend.fontsize": 9.5,
    "lines.markersize": 7,
}
NUMBER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


class Picture(Figure):
    """A figure of `height` inches on opaque white, as wide as GitHub shows notebooks."""

    def __init__(self, height: float, title: str = ""):
        super().__init__(figsize=(WIDTH, height), dpi=DOTS, facecolor="white", layout="constrained")
        if title:
            self.suptitle(title, x=0.01, ha="left")

    def png(self) -> bytes:
        """The figure as PNG bytes."""
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=SHARPER * DOTS, facecolor="white")
        return file.getvalue()

    def legend_below(self, handles: Sequence[Artist], columns: int) -> None:
        """One legend for all panels, below them."""
        self.legend(handles=handles, loc="outside lower left", ncols=columns)

    @property
    def forms(self) -> Forms:
        """What `save` can write, by the ending of the file."""
        return {".png": self.png}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the figure as .png and return the path; `savefig`, of matplotlib, writes other
        forms. Raises MoEColabError for another ending, or if the file cannot be written."""
        return save(path, self.forms)

    def __repr__(self) -> str:
        return how_to_save(self.get_suptitle() or "Figure", "figure", self.forms)

    @property
    def shown_size(self) -> dict[str, int]:
        """Width and height on a page, in CSS pixels."""
        width, height = self.get_size_inches() * DOTS
        return {"width": round(width), "height": round(height)}

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return self.png(), self.shown_size


def drawn(draw: Callable[..., Picture]) -> Callable[..., Picture]:
    """A decorator: the function draws in our style, whatever style the user has set."""

    @functools.wraps(draw)
    def wrapped(*args, **settings) -> Picture:
        with style.context(["default", STYLE]):
            return draw(*args, **settings)

    return wrapped


def rows_of(table: Any, what: str, *columns: str) -> list[dict[str, Any]]:
    """The rows of a table as dictionaries; raises as `need` does."""
    rows = records(table)
    need(rows, what, *columns)
    return rows


def rows_of_layer(
    table: Any, layer: int | None, what: str, *columns: str
) -> tuple[list[dict[str, Any]], int]:
    """The rows of one layer, and its number; None: the lowest. Raises as `need` does."""
    rows = records(table)
    layer = min((row["layer"] for row in rows), default=0) if layer is None else layer
    rows = [row for row in rows if row["layer"] == layer]
    need(rows, f"{what} layer {layer}", "layer", *columns)
    return rows, layer


def records(table: Any) -> list[dict[str, Any]]:
    """The rows of a frame, or of any sequence of mappings, as dictionaries."""
    if hasattr(table, "to_dict"):
        return table.to_dict("records")
    return [dict(row) for row in table]


def need(rows: Iterable[Mapping[str, Any]], what: str, *columns: str) -> None:
    """Raises MoEColabError if there are no rows, or if a row lacks a column."""
    rows = list(rows)
    if not rows:
        raise MoEColabError(f"there is nothing to draw: the table of {what} has no rows.")
    missing = [name for name in columns if any(name not in row for row in rows)]
    if missing:
        raise MoEColabError(
            f"the table of {what} has no column {', '.join(missing)}: it has {', '.join(rows[0])}."
        )


def sign_handle(label: str, colour: str, marker: str, **settings: Any) -> Line2D:
    """A legend entry of a marker without a line."""
    return Line2D([], [], color=colour, marker=marker, linestyle="", label=label, **settings)


def unit_of(nbytes: float) -> tuple[str, float]:
    """The unit for such a number of bytes, GB, MB or kB, and its size in bytes."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if nbytes >= factor:
            return unit, factor
    return "kB", 1e3


def readable(text: str, longest: int) -> str:
    """A token's text with visible signs for line ends, tabs and spaces, and a box for characters
    that the font lacks, cut to `longest` characters."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥").strip() or "␣"
    shown = shown if len(shown) <= longest else shown[: longest - 1] + "…"
    return "".join(sign if known(sign) else "□" for sign in shown)


@functools.cache
def known(sign: str) -> bool:
    """Whether both fonts of matplotlib have the character."""
    fonts = (get_font(findfont(family)) for family in ("DejaVu Sans", "DejaVu Sans Mono"))
    return sign.isprintable() and all(font.get_char_index(ord(sign)) for font in fonts)


def unformatted(text: str) -> str:
    """The text with escaped dollars, which matplotlib would read as a formula."""
    return text.replace("$", r"\$")


def written(text: str, longest: int) -> str:
    """Any text for matplotlib: readable, and never a formula."""
    return unformatted(readable(text, longest))


def columns_of(text: str) -> int:
    """The width of a text in a monospaced font, in characters."""
    return sum(0 if combining(sign) else 1 for sign in text)


def layer_of(path: str) -> tuple[int | None, str]:
    """The layer in a module's path, and the rest of the path: (3, "self_attn.q") for
    "model.layers.3.self_attn.q"."""
    match = NUMBER.search(path)
    return (int(match[1]), path[match.end() :]) if match else (None, path)


def plain_axes(axes: Axes, grid: str = "") -> None:
    """Thin ticks, and a grid along one axis ("x" or "y") if any."""
    axes.tick_params(length=3, color=DIM)
    if grid:
        axes.grid(axis=grid)
