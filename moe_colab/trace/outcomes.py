"""Signs of an access's outcome, the same in all figures and pages: a colour, a glyph, a word.

Knows no figures and no pages. Each outcome has its own glyph, so colour is never the only sign.
"""

from __future__ import annotations

from dataclasses import dataclass

GREEN, ORANGE, PINK = "#009E73", "#D55E00", "#CC79A7"
"""Colours of Okabe and Ito with a contrast of 3 to 1 on white and on a dark page."""


@dataclass(frozen=True)
class Sign:
    """marker: matplotlib's name of the glyph."""

    colour: str
    glyph: str
    marker: str
    name: str
    means: str


SIGNS = {  # by their names in arrays.OUTCOMES, in the order of their cost
    "hit": Sign(GREEN, "●", "o", "hit", "it was there"),
    "speculative_hit": Sign(PINK, "▲", "^", "speculative hit", "a guess had brought it in time"),
    "late": Sign(PINK, "◆", "D", "late", "a guess was on its way: wait for the rest"),
    "miss": Sign(ORANGE, "✕", "X", "miss", "it was not guessed: wait for all of it"),
}
