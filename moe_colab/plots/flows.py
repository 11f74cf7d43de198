"""The ways that tokens take through the experts of two or three layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.patches import Patch
from matplotlib.path import Path
from matplotlib.ticker import PercentFormatter

from ..errors import MoEColabError
from .colours import DIM, GREEN, INK, PALE
from .picture import Picture, drawn, plain_axes, rows_of

LAYERS = 3  # at the most
MOST = 12  # experts of a layer that are told apart
OTHERS = -1  # all the others, as one
GAP, WIDE = 0.012, 0.05  # of all tokens, between experts; of a layer's bar
Node = tuple[int, int]  # a layer and an expert of it


@drawn
def flows(table: Any) -> Picture:
    """Two or three layers from left to right, a bar for each expert, as high as the share of the
    tokens that it is sent, and a band for each way from one to the next. Ways that are taken more
    often than independence gives (it lies below their 95 % interval) are green and have an edge. Of
    many experts the busiest twelve of each layer are told apart.

    table: of mc.tables.transitions, of one or two hops. Raises MoEColabError for more, and for a
    table without rows or without one of the columns.
    """
    rows = rows_of(table, "transitions", *("layer", "expert", "next", "low", "independent", "flow"))
    layers = sorted({row["layer"] for row in rows})
    if len(layers) >= LAYERS:
        raise MoEColabError(
            f"flows through {len(layers) + 1} layers are too many to draw: make the table with "
            f"at most {LAYERS - 1} hops."
        )
    ways = gathered(rows)
    heights = heights_of(ways)
    tops = stacked(heights)
    picture = Picture(4.6, title_of(ways))
    axes = picture.subplots()
    draw_bands(axes, ways, tops)
    draw_nodes(axes, tops, heights)
    axes.set_xlim(-0.12, len(layers) + 0.12)
    axes.set_ylim(max(tops[node] + heights[node] for node in tops) + GAP, -GAP)
    axes.set_xticks(range(len(layers) + 1), [f"layer {n}" for n in (*layers, layers[-1] + 1)])
    axes.set_ylabel("share of the tokens")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.tick_params(axis="x", length=0)
    plain_axes(axes)
    handles = [
        Patch(facecolor=GREEN, edgecolor=INK, label=MORE),
        Patch(facecolor=PALE, edgecolor="white", label="not significantly more often"),
    ]
    picture.legend_below(handles, 2)
    return picture


MORE = "more often than with independent layers"
Ways = dict[tuple[Node, Node], tuple[float, bool]]


def gathered(rows: Sequence[Mapping]) -> Ways:
    """{(from, to): (flow, significantly more than under independence)}; the busiest experts of each
    layer, and the others together."""
    busy: dict[int, dict[int, float]] = {}
    for row in rows:
        for layer, expert in ((row["layer"], row["expert"]), (row["layer"] + 1, row["next"])):
            own = busy.setdefault(layer, {})
            own[expert] = own.get(expert, 0.0) + row["flow"]
    kept = {
        layer: own if len(own) <= MOST else set(sorted(own, key=own.get, reverse=True)[:MOST])
        for layer, own in busy.items()
    }
    ways: Ways = {}
    for row in rows:
        source, target = (
            (layer, expert if expert in kept[layer] else OTHERS)
            for layer, expert in ((row["layer"], row["expert"]), (row["layer"] + 1, row["next"]))
        )
        flow, _ = ways.get((source, target), (0.0, False))
        single = OTHERS not in (source[1], target[1])
        more = single and row["low"] > row["independent"]
        ways[source, target] = flow + row["flow"], more
    return ways


def heights_of(ways: Ways) -> dict[Node, float]:
    """The share of the tokens of every expert."""
    out: dict[Node, float] = {}
    into: dict[Node, float] = {}
    for (source, target), (flow, _) in ways.items():
        out[source] = out.get(source, 0.0) + flow
        into[target] = into.get(target, 0.0) + flow
    return {node: max(out.get(node, 0), into.get(node, 0)) for node in {**out, **into}}


def by_number(node: Node) -> tuple[int, bool, int]:
    """A sort key: by layer and expert, the other experts last."""
    return node[0], node[1] == OTHERS, node[1]


def stacked(heights: Mapping[Node, float]) -> dict[Node, float]:
    """The top of each node, below the nodes before it."""
    tops, below = {}, {}
    for node in sorted(heights, key=by_number):
        tops[node] = below.get(node[0], 0.0)
        below[node[0]] = tops[node] + heights[node] + GAP
    return tops


def draw_bands(axes: Axes, ways: Ways, tops: Mapping[Node, float]) -> None:
    """Draw the bands as two collections with the gids `more` and `rest`."""
    left, right = dict(tops), dict(tops)
    bands: dict[bool, list[Path]] = {False: [], True: []}
    first = min(node[0] for node in tops)
    for source, target in sorted(ways, key=lambda way: (by_number(way[0]), by_number(way[1]))):
        flow, more = ways[source, target]
        if flow > 0:
            begin = source[0] - first
            bands[more].append(band(begin, left[source], right[target], flow))
        left[source] += flow
        right[target] += flow
    for more, paths in bands.items():
        collection = PathCollection(
            paths, facecolors=GREEN if more else PALE, edgecolors=INK if more else "none",
            linewidths=0.8 if more else 0.4, zorder=2 if more else 1,
        )  # fmt: skip
        collection.set_gid("more" if more else "rest")
        axes.add_collection(collection)


def band(begin: float, top: float, to: float, high: float) -> Path:
    """A curved band of height `high`, from `top` on the left to `to` on the right."""
    a, b = begin + WIDE, begin + 1 - WIDE
    middle = (a + b) / 2
    points = [
        *((a, top), (middle, top), (middle, to), (b, to)),
        *((b, to + high), (middle, to + high), (middle, top + high), (a, top + high)),
        (a, top),
    ]
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    return Path(np.array(points), codes)


def draw_nodes(axes: Axes, tops: Mapping[Node, float], heights: Mapping[Node, float]) -> None:
    first = min(layer for layer, _ in tops)
    for (layer, expert), top in tops.items():
        high = heights[layer, expert]
        (patch,) = axes.bar(
            layer - first, high, bottom=top, width=2 * WIDE, color=DIM, edgecolor="white",
            linewidth=0.6,
        )  # fmt: skip
        patch.set_gid(f"{layer} {expert}")
        if high > 0.018:
            axes.text(
                layer - first, top + high / 2, "rest" if expert == OTHERS else str(expert),
                ha="center", va="center", color="white", fontsize=8.5, fontweight="bold",
            )  # fmt: skip
    axes.spines["bottom"].set_color(INK)


def title_of(ways: Ways) -> str:
    more = sum(flow for flow, sure in ways.values() if sure)
    whole = sum(flow for flow, _ in ways.values())
    count = sum(sure for _, sure in ways.values())
    ways = f"{count} flows are significantly above chance (95 % intervals)"
    return f"{ways}: {more / whole:.0%} of the tokens take them"
