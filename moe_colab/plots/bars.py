"""Where the bytes go: those of a store, and those of a model at work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from .picture import (
    DIM,
    GREEN,
    HATCHES,
    INK,
    ORANGE,
    PINK,
    Picture,
    drawn,
    need,
    plain_axes,
    records,
    unit_of,
)

KINDS = {
    "codes": GREEN,
    "scales and zeros": ORANGE,
    "kept": DIM,
    "padding and the rest": PINK,
}
PATCH = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # over the grid
KEPT_BITS = 16  # and more: a number as it was, without a scale


@drawn
def bits(report: Any) -> Picture:
    """Where the bytes go: a bar for every part of a store, made of codes, of their scales and
    zeros, of weights that were kept, and of what is none of these; with its real bits per weight.

    report: a `Summary`, whose totals tell what padding, headers and small tensors take; or a frame
    of the same columns alone (matrix, bits, weights, bytes; `part` where there are several).
    Raises MoEColabError for a table without rows or without one of the columns.
    """
    parts, weights = split(report)
    total = sum(sum(kinds.values()) for kinds in parts.values())
    unit, factor = unit_of(total)
    picture = Picture(1.5 + 0.62 * len(parts), title_of(parts, total, unit, factor))
    axes = picture.subplots()
    for place, (part, kinds) in enumerate(parts.items()):
        draw(axes, place, kinds, factor)
        end = sum(kinds.values())
        told = f" {end / factor:.2f} {unit}"
        if weights.get(part):
            told += f", {8 * end / weights[part]:.2f} bits per weight"
        axes.text(end / factor, place, told, va="center", color=INK, bbox=PATCH)
    frame(axes, list(parts), unit)
    axes.set_xlim(0, 1.42 * max(sum(kinds.values()) for kinds in parts.values()) / factor)
    explain(picture, axes, KINDS, 4)
    return picture


def split(report: Any) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """({part: {kind: bytes}}, {part: weights})."""
    rows = records(report.frame() if hasattr(report, "frame") else report)
    need(rows, "bytes", "bits", "weights", "bytes")
    parts: dict[str, dict[str, int]] = {}
    weights: dict[str, int] = {}
    for row in rows:
        part = str(row.get("part", "experts"))
        kinds = parts.setdefault(part, dict.fromkeys(KINDS, 0))
        weights[part] = weights.get(part, 0) + int(row["weights"])
        if row["bits"] >= KEPT_BITS:
            kinds["kept"] += int(row["bytes"])
        else:
            codes = int(row["weights"]) * int(row["bits"]) // 8
            kinds["codes"] += codes
            kinds["scales and zeros"] += int(row["bytes"]) - codes
    if hasattr(report, "frame"):
        add_rest(parts, report)
    return parts, weights


def add_rest(parts: dict[str, dict[str, int]], summary: Any) -> None:
    """What the totals have and no row tells."""
    rest = "padding and the rest"
    experts = parts.setdefault("experts", dict.fromkeys(KINDS, 0))
    experts[rest] += summary.expert_bytes - sum(experts.values())
    told = sum(sum(kinds.values()) for part, kinds in parts.items() if part != "experts")
    dense = parts.setdefault("dense", dict.fromkeys(KINDS, 0))
    kind = rest if told else "kept"
    dense[kind] += summary.dense_bytes - told


def title_of(parts: dict, total: int, unit: str, factor: float) -> str:
    shares = {kind: sum(kinds[kind] for kinds in parts.values()) / total for kind in KINDS}
    told = ", ".join(f"{share:.0%} {kind}" for kind, share in shares.items() if share >= 0.03)
    return f"{total / factor:.2f} {unit}: {told}"


def draw(
    axes: Axes, place: int, kinds: dict[str, int], factor: float, colours: Mapping[str, str] = KINDS
) -> None:
    start = 0
    for kind, nbytes in kinds.items():
        colour = colours[kind]
        axes.barh(
            place, nbytes / factor, left=start / factor, height=0.62, label=kind,
            color=colour, edgecolor="white", hatch=HATCHES[colour], linewidth=0.8,
        )  # fmt: skip
        start += nbytes


PLACES = {"device": "device", "host": "host memory", "disk": "disk"}
PARTS = {
    "all but the experts": DIM,
    "slots": GREEN,
    "spares": PINK,
    "experts that stay": INK,
    "experts": ORANGE,
}


@drawn
def memory(rows: Any, limits: Mapping[str, float] | None = None) -> Picture:
    """What lies where: a bar for the device, one for host memory and one for the disk, each made of
    its parts, and a line at what there is.

    rows: of `model.offload.memory()`: place ("device", "host", "disk"), part, bytes. limits: bytes
    that a place has. Raises MoEColabError for a table without rows or without one of the columns.
    """
    rows, limits = records(rows), dict(limits or {})
    need(rows, "memory", "place", "part", "bytes")
    places = [place for place in PLACES if any(row["place"] == place for row in rows)]
    total = {p: sum(row["bytes"] for row in rows if row["place"] == p) for p in places}
    limits = {place: limit for place, limit in limits.items() if place in places}
    unit, factor = unit_of(max(*total.values(), *limits.values(), 1))
    picture = Picture(1.5 + 0.62 * len(places), memory_title(total, limits))
    axes = picture.subplots()
    for at, place in enumerate(places):
        kinds = dict.fromkeys(PARTS, 0)
        for row in rows:
            if row["place"] == place:
                kinds[row["part"]] += row["bytes"]
        draw(axes, at, kinds, factor, PARTS)
        told = f"{total[place] / factor:.2f} {unit}"
        if place in limits:
            axes.vlines(limits[place] / factor, at - 0.42, at + 0.42, color=INK, linewidth=2.2)
            told += f" of {limits[place] / factor:.2f}"
        end = max(total[place], limits.get(place, 0))
        axes.annotate(
            told, (end / factor, at), xytext=(6, 0), textcoords="offset points", va="center",
            color=INK, bbox=PATCH,
        )  # fmt: skip
    frame(axes, [PLACES[place] for place in places], unit)
    axes.set_xlim(0, 1.3 * max(*total.values(), *limits.values(), 1) / factor)
    used = [part for part in PARTS if any(row["part"] == part for row in rows)]
    explain(picture, axes, used, 5)
    return picture


def memory_title(total: Mapping[str, float], limits: Mapping[str, float]) -> str:
    over = [PLACES[place] for place in limits if total[place] > limits[place]]
    if over:
        return f"More than there is: {' and '.join(over)}"
    whole = sum(total.values())
    told = ", ".join(f"{total[p] / whole:.0%} {PLACES[p]}" for p in total)
    return f"Where the bytes lie: {told}"


def frame(axes: Axes, names: Sequence[str], unit: str) -> None:
    """A bar for each name, from the top."""
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.tick_params(axis="y", length=0)
    plain_axes(axes, "x")


def explain(picture: Picture, axes: Axes, kinds: Iterable[str], across: int) -> None:
    """Each kind once."""
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    picture.legend([unique[kind] for kind in kinds], kinds, loc="outside lower left", ncols=across)
