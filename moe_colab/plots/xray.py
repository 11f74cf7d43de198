"""The figure `xray`: tokens across, layers down; each cell has the expert, the router's probability
and the outcome."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from ..errors import MoEColabError
from ..trace.outcomes import SIGNS
from .colours import DIM, INK
from .picture import Picture, drawn, rows_of, sign_handle, written

MOST, WIDE = 24, 18  # most tokens in a figure; the same with experts over 99
ROOM = 24  # most lines of numbers: with more than 12 layers, only the first choices
LONGEST = 9  # characters of a token
DARKEST = 0.34  # opacity of the shade for probability 1


@drawn
def xray(table: Any, first: int | None = None, tokens: int = MOST, title: str = "") -> Picture:
    """The routing and the cost of each token. A cell has the numbers of the router's first two
    choices (one if there are many layers), darker if more probable, and the sign of each outcome: a
    ring if the expert was loaded for an earlier token of the same step.

    table: rows with the columns number, text, layer, rank, expert, chance (0 to 1, nan if unknown),
    outcome ("" if unknown) and first; mc.xray makes its own. first: the first token drawn. tokens:
    how many, at most 24 (18 if an expert has three digits). Raises MoEColabError for a table
    without rows or without one of the columns, or for tokens that are not in it.
    """
    columns = ("number", "text", "layer", "rank", "expert", "chance", "outcome", "first")
    rows = rows_of(table, "choices", *columns)
    numbers = sorted({row["number"] for row in rows})
    first = numbers[0] if first is None else first
    most = MOST if max(row["expert"] for row in rows) < 100 else WIDE
    shown = [number for number in numbers if number >= first][: min(tokens, most)]
    if not shown:
        raise MoEColabError(f"there is no token {first} to draw: the last one is {numbers[-1]}.")
    layers = max(row["layer"] for row in rows) + 1
    lines = 2 if 2 * layers <= ROOM and any(row["rank"] for row in rows) else 1
    rows = [row for row in rows if row["number"] in shown]
    picture = Picture(1.5 + (0.44 if lines == 2 else 0.19) * layers, title_of(rows, title))
    axes = picture.subplots()
    frame(axes, rows, shown, layers)
    choices = [row for row in rows if row["rank"] < lines]
    for row in choices:
        draw(axes, row, shown.index(row["number"]), lines)
    picture.legend_below(handles(choices), 2)
    return picture


def title_of(rows: Sequence[dict], title: str) -> str:
    outcomes = [row["outcome"] for row in rows if row["first"] and row["outcome"]]
    misses = f"{outcomes.count('miss')} of {len(outcomes)} accesses were misses"
    return ": ".join(part for part in (title, misses if outcomes else "") if part)


def frame(axes: Axes, rows: Sequence[dict], shown: Sequence[int], layers: int) -> None:
    words = {row["number"]: word(row["text"], row["number"]) for row in rows}
    axes.set_xlim(-0.5, len(shown) - 0.5)
    axes.set_ylim(layers - 0.5, -0.5)
    axes.set_xticks(
        range(len(shown)), [words[number] for number in shown], rotation=55, fontsize=9, ha="left",
        rotation_mode="anchor",
    )  # fmt: skip
    axes.xaxis.tick_top()
    axes.set_yticks(range(layers))
    axes.set_ylabel("MoE layer")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def draw(axes: Axes, row: dict, column: int, lines: int) -> None:
    high = 0.9 / lines
    middle = row["layer"] - 0.45 + high * (row["rank"] + 0.5)
    known = row["chance"] == row["chance"]  # not nan
    box = Rectangle((column - 0.44, middle - high / 2 + 0.02), 0.54, high - 0.04, linewidth=0)
    box.set_facecolor((*to_rgb(INK), DARKEST * row["chance"] if known else 0))
    box.set_gid("chance")
    axes.add_patch(box)
    axes.text(
        column - 0.17, middle, str(row["expert"]), ha="center", va="center_baseline", fontsize=8.5,
        gid="expert",
    )  # fmt: skip
    colour, marker, face = sign(row)
    line = axes.plot(
        column + 0.28, middle, marker=marker, color=colour, markersize=5.5, markeredgecolor=colour,
        markerfacecolor=face, markeredgewidth=0.8,
    )  # fmt: skip
    line[0].set_gid(row["outcome"] if row["first"] else "shared")


def sign(row: dict) -> tuple[str, str, str]:
    """(colour, marker, face colour) of a choice."""
    if not row["first"]:
        return DIM, "o", "none"
    if not row["outcome"]:
        return DIM, "$?$", DIM
    outcome = SIGNS[row["outcome"]]
    return outcome.colour, outcome.marker, outcome.colour


def handles(rows: Sequence[dict]) -> list[Line2D]:
    """The legend of the signs that were drawn."""
    drawn = {row["outcome"] if row["first"] else "shared" for row in rows}
    out = [
        sign_handle(f"{s.name}: {s.means}", s.colour, s.marker)
        for name, s in SIGNS.items()
        if name in drawn
    ]
    other = {"shared": ("o", "loaded for an earlier token of its step"), "": ("$?$", "not known")}
    return out + [
        sign_handle(label, DIM, marker, markerfacecolor="none")
        for name, (marker, label) in other.items()
        if name in drawn
    ]


def word(text: str, number: int) -> str:
    return written(text, LONGEST) if text else str(number)
