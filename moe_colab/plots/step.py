"""The figure `step`: one token in one layer, with routing, eviction, guesses and outputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..errors import MoEColabError
from ..trace.outcomes import SIGNS
from .colours import DIM, GREEN, INK, ORANGE, PALE, hatched
from .picture import Picture, drawn, plain_axes, written

FEW = 16  # up to so many experts, every bar has a number
SHOWN = 16  # numbers of a vector
REST = {"color": PALE, "edgecolor": DIM, "linewidth": 0.8}  # bars of all other experts
MANY = {"hit": "hits", "speculative_hit": "speculative hits", "late": "late", "miss": "misses"}


@drawn
def step(token_step: Any) -> Picture:
    """One token in one layer, in four panels: the router's probabilities with the outcomes of the
    chosen experts; the experts that the policy compared for an eviction; the guesses for the next
    layer; and the outputs of the experts beside their weighted sum.

    token_step: mc.stepper(...).at(token, layer). Raises MoEColabError for anything else.
    """
    if not hasattr(token_step, "resident"):
        raise MoEColabError(
            f"step draws what mc.stepper(...).at(token, layer) returns, not a "
            f"{type(token_step).__name__}."
        )
    picture = Picture(5.6, title_of(token_step))
    (router, scores), (guesses, outputs) = picture.subplots(2, 2)
    for axes, draw in (
        (router, draw_router),
        (scores, draw_scores),
        (guesses, draw_guesses),
        (outputs, draw_outputs),
    ):
        axes.set_gid(draw.__name__.removeprefix("draw_"))
        plain_axes(axes)
        draw(axes, token_step)
    return picture


def title_of(token_step: Any) -> str:
    counts = [access.outcome for access in token_step.accesses]
    outcomes = [f"{counts.count(name)} {MANY[name]}" for name in SIGNS if counts.count(name) > 1]
    outcomes += [f"1 {sign.name}" for name, sign in SIGNS.items() if counts.count(name) == 1]
    word = written(token_step.text, FEW)
    return f"“{word}” has {' and '.join(outcomes)} in MoE layer {token_step.layer}"


def draw_router(axes: Axes, token_step: Any) -> None:
    axes.set_title("the router's probabilities")
    if token_step.probabilities is None:
        return say(axes, "this trace has no logits,\nonly the chosen experts")
    count = len(token_step.probabilities)
    outcomes = {access.expert: SIGNS[access.outcome] for access in token_step.accesses}
    for expert, share in enumerate(token_step.probabilities):
        sign = outcomes.get(expert)
        axes.bar(expert, share, **(hatched(sign.colour) if sign else REST))
        if sign:
            axes.plot(expert, share, sign.marker, color=INK, clip_on=False, gid=sign.name)
    axes.axhline(1 / count, color=INK, linestyle=":", gid="uniform")
    axes.set_xlabel("expert (dotted: uniform)")
    if count <= FEW:
        axes.set_xticks(range(count))


def draw_scores(axes: Axes, token_step: Any) -> None:
    axes.set_title("eviction")
    evictions = [access.eviction for access in token_step.accesses if access.eviction]
    eviction = max(evictions, key=lambda eviction: len(eviction.scores), default=None)
    if eviction is None:
        missed = any(access.bytes for access in token_step.accesses)
        return say(axes, "no eviction" if missed else "all experts were in slots")
    if not eviction.scores:
        return say(axes, f"expert {eviction.victim}; {token_step.history.policy} gives no reason")
    axes.set_title(f"eviction for expert {eviction.newcomer}")
    finite = [score[0] for score in eviction.scores.values() if math.isfinite(score[0])]
    never = 1.1 * max(finite, default=1)
    for place, (expert, score) in enumerate(eviction.scores.items()):
        evicted = expert == eviction.victim
        length = score[0] if math.isfinite(score[0]) else never
        style = hatched(ORANGE) | {"gid": "evicted"} if evicted else REST | {"gid": "stays"}
        axes.barh(place, length, **style)
        values = ", ".join(str(n) if math.isfinite(n) else "never" for n in score)
        axes.text(
            length, place, f" {values}{', evicted' if evicted else ''}", va="center", fontsize=8.5
        )
    if len(eviction.scores) <= FEW:
        axes.set_yticks(range(len(eviction.scores)), eviction.scores)
    axes.set_ylabel("expert")
    axes.set_xlabel(f"{', then '.join(token_step.history.measures)}: {token_step.history.rule}")
    axes.margins(x=0.3)
    axes.set_xlim(left=0)


def draw_guesses(axes: Axes, token_step: Any) -> None:
    axes.set_title(f"guesses for layer {token_step.layer + 1}")
    if token_step.guess is None:
        return say(axes, "no guesses here")
    for place, (_, share, right) in enumerate(token_step.guess.experts):
        colour, glyph = (GREEN, "✓ right") if right else (ORANGE, "✗ wrong")
        axes.barh(place, share, gid="right" if right else "wrong", **hatched(colour))
        axes.text(share, place, f" {glyph}", va="center", fontsize=9, family="DejaVu Sans")
    axes.set_yticks(range(len(token_step.guess.experts)), [e for e, *_ in token_step.guess.experts])
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.set_xlim(left=0)
    axes.set_ylabel("expert")
    axes.set_xlabel(f"probability (then chosen: {', '.join(map(str, token_step.guess.needed))})")


def draw_outputs(axes: Axes, token_step: Any) -> None:
    if token_step.computed is None:
        axes.set_title("the experts' outputs")
        return say(axes, "a trace has none:\ngive mc.stepper a model")
    computed = token_step.computed
    axes.set_title(f"outputs, the first {SHOWN} of {len(computed.total)} numbers")
    names = [
        f"expert {expert}, × {weight:.2f}"
        for weight, expert in zip(computed.weights, token_step.experts, strict=True)
    ]
    rows = [*computed.outputs, computed.total]
    top = max(float(np.abs(row[:SHOWN]).max()) for row in rows) or 1.0
    names.append("weighted sum")
    for place, (name, row) in enumerate(zip(names, rows, strict=True)):
        values = row[:SHOWN] / (2.3 * top)
        axes.bar(
            np.arange(len(values)), -values, bottom=place, width=0.7, gid=name,
            color=INK if row is computed.total else DIM, linewidth=0,
        )  # fmt: skip
        axes.axhline(place, color=DIM, linewidth=0.6)
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xticks([])


def say(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.5, words, ha="center", va="center", transform=axes.transAxes, color=INK)
    axes.set_axis_off()
    axes.set_title(axes.get_title(loc="left"))
