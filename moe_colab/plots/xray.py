"""The x-ray's twin: tokens across, layers down; in each cell the expert, the router's probability
as a shade, and what became of the access."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from ..errors import MoEColabError
from ..trace.outcomes import SIGNS
from .picture import DIM, INK, Picture, drawn, need, records, written

MOST, WIDE = 24, 18  # tokens that are legible on a page of this width, and with numbers over 99
ROOM = 24  # lines of numbers: with more layers than half of it, each has its first choice only
LONGEST = 9  # letters of a token
DARKEST = 0.34  # how much ink the shade of a probability of 1 takes


@drawn
def xray(table: Any, first: int | None = None, tokens: int = MOST, title: str = "") -> Picture:
    """Where each token was sent and what it cost. In a cell the numbers of the router's first
    choices (the first alone where there are many layers): the darker, the more probable; beside
    each the sign of its outcome, a ring where an earlier token of the same step has paid.

    table: rows with the columns number, text, layer, rank, expert, chance (0 to 1, nan: not known),
    outcome ("" where it is not known), first; mc.xray draws its own. first, tokens: the first
    token that is drawn, and how many, 24 at most (18 where experts have three figures). Raises
    MoEColabError for a table without rows or without one of the columns, or for tokens that are
    not in it.
    """
    rows = records(table)
    columns = ("number", "text", "layer", "rank", "expert", "chance", "outcome", "first")
    need(rows, "choices", *columns)
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
    picture.legend(handles=handles(choices), loc="outside lower left", ncols=2)
    return picture


def title_of(rows: Sequence[dict], title: str) -> str:
    paid = [row["outcome"] for row in rows if row["first"] and row["outcome"]]
    told = f"{paid.count('miss')} of {len(paid)} accesses were misses"
    return ": ".join(part for part in (title, told if paid else "") if part)


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
    """Colour, marker and face."""
    if not row["first"]:
        return DIM, "o", "none"
    if not row["outcome"]:
        return DIM, "$?$", DIM
    outcome = SIGNS[row["outcome"]]
    return outcome.colour, outcome.marker, outcome.colour


def handles(rows: Sequence[dict]) -> list[Line2D]:
    """The signs that were drawn, and what they mean."""
    found = {row["outcome"] if row["first"] else "shared" for row in rows}
    out = [
        Line2D([], [], marker=s.marker, color=s.colour, linestyle="", label=f"{s.name}: {s.means}")
        for name, s in SIGNS.items()
        if name in found
    ]
    other = {"shared": ("o", "an earlier token of its step has paid"), "": ("$?$", "not known")}
    return out + [
        Line2D([], [], marker=marker, color=DIM, markerfacecolor="none", linestyle="", label=label)
        for name, (marker, label) in other.items()
        if name in found
    ]


def word(text: str, number: int) -> str:
    return written(text, LONGEST) if text else str(number)
