"""The figure `block`: one layer of an offloaded model, from a token to the slots, RAM and disk."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ..errors import MoEColabError
from .colours import DIM, GREEN, INK, ORANGE, PALE, readable_on
from .picture import Picture, drawn, written

EXAMPLE = (0.05, 0.12, 0.04, 0.38, 0.06, 0.24, 0.07, 0.04)
SHELVES = {  # name: bottom, top, remark
    "GPU": (35.5, 59, "fast, small"),
    "RAM": (18, 32, "slower, larger"),
    "disk": (0.5, 14.5, "slowest, largest"),
}
LEFT, SHELF, RIGHT = (2, 41), 50, 99  # the layer's boxes, and the shelves, from left to right
WASH = "#f4f6f8"
FEW = 4  # columns of a shelf, if it has no more experts
MOST = 16  # experts


@drawn
def block(
    probabilities: Sequence[float] = EXAMPLE,
    slots: Sequence[int] = (1, 3, 4, 6),
    ram: Sequence[int] = (0, 5),
    *,
    top_k: int = 2,
    word: str = "France",
) -> Picture:
    """A drawing of one layer of an offloaded model: a token, attention, the router, the chosen
    experts and where they come from, and the weighted sum of their outputs. A chosen expert in a
    slot is a hit, green; any other is a miss, orange, and is copied into a slot.

    probabilities: those of the router for one token, one number per expert, 2 to 16 of them. slots,
    ram: the experts that are in a slot of the GPU, and those in RAM; all others are on disk. top_k:
    how many experts are chosen. word: the token's text. Raises MoEColabError for numbers of experts
    that cannot be.
    """
    probabilities = [float(p) for p in probabilities]
    places = places_of(len(probabilities), slots, ram)
    if not 1 <= top_k <= len(probabilities):
        raise MoEColabError(f"top_k must be 1 to {len(probabilities)}, not {top_k!r}.")
    ranked = sorted(range(len(probabilities)), key=lambda expert: -probabilities[expert])
    chosen = ranked[:top_k]
    whole = sum(probabilities[expert] for expert in chosen)
    weights = {expert: probabilities[expert] / whole for expert in chosen}

    misses = [expert for expert in chosen if expert not in places["GPU"]]
    picture = Picture(4.9, title_of(top_k, len(probabilities), len(misses)))
    axes = picture.subplots()
    axes.set(xlim=(0, 100), ylim=(0, 60))
    axes.set_axis_off()
    draw_layer(axes, probabilities, weights, word)
    spots = {}
    for name, (experts, columns) in columns_of(places, misses).items():
        draw_shelf(axes, name, len(experts))
        for expert, column in experts.items():
            spots[expert] = draw_expert(axes, name, expert, column / columns, 1 / columns, weights)
    draw_ways(axes, spots, misses)
    return picture


def places_of(count: int, slots: Sequence[int], ram: Sequence[int]) -> dict[str, list[int]]:
    """The experts on each shelf."""
    if not 2 <= count <= MOST:
        raise MoEColabError(f"the drawing has room for 2 to {MOST} experts, not {count}.")
    named = [*slots, *ram]
    if len(set(named)) != len(named) or not set(named) <= set(range(count)):
        raise MoEColabError(
            f"slots and ram must name different experts from 0 to {count - 1}, not {named}."
        )
    rest = [expert for expert in range(count) if expert not in named]
    return {"GPU": list(slots), "RAM": list(ram), "disk": rest}


def title_of(needed: int, count: int, misses: int) -> str:
    copied = f"{misses} of them must be copied to the GPU" if misses else "all of them are in slots"
    return f"This token needs {needed} of {count} experts, and {copied}"


def columns_of(
    places: dict[str, list[int]], misses: Sequence[int]
) -> dict[str, tuple[dict[int, int], int]]:
    """The column of every expert, {name: ({expert: column}, number of columns)}. Each miss has a
    column of its own, from the right, so that its arrow passes no other expert."""
    deep = sum(expert in misses for expert in places["disk"])
    below = max(FEW, len(places["RAM"]) + deep, len(places["disk"]) + len(misses) - deep)
    own = {expert: below - 1 - number for number, expert in enumerate(misses)}
    slots = {expert: column for column, expert in enumerate(places["GPU"])}
    out = {"GPU": (slots, max(FEW, len(slots)))}
    for name in ("RAM", "disk"):
        rest = [expert for expert in places[name] if expert not in own]
        columns = {expert: column for column, expert in enumerate(rest)}
        out[name] = columns | {e: own[e] for e in places[name] if e in own}, below
    return out


# ---------------------------------------------------------------------- the layer
def draw_layer(
    axes: Axes, probabilities: Sequence[float], weights: dict[int, float], word: str
) -> None:
    middle = sum(LEFT) / 2
    axes.text(middle, 58, f"token “{written(word, 12)}”", ha="center", va="center")
    box(axes, *LEFT, 48, 53)
    axes.text(middle, 50.5, "attention", ha="center", va="center")
    box(axes, *LEFT, 26, 44)
    axes.text(LEFT[0] + 1.5, 41.6, "router: a probability per expert", va="center", fontsize=9.5)
    step = (LEFT[1] - LEFT[0] - 4) / len(probabilities)
    for expert, probability in enumerate(probabilities):
        left = LEFT[0] + 2 + expert * step
        height = 8.5 * probability / max(probabilities)
        axes.bar(
            left + step / 2, height, bottom=29.6, width=0.7 * step, gid=f"router {expert}",
            color=INK if expert in weights else PALE, edgecolor=DIM, linewidth=0.8,
        )  # fmt: skip
        axes.text(
            left + step / 2, 27.9, str(expert), ha="center", va="center", fontsize=9,
            fontweight="bold" if expert in weights else "normal",
        )  # fmt: skip
    box(axes, *LEFT, 10, 19)
    axes.text(middle, 16.6, "weighted sum of the outputs", ha="center", va="center", fontsize=9.5)
    total = " + ".join(f"{weight:.2f} × E{expert}" for expert, weight in [*weights.items()][:3])
    more = " + …" if len(weights) > 3 else ""
    axes.text(middle, 12.6, total + more, ha="center", va="center", fontweight="bold", gid="sum")
    axes.text(middle, 2.5, "next layer", ha="center", va="center")
    for top, bottom in ((56.5, 53.4), (47.6, 44.4), (9.6, 4.6)):
        arrow(axes, (middle, top), (middle, bottom), DIM)


# ---------------------------------------------------------------------- the shelves
def draw_shelf(axes: Axes, name: str, experts: int) -> None:
    """A place for experts; on the GPU there is also what every token uses."""
    bottom, top, remark = SHELVES[name]
    box(axes, SHELF, RIGHT, bottom, top, facecolor=WASH)
    axes.text(SHELF + 1.5, top - 2.4, name, va="center", fontweight="bold")
    axes.text(SHELF + 7.5, top - 2.5, remark, va="center", color=DIM, fontsize=9)
    if name == "GPU":
        box(axes, SHELF + 1.5, RIGHT - 1.5, 50, 54.3)
        axes.text(
            (SHELF + RIGHT) / 2, 52.1, "attention and routers are always here", ha="center",
            va="center", fontsize=9,
        )  # fmt: skip
        slots = f"{experts} slot{'s' if experts != 1 else ''} of this layer"
        axes.text(SHELF + 1.5, 47.7, slots, va="center", fontsize=9.5)


def draw_expert(
    axes: Axes, name: str, expert: int, start: float, width: float, weights: dict[int, float]
) -> tuple[float, float]:
    """One expert on a shelf, from `start` on, as shares of its length; the top of its middle."""
    room = RIGHT - SHELF - 3
    left, right = SHELF + 1.9 + start * room, SHELF + 1.1 + (start + width) * room
    bottom = SHELVES[name][0] + 1.5
    top = bottom + 8.4
    needed, hit = expert in weights, name == "GPU"
    colour = (GREEN if hit else ORANGE) if needed else "white"
    edge = INK if needed else DIM
    box(axes, left, right, bottom, top, facecolor=colour, edgecolor=edge, gid=f"{name} {expert}")
    sign = f"\n{'● hit' if hit else '✕ miss'}" if needed else ""
    axes.text(
        (left + right) / 2, (bottom + top) / 2, f"E{expert}{sign}", ha="center", va="center",
        color=readable_on(colour), fontsize=9 if width > 0.15 else 7.5, linespacing=1.3,
        fontweight="bold" if needed else "normal",
    )  # fmt: skip
    return (left + right) / 2, top


def draw_ways(axes: Axes, spots: dict[int, tuple[float, float]], misses: Sequence[int]) -> None:
    """From the router to the GPU, from other places to its slots, and from it to the sum."""
    arrow(axes, (LEFT[1] + 0.3, 40), (SHELF - 0.5, 43.5), INK)
    axes.text((LEFT[1] + SHELF) / 2, 45, "top-k", ha="center", fontsize=9)
    arrow(axes, (SHELF - 0.3, 38), (LEFT[1] + 0.6, 16.5), INK)
    for expert in misses:
        middle, top = spots[expert]
        arrow(axes, (middle, top + 0.3), (middle, 36.3), ORANGE, 2.4)
    if misses:
        left = min(spots[expert][0] for expert in misses)
        axes.text(
            left - 1.4, 33.8, "copied into a slot", ha="right", va="center", fontsize=9,
        )  # fmt: skip


def box(axes: Axes, left: float, right: float, bottom: float, top: float, **style) -> None:
    style = {"facecolor": "white", "edgecolor": DIM, "linewidth": 1, **style}
    style["boxstyle"] = "round,pad=0,rounding_size=0.9"
    axes.add_patch(FancyBboxPatch((left, bottom), right - left, top - bottom, **style))


def arrow(axes: Axes, start: tuple, end: tuple, colour: str, width: float = 1.4) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 11, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, color=colour, linewidth=width, **style))
