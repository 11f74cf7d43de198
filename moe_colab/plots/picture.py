"""The paper that figures are drawn on: size, letters, colours, and how one shows itself.

Knows matplotlib's Figure, not pyplot: nothing is opened, kept or switched on, and what a user has
set for figures of their own changes neither these nor them. Knows nothing of what is drawn.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from unicodedata import combining

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from ..errors import MoEColabError
from ..trace.outcomes import GREEN, ORANGE, PINK

INK, DIM, PALE = "#1f2328", "#57606a", "#d0d7de"
HATCHES = {GREEN: "", ORANGE: "///", PINK: "...", DIM: "xxx", INK: "\\\\\\"}
WIDTH, DOTS = 8.0, 100  # inches, and dots an inch: 800, what GitHub shows
SHARPER = 2  # dots saved for each dot shown
LOOK = {
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
    """A figure of `height` inches on opaque white, as wide as GitHub shows a notebook's."""

    def __init__(self, height: float, title: str = ""):
        super().__init__(figsize=(WIDTH, height), dpi=DOTS, facecolor="white", layout="constrained")
        if title:
            self.suptitle(title, x=0.01, ha="left")

    def png(self) -> bytes:
        """As it is shown and saved."""
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=SHARPER * DOTS, facecolor="white")
        return file.getvalue()

    @property
    def shown_size(self) -> dict[str, int]:
        """In dots of a page."""
        width, height = self.get_size_inches() * DOTS
        return {"width": round(width), "height": round(height)}

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return self.png(), self.shown_size


def drawn(draw: Callable[..., Picture]) -> Callable[..., Picture]:
    """A function that draws in our look, whatever look is set."""

    @functools.wraps(draw)
    def wrapped(*args, **settings) -> Picture:
        with style.context(["default", LOOK]):
            return draw(*args, **settings)

    return wrapped


def records(table: Any) -> list[dict[str, Any]]:
    """The rows of a frame, or of any sequence of mappings, as dictionaries."""
    if hasattr(table, "to_dict"):
        return table.to_dict("records")
    return [dict(row) for row in table]


def need(rows: Iterable[Mapping[str, Any]], what: str, *columns: str) -> None:
    """Raises MoEColabError where there are no rows, or one lacks a column."""
    rows = list(rows)
    if not rows:
        raise MoEColabError(f"there is nothing to draw: the table of {what} has no rows.")
    missing = [name for name in columns if any(name not in row for row in rows)]
    if missing:
        raise MoEColabError(
            f"the table of {what} has no column {', '.join(missing)}: it has {', '.join(rows[0])}."
        )


def unit_of(nbytes: float) -> tuple[str, float]:
    """The unit in which such a number of bytes is told: GB, MB or kB, and its bytes."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if nbytes >= factor:
            return unit, factor
    return "kB", 1e3


def readable(text: str, longest: int) -> str:
    """A token's text where it can be seen: line ends, tabs and blanks as signs, what the font has
    no letter for as a box, cut to `longest` letters."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥").strip() or "␣"
    shown = shown if len(shown) <= longest else shown[: longest - 1] + "…"
    return "".join(sign if known(sign) else "□" for sign in shown)


@functools.cache
def known(sign: str) -> bool:
    """Whether both fonts that come with matplotlib can write it."""
    fonts = (get_font(findfont(family)) for family in ("DejaVu Sans", "DejaVu Sans Mono"))
    return sign.isprintable() and all(font.get_char_index(ord(sign)) for font in fonts)


def unformatted(text: str) -> str:
    """For where matplotlib would read a formula between two dollars."""
    return text.replace("$", r"\$")


def written(text: str, longest: int) -> str:
    """Somebody's words where matplotlib writes them: readable, and no formula."""
    return unformatted(readable(text, longest))


def columns_of(text: str) -> int:
    """How many letters wide it is in a font whose letters are all of one width."""
    return sum(0 if combining(sign) else 1 for sign in text)


def layer_of(path: str) -> tuple[int | None, str]:
    """The layer that a module's path names, and what comes after it: "model.layers.3.self_attn.q"
    is (3, "self_attn.q")."""
    found = NUMBER.search(path)
    return (int(found[1]), path[found.end() :]) if found else (None, path)


def plain_axes(axes: Axes, grid: str = "") -> None:
    """Thin lines; a grid along the axis that is read."""
    axes.tick_params(length=3, color=DIM)
    if grid:
        axes.grid(axis=grid)


def readable_on(colour: tuple[float, ...]) -> str:
    """Black or white, whichever stands out more: at least 4.5 to 1 on any colour."""
    return max("#000000", "#ffffff", key=lambda one: contrast(to_hex(colour), one))


def contrast(one: str, other: str) -> float:
    """Of two colours "#rrggbb", as WCAG 2 defines it: 1 to 21."""
    light, dark = sorted(map(luminance, (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
