"""The figure `flows`: the tokens from expert to expert through two or three layers."""

from __future__ import annotations

from collections import Counter, defaultdict
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

LAYERS = 3  # most layers of a figure
MOST = 12  # most experts of a layer that have their own bar
OTHERS = -1  # all other experts together
GAP, WIDE = 0.012, 0.05  # gap between experts, as a share of all tokens; half width of a bar
Node = tuple[int, int]  # layer and expert


@drawn
def flows(table: Any) -> Picture:
    """Two or three layers from left to right, with a bar for each expert, as high as its share of
    the tokens, and a band for each flow to the next layer. Flows that are significantly above
    independence (by their 95 % interval) are green and have an edge. If a layer has many experts,
    the twelve busiest have their own bar.

    table: mc.tables.transitions with one or two hops. Raises MoEColabError for more, and for a
    table without rows or without one of the columns.
    """
    rows = rows_of(table, "transitions", *("layer", "expert", "next", "low", "independent", "flow"))
    layers = sorted({row["layer"] for row in rows})
    if len(layers) >= LAYERS:
        raise MoEColabError(
            f"flows through {len(layers) + 1} layers are too many to draw: make the table with "
            f"at most {LAYERS - 1} hops."
        )
    edges = gathered(rows)
    heights = heights_of(edges)
    tops = stacked(heights)
    picture = Picture(4.6, title_of(edges))
    axes = picture.subplots()
    draw_bands(axes, edges, tops)
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
Edges = dict[tuple[Node, Node], tuple[float, bool]]


def gathered(rows: Sequence[Mapping]) -> Edges:
    """{(from, to): (flow, significantly more than under independence)}; the busiest experts of each
    layer, and the others together."""
    ends = [((row["layer"], row["expert"]), (row["layer"] + 1, row["next"])) for row in rows]
    load: dict[int, Counter[int]] = defaultdict(Counter)
    for row, nodes in zip(rows, ends, strict=True):
        for layer, expert in nodes:
            load[layer][expert] += row["flow"]
    busiest = {
        layer: {expert for expert, _ in own.most_common(MOST)} for layer, own in load.items()
    }
    edges: Edges = {}
    for row, nodes in zip(rows, ends, strict=True):
        source, target = (
            (layer, expert if expert in busiest[layer] else OTHERS) for layer, expert in nodes
        )
        flow, _ = edges.get((source, target), (0.0, False))
        single = OTHERS not in (source[1], target[1])
        more = single and row["low"] > row["independent"]
        edges[source, target] = flow + row["flow"], more
    return edges


def heights_of(edges: Edges) -> dict[Node, float]:
    """The share of the tokens of every expert."""
    out: Counter[Node] = Counter()
    into: Counter[Node] = Counter()
    for (source, target), (flow, _) in edges.items():
        out[source] += flow
        into[target] += flow
    return {node: max(out[node], into[node]) for node in {**out, **into}}


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


def draw_bands(axes: Axes, edges: Edges, tops: Mapping[Node, float]) -> None:
    """Draw the bands as two collections with the gids `more` and `rest`."""
    left, right = dict(tops), dict(tops)
    bands: dict[bool, list[Path]] = {False: [], True: []}
    first = min(node[0] for node in tops)
    for source, target in sorted(edges, key=lambda edge: tuple(map(by_number, edge))):
        flow, more = edges[source, target]
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


def title_of(edges: Edges) -> str:
    more = sum(flow for flow, sure in edges.values() if sure)
    whole = sum(flow for flow, _ in edges.values())
    count = sum(sure for _, sure in edges.values())
    taken = f"{more / whole:.0%} of the tokens take the {count} flows"
    return f"{taken} that are significantly above chance"
