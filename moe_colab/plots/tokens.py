"""The figure `tokens`: a text, and below each token the experts that it was routed to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from .colours import DIM, INK, ORANGE, PALE, readable_on
from .heatmap import AMOUNT
from .picture import Picture, columns_of, drawn, plain_axes, readable, rows_of

ACROSS = 92  # characters in a line
MOST = 96  # most tokens in a figure
RANKS = 4  # most choices of a token
LONGEST = 16  # characters of a token
LETTER, LINE = 9, 0.21  # font size in points; height of a line in inches
UNKNOWN = (0.93, 0.94, 0.96, 1.0)  # the shade where no probability is known


@dataclass(frozen=True)
class Spot:
    """The position of a token: its line, and its first character and width in that line."""

    line: int
    left: float
    wide: float


@drawn
def tokens(table: Any, marked: int | None = None) -> Picture:
    """A text as tokens, and below each token its experts in one layer, the first choice on top. The
    digits name the expert, the shade is the router's probability. Tokens of the prompt are in
    italics.

    table: mc.tables.tokens; at most four choices and 96 tokens are shown. marked: the place of a
    token that gets a frame. Raises MoEColabError for a table without
    rows or without one of the columns.
    """
    columns = ("place", "phase", "text", "layer", "rank", "expert", "probability")
    rows = rows_of(table, "tokens", *columns)
    by_place: dict[int, list[dict]] = {}
    for row in rows:
        if row["rank"] < RANKS:
            by_place.setdefault(row["place"], []).append(row)
    shown = dict(list(by_place.items())[:MOST])
    texts = {place: own[0]["text"] for place, own in shown.items()}
    words = {place: readable(text, LONGEST) if text else "" for place, text in texts.items()}
    spots = flow(
        max(columns_of(words[place]), *(len(expert_label(row)) for row in own)) + 1
        for place, own in shown.items()
    )
    deep = 1 + max(len(own) for own in shown.values())  # lines of a token
    lines = 1 + max(spot.line for spot in spots)
    picture = Picture(lines * (deep + 0.6) * LINE + 1.15, title_of(shown))
    axes = picture.subplots()
    for (place, own), spot in zip(shown.items(), spots, strict=True):
        top, prompt = spot.line * (deep + 0.6), own[0]["phase"] == "prompt"
        written(axes, spot, top, words[place], style="italic" if prompt else "normal")
        if place == marked:
            frame = Rectangle((spot.left, top), spot.wide - 0.4, deep, fill=False)
            frame.set(edgecolor=ORANGE, linewidth=2, gid="marked", clip_on=False)
            axes.add_patch(frame)
    scale = Normalize(0, 1)
    draw_experts(axes, shown, spots, deep, scale)
    axes.set_xlim(0, ACROSS)
    axes.set_ylim(lines * (deep + 0.6), 0)
    axes.set_axis_off()
    legend(picture, axes, rows, scale)
    return picture


def expert_label(row: dict) -> str:
    return str(row["expert"]) if row["expert"] >= 0 else "–"


def flow(widths: Iterable[int]) -> list[Spot]:
    """The positions of words of these widths, with line breaks."""
    spots, line, left = [], 0, 0.0
    for wide in widths:
        if left + wide > ACROSS and left:
            line, left = line + 1, 0.0
        spots.append(Spot(line, left, wide))
        left += wide
    return spots


def written(axes: Axes, spot: Spot, top: float, text: str, **settings) -> None:
    axes.text(
        spot.left + spot.wide / 2 - 0.2, top + 0.5, text, ha="center", va="center",
        family="DejaVu Sans Mono", fontsize=LETTER, parse_math=False, **settings,
    )  # fmt: skip


def draw_experts(
    axes: Axes, shown: dict[int, list[dict]], spots: Sequence[Spot], deep: int, scale: Normalize
) -> None:
    """Draw a box for each choice, in one collection and in the order of the rows."""
    boxes, faces = [], []
    for own, spot in zip(shown.values(), spots, strict=True):
        for row in own:
            top = spot.line * (deep + 0.6) + 1 + row["rank"]
            left, right = spot.left + 0.05, spot.left + spot.wide - 0.45
            boxes.append([(left, top), (right, top), (right, top + 0.92), (left, top + 0.92)])
            odd = row["probability"]
            face = UNKNOWN if np.isnan(odd) else colormaps[AMOUNT](scale(odd))
            faces.append(face)
            written(axes, spot, top, expert_label(row), color=readable_on(face))
    collection = PolyCollection(boxes, facecolors=faces, edgecolors=PALE, linewidths=0.6)
    collection.set_gid("experts")
    axes.add_collection(collection)


def title_of(shown: dict[int, list[dict]]) -> str:
    firsts = [own[0]["expert"] for own in shown.values() if own[0]["expert"] >= 0]
    layer = next(iter(shown.values()))[0]["layer"]
    if not firsts:
        return f"Layer {layer} routed none of these tokens to an expert"
    most = max(sorted(set(firsts)), key=firsts.count)
    return (
        f"In layer {layer}, expert {most} is the first choice of {firsts.count(most)} of "
        f"{len(firsts)} tokens"
    )


def legend(picture: Picture, axes: Axes, rows: Sequence[dict], scale: Normalize) -> None:
    notes = ["digits: the expert"]
    if any(row["phase"] == "prompt" for row in rows):
        notes.append("italics: prompt")
    most = 1 + max(row["rank"] for row in rows)
    if most > RANKS:
        notes.append(f"the first {RANKS} of {most} choices")
    if any(row["probability"] == row["probability"] for row in rows):
        bar = picture.colorbar(
            ScalarMappable(scale, colormaps[AMOUNT]), ax=axes, orientation="horizontal",
            location="bottom", fraction=0.04, aspect=40, shrink=0.45, anchor=(0.03, 0), pad=0.02,
            format=lambda value, _: f"{100 * value:g} %",
        )  # fmt: skip
        bar.set_label("shade: the router's probability; " + "; ".join(notes), color=INK, loc="left")
        bar.outline.set_visible(False)
        plain_axes(bar.ax)
    else:
        notes.append("this trace has no logits, so no shades")
        picture.supxlabel("; ".join(notes), x=0.01, ha="left", fontsize=9.5, color=DIM)
