"""What became of an access, as it is shown everywhere: one colour, one glyph, one word.

Knows no figures and no pages. A colour is never the only sign: each comes with a glyph of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

GREEN, ORANGE, PINK = "#009E73", "#D55E00", "#CC79A7"
"""Of Okabe and Ito's colours, those that stand out 3 to 1 on white and on a dark page."""


@dataclass(frozen=True)
class Sign:
    """marker: matplotlib's name of the glyph."""

    colour: str
    glyph: str
    marker: str
    name: str
    means: str


OUTCOMES = {  # as a trace names them, from what costs nothing to what costs most
    "hit": Sign(GREEN, "●", "o", "hit", "it was there"),
    "speculative_hit": Sign(PINK, "▲", "^", "speculative hit", "a guess had brought it in time"),
    "late": Sign(PINK, "◆", "D", "late", "a guess was on its way: wait for the rest"),
    "miss": Sign(ORANGE, "✕", "X", "miss", "nobody had guessed it: wait for all of it"),
}
