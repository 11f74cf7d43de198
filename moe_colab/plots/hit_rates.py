"""The figures `hit_rates` and `recall`: hit rate by slots, and recall of guesses by layer."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .colours import DIM, GREEN, INK, ORANGE, PINK
from .picture import Picture, drawn, plain_axes, rows_of

DASHED, DOTTED = (0, (5, 3)), (0, (1, 1.6))
POLICIES = {  # colour, marker, line, name
    "optimal": (INK, "D", "-", "Belady, which knows the future"),
    "lru": (GREEN, "o", "-", "LRU"),
    "lfu": (ORANGE, "s", DASHED, "LFU"),
    "fifo": (PINK, "^", DASHED, "FIFO"),
    "random": (DIM, "", DOTTED, "random"),
}
OTHER = (PINK, "P", "-")
SOURCES = {
    "layer_output": (GREEN, "o", "from the layer's output"),
    "router_input": (ORANGE, "s", "from the router's input"),
}
APART = 0.07  # distance of two lines, in layers
AHEAD = {1: ("-", "1 layer ahead"), 2: (DASHED, "2 layers ahead")}
PHASES = {"decode": "decoded tokens", "prompt": "the prompt"}


@drawn
def hit_rates(table: Any, slots: int | None = None) -> Picture:
    """Hit rate by slots per layer, one line for each policy, with a panel for the decoded tokens
    and one for the prompt.

    table: mc.tables.hit_rates. slots: a number to mark, if any. Raises MoEColabError for a table
    without rows or without one of the columns.
    """
    rows = rows_of(table, "hit rates", "policy", "slots", "phase", "hit_rate")
    phases = [phase for phase in PHASES if any(row["phase"] == phase for row in rows)]
    picture = Picture(3.8, rates_title(rows, slots))
    panels = picture.subplots(1, len(phases), squeeze=False, sharey=True)[0]
    for axes, phase in zip(panels, phases, strict=True):
        for policy in sorted({row["policy"] for row in rows}, key=place_of):
            own = [r for r in rows if (r["policy"], r["phase"]) == (policy, phase)]
            own.sort(key=lambda row: row["slots"])
            colour, marker, line, name = POLICIES.get(policy, (*OTHER, policy))
            axes.plot(
                [row["slots"] for row in own], [row["hit_rate"] for row in own],
                color=colour, marker=marker, linestyle=line, linewidth=1.6, label=name,
                markersize=5,
            )  # fmt: skip
        if slots is not None:
            axes.axvline(slots, color=DIM, linewidth=1, zorder=0, gid="chosen")
            axes.text(slots, 0.02, f" k = {slots}", color=DIM)
        axes.set(title=PHASES[phase], xlabel="slots per layer (k)")
        share_axis(axes)
    panels[0].set_ylabel("hit rate")
    picture.legend_below(panels[0].get_legend_handles_labels()[0], 5)
    return picture


def place_of(policy: str) -> tuple[int, str]:
    names = list(POLICIES)
    return (names.index(policy) if policy in names else len(names), policy)


def rates_title(rows: list[dict], slots: int | None) -> str:
    """The hit rates of LRU and Belady with so many slots, if the table has both."""
    rates = {
        row["policy"]: row["hit_rate"]
        for row in rows
        if row["slots"] == slots and row["phase"] == "decode"
    }
    if not {"lru", "optimal"} <= set(rates):
        return "With more slots there are more hits"
    best = rates["optimal"]
    hits = f"LRU hits {rates['lru']:.0%} and Belady {best:.0%}"
    return f"With {slots} slots, {hits} (decoded tokens)"


@drawn
def recall(table: Any) -> Picture:
    """The share of the experts needed by a layer that were guessed: by layer, one line for each
    source and lookahead, with 95 % intervals. Dotted: random guesses.

    table: mc.tables.recall. Raises MoEColabError for a table without rows or without one of the
    columns.
    """
    counts = ("recall", "needed", "guessed", "low", "high", "chance")
    rows = rows_of(table, "recalls", "source", "lookahead", "layer", *counts)
    picture = Picture(3.6, recall_title(rows))
    axes = picture.subplots()
    lines = list(dict.fromkeys((row["source"], row["lookahead"]) for row in rows))
    for place, (source, ahead) in enumerate(lines):
        own = [row for row in rows if (row["source"], row["lookahead"]) == (source, ahead)]
        own.sort(key=lambda row: row["layer"])
        colour, marker, name = SOURCES[source]
        line, far = AHEAD[ahead]
        aside = APART * (place - (len(lines) - 1) / 2)  # else the intervals overlap
        at, shares = [row["layer"] + aside for row in own], [row["recall"] for row in own]
        axes.plot(
            at, shares,
            color=colour, marker=marker, linestyle=line, linewidth=1.6, markersize=6,
            markerfacecolor=colour if ahead == 1 else "white", label=f"{name}, {far}",
        )  # fmt: skip
        below, above = ([abs(row[end] - row["recall"]) for row in own] for end in ("low", "high"))
        axes.errorbar(
            at, shares, [below, above], fmt="none", ecolor=colour, elinewidth=1, capsize=2
        )
    by_layer = {row["layer"]: row["chance"] for row in rows}
    layers = sorted(by_layer)
    axes.plot(
        layers, [by_layer[layer] for layer in layers],
        color=DIM, linestyle=DOTTED, linewidth=1.6, label="at random",
    )  # fmt: skip
    axes.set(xlabel="MoE layer", ylabel="needed experts guessed")
    share_axis(axes)
    picture.legend_below(axes.get_legend_handles_labels()[0], 2)
    return picture


def recall_title(rows: list[dict]) -> str:
    recalls = {}
    for source in SOURCES:
        own = [row for row in rows if row["source"] == source and row["lookahead"] == 1]
        if own:
            recalls[source] = sum(r["guessed"] for r in own) / sum(r["needed"] for r in own)
    shares = [f"{share:.0%} {SOURCES[source][2]}" for source, share in recalls.items()]
    return "Guesses find " + " and ".join(shares)


def share_axis(axes: Axes) -> None:
    axes.set_ylim(-0.025, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain_axes(axes, "y")
