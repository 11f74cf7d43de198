"""The figure `needs`: the bytes that models need, beside the memory of a machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from ..units import human
from .bars import PATCH, explain, frame
from .colours import DIM, GREEN, INK, ORANGE, PALE, hatched
from .picture import Picture, drawn, rows_of

STYLES = {
    "used by every token": hatched(INK),
    "experts of one token": hatched(GREEN),
    "all other experts": hatched(ORANGE),
    "free": {"color": "white", "edgecolor": INK, "linewidth": 0.8},
    "in use": {"color": PALE, "edgecolor": INK, "linewidth": 0.8},
}
ROOM = 1.25  # the axis ends at so many times the largest model; longer memories are cut there
Bars = dict[str, dict[str, float]]  # {name: {part: bytes}}


@drawn
def needs(rows: Any) -> Picture:
    """What models need and what a machine has: a bar for each, divided into its parts. Of a model
    these are what every token uses, the experts that one token uses, and all other experts. A
    memory much larger than the models is cut at the edge; its number is not.

    rows: `mc.needs()`, with name, kind ("model" or "memory"), part and bytes. Raises MoEColabError
    for a table without rows or without one of the columns.
    """
    rows = rows_of(rows, "needs", "name", "kind", "part", "bytes")
    bars: Bars = {}
    for row in rows:
        bars.setdefault(row["name"], {})[row["part"]] = row["bytes"]
    models = [name for name in bars if kind_of(rows, name) == "model"]
    memories = [name for name in bars if name not in models]
    largest = max((sum(bars[name].values()) for name in models), default=0)
    edge = ROOM * (largest or max(sum(parts.values()) for parts in bars.values()))
    picture = Picture(1.7 + 0.5 * len(bars), title_of(bars, models, memories))
    axes = picture.subplots()
    for place, name in enumerate([*models, *memories]):
        draw(axes, place, bars[name], edge)
    frame(axes, [*models, *memories], "GB")
    if models and memories:
        axes.axhline(len(models) - 0.5, color=DIM, linewidth=0.8)
    axes.set_xlim(0, 1.32 * edge / 1e9)
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= edge / 1e9])
    used = [part for part in STYLES if any(part in parts for parts in bars.values())]
    explain(picture, axes, used, 5)
    return picture


def kind_of(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    return next(row["kind"] for row in rows if row["name"] == name)


def draw(axes: Axes, place: int, parts: Mapping[str, float], edge: float) -> None:
    """One bar, cut at the edge, with its numbers beside it."""
    start = 0.0
    for part, nbytes in parts.items():
        end = min(start + nbytes, edge)
        axes.barh(
            place, (end - start) / 1e9, left=start / 1e9, height=0.6, label=part, **STYLES[part]
        )  # fmt: skip
        start = end
    cut = "… " if sum(parts.values()) > edge else ""
    axes.annotate(
        cut + text_of(parts), (start / 1e9, place), xytext=(5, 0), textcoords="offset points",
        va="center", color=INK, fontsize=9, bbox=PATCH,
    )  # fmt: skip


def text_of(parts: Mapping[str, float]) -> str:
    whole = human(sum(parts.values()))
    if "free" in parts:
        return f"{human(parts['free'])} free of {whole}"
    used = sum(nbytes for part, nbytes in parts.items() if part != "all other experts")
    return f"{whole}; a token uses {human(used)}"


def title_of(bars: Bars, models: Sequence[str], memories: Sequence[str]) -> str:
    """Whether the first model fits into the largest free memory."""
    if not models:
        return "The memory of this machine"
    first, need = models[0], sum(bars[models[0]].values())
    free = max((bars[name].get("free", 0) for name in memories), default=0)
    if not memories:
        return f"{first}: {human(need)}"
    if need <= free:
        return f"{first} fits into the {human(free)} that are free here"
    return f"{first} does not fit: it needs {human(need)}, and {human(free)} are free"
