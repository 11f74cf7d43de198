"""The figure `router`: the logits and probabilities of one router for one token."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from .colours import DIM, GREEN, HATCHES, INK, PALE
from .heatmap import label
from .picture import Picture, drawn, plain_axes, rows_of, written

FEW = 16  # up to so many experts, every chosen one has a label
PANELS = {"logit": "the router's logits", "probability": "the router's probabilities"}


@drawn
def router(table: Any, word: str = "") -> Picture:
    """One layer's router for one token: the logits of all experts, and their probabilities with the
    uniform line. Chosen experts are green and hatched, with their rank above the logit and their
    weight above the probability.

    table: mc.tables.router. word: the token's text, for the title. Raises MoEColabError for a
    table without rows or without one of the columns.
    """
    rows = rows_of(table, "a router's choices", "expert", *PANELS, "rank", "weight", "uniform")
    rows.sort(key=lambda row: row["expert"])
    picture = Picture(3.1, title_of(rows, word))
    for axes, (column, title) in zip(picture.subplots(1, 2), PANELS.items(), strict=True):
        draw(axes, rows, column)
        axes.set(title=title, xlabel="expert", ylabel=column)
        label(axes.xaxis, [row["expert"] for row in rows])
        plain_axes(axes, "y")
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    even = rows[0]["uniform"]
    line = axes.axhline(
        even, color=INK, linewidth=1.2, linestyle=(0, (5, 3)), gid="uniform",
        label=f"uniform: {even:.1%}",
    )  # fmt: skip
    chosen = sum(row["rank"] >= 0 for row in rows)
    patches = [
        Patch(facecolor=GREEN, edgecolor=INK, hatch=HATCHES[DIM], label=f"chosen: {chosen}"),
        Patch(facecolor=PALE, edgecolor=DIM, label="not chosen"),
    ]
    picture.legend_below([*patches, line], 3)
    return picture


def title_of(rows: list[dict], word: str) -> str:
    chosen = sorted((row for row in rows if row["rank"] >= 0), key=lambda row: row["rank"])
    token = f"“{written(word, 24)}”" if word.strip() else "This token"
    if not chosen:
        return f"{token} is routed to no expert here"
    first = chosen[:3]
    named = ", ".join(str(row["expert"]) for row in first)
    weights = ", ".join(f"{row['weight']:.2f}" for row in first)
    more = f" and {len(chosen) - 3} more" if len(chosen) > 3 else ""
    plural = "s" if len(chosen) > 1 else ""
    return f"{token} is routed to expert{plural} {named}{more}, with weight{plural} {weights}"


def draw(axes: Axes, rows: list[dict], column: str) -> None:
    values = [row[column] for row in rows]
    for chosen in (True, False):
        own = [place for place, row in enumerate(rows) if (row["rank"] >= 0) == chosen]
        bars = axes.bar(
            own, [values[place] for place in own], width=0.72,
            color=GREEN if chosen else PALE, edgecolor=INK if chosen else DIM, linewidth=0.8,
            hatch=HATCHES[DIM] if chosen else "",
        )  # fmt: skip
        for patch in bars:
            patch.set_gid("chosen" if chosen else "rest")
    low, high = min(0.0, *values), max(0.0, *values)
    for place, row in enumerate(rows):
        if row["rank"] >= 0 and (len(rows) <= FEW or row["rank"] < 3):
            tell(axes, place, row, column)
    room = 0.22 * (high - low or 1)
    axes.set_ylim(low - (room / 3 if low < 0 else 0), high + room)
    axes.axhline(0, color=DIM, linewidth=0.8)


def tell(axes: Axes, place: int, row: dict, column: str) -> None:
    """The rank above a logit, the weight above a probability."""
    text = f"{row['rank'] + 1}." if column == "logit" else f"{row['weight']:.2f}"
    axes.annotate(
        text, (place, max(0.0, row[column])), xytext=(0, 3), textcoords="offset points",
        ha="center", fontsize=9, fontweight="bold",
    )  # fmt: skip
