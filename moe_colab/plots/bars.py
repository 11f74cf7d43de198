"""The figures `bits` and `memory`: the bytes of a store, and of a running model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from .colours import DIM, GREEN, INK, ORANGE, PINK, hatched
from .picture import Picture, drawn, plain_axes, rows_of, unit_of

KINDS = {"codes": GREEN, "scales and zeros": ORANGE, "not quantized": DIM, "other bytes": PINK}
PATCH = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # behind texts, over the grid
KEPT_BITS = 16  # from here on, weights are not quantized


@drawn
def bits(report: Any) -> Picture:
    """The bytes of a store: a bar for each part, divided into codes, scales and zeros, weights that
    were not quantized, and other bytes; with the real bits per weight.

    report: a `Summary`, from whose totals the rest follows (padding, headers, small tensors); or
    only its frame (columns matrix, bits, weights, bytes, and `part` if there are several). Raises
    MoEColabError for a table without rows or without one of the columns.
    """
    parts, weights = split(report)
    total = sum(sum(kinds.values()) for kinds in parts.values())
    unit, factor = unit_of(total)
    picture = Picture(1.5 + 0.62 * len(parts), title_of(parts, total, unit, factor))
    axes = picture.subplots()
    for place, (part, kinds) in enumerate(parts.items()):
        draw(axes, place, kinds, factor)
        end = sum(kinds.values())
        text = f" {end / factor:.2f} {unit}"
        if weights.get(part):
            text += f", {8 * end / weights[part]:.2f} bits per weight"
        axes.text(end / factor, place, text, va="center", color=INK, bbox=PATCH)
    frame(axes, list(parts), unit)
    axes.set_xlim(0, 1.42 * max(sum(kinds.values()) for kinds in parts.values()) / factor)
    explain(picture, axes, KINDS, 4)
    return picture


def split(report: Any) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """({part: {kind: bytes}}, {part: weights})."""
    frame = report.frame() if hasattr(report, "frame") else report
    rows = rows_of(frame, "bytes", "bits", "weights", "bytes")
    parts: dict[str, dict[str, int]] = {}
    weights: dict[str, int] = {}
    for row in rows:
        part = str(row.get("part", "experts"))
        kinds = parts.setdefault(part, dict.fromkeys(KINDS, 0))
        weights[part] = weights.get(part, 0) + int(row["weights"])
        if row["bits"] >= KEPT_BITS:
            kinds["not quantized"] += int(row["bytes"])
        else:
            codes = int(row["weights"]) * int(row["bits"]) // 8
            kinds["codes"] += codes
            kinds["scales and zeros"] += int(row["bytes"]) - codes
    if hasattr(report, "frame"):
        add_rest(parts, report)
    return parts, weights


def add_rest(parts: dict[str, dict[str, int]], summary: Any) -> None:
    """Add the bytes that are in the totals of the summary but in none of its rows."""
    rest = "other bytes"
    experts = parts.setdefault("experts", dict.fromkeys(KINDS, 0))
    experts[rest] += summary.expert_bytes - sum(experts.values())
    listed = sum(sum(kinds.values()) for part, kinds in parts.items() if part != "experts")
    dense = parts.setdefault("dense", dict.fromkeys(KINDS, 0))
    kind = rest if listed else "not quantized"
    dense[kind] += summary.dense_bytes - listed


def title_of(parts: dict, total: int, unit: str, factor: float) -> str:
    shares = {kind: sum(kinds[kind] for kinds in parts.values()) / total for kind in KINDS}
    main = ", ".join(f"{share:.0%} {kind}" for kind, share in shares.items() if share >= 0.03)
    return f"The model takes {total / factor:.2f} {unit}: {main}"


def draw(
    axes: Axes, place: int, kinds: dict[str, int], factor: float, colours: Mapping[str, str] = KINDS
) -> None:
    start = 0
    for kind, nbytes in kinds.items():
        bar = {"left": start / factor, "height": 0.62, "label": kind, **hatched(colours[kind])}
        axes.barh(place, nbytes / factor, **bar)
        start += nbytes


PLACES = {"device": "device", "host": "host memory", "disk": "disk"}
SPACE = {"device": "device memory", "host": "host memory", "disk": "disk space"}
ON = {"device": "on the device", "host": "in host memory", "disk": "on disk"}
PARTS = {
    "all but the experts": DIM,
    "slots": GREEN,
    "spares": PINK,
    "pinned experts": INK,
    "experts": ORANGE,
}


@drawn
def memory(rows: Any, limits: Mapping[str, float] | None = None) -> Picture:
    """The memory of a running model: a bar for the device, one for host memory and one for the
    disk, each divided into its parts, and a line at its limit.

    rows: `model.offload.memory()`, with place ("device", "host", "disk"), part and bytes. limits:
    the bytes that each place has. Raises MoEColabError for a table without rows or without one of
    the columns.
    """
    rows, limits = rows_of(rows, "memory", "place", "part", "bytes"), dict(limits or {})
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
        text = f"{total[place] / factor:.2f} {unit}"
        if place in limits:
            axes.vlines(limits[place] / factor, at - 0.42, at + 0.42, color=INK, linewidth=2.2)
            text += f" of {limits[place] / factor:.2f}"
        end = max(total[place], limits.get(place, 0))
        axes.annotate(
            text, (end / factor, at), xytext=(6, 0), textcoords="offset points", va="center",
            color=INK, bbox=PATCH,
        )  # fmt: skip
    frame(axes, [PLACES[place] for place in places], unit)
    axes.set_xlim(0, 1.3 * max(*total.values(), *limits.values(), 1) / factor)
    used = [part for part in PARTS if any(row["part"] == part for row in rows)]
    explain(picture, axes, used, 5)
    return picture


def memory_title(total: Mapping[str, float], limits: Mapping[str, float]) -> str:
    over = [SPACE[place] for place in limits if total[place] > limits[place]]
    if over:
        return f"There is not enough {' and '.join(over)}"
    whole = sum(total.values())
    shares = ", ".join(f"{total[p] / whole:.0%} {ON[p]}" for p in total)
    return f"Where the bytes are: {shares}"


def frame(axes: Axes, names: Sequence[str], unit: str) -> None:
    """Label the bars, the first one at the top."""
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    plain_axes(axes, "x")
    axes.tick_params(axis="y", length=0)


def explain(picture: Picture, axes: Axes, kinds: Iterable[str], across: int) -> None:
    """A legend that lists each kind once."""
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    picture.legend([unique[kind] for kind in kinds], kinds, loc="outside lower left", ncols=across)
