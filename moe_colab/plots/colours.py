"""The colours of all figures, and which text colour is readable on them. Knows no figures."""

from __future__ import annotations

from typing import Any

from matplotlib.colors import to_hex

from ..trace.outcomes import GREEN as GREEN
from ..trace.outcomes import ORANGE as ORANGE
from ..trace.outcomes import PINK as PINK

INK, DIM, PALE = "#1f2328", "#57606a", "#d0d7de"
HATCHES = {GREEN: "", ORANGE: "///", PINK: "...", DIM: "xxx", INK: "\\\\\\"}


def hatched(colour: str) -> dict[str, Any]:
    """The settings of a bar in this colour and its hatch."""
    return {"color": colour, "hatch": HATCHES[colour], "edgecolor": "white", "linewidth": 0.8}


def readable_on(colour: tuple[float, ...]) -> str:
    """Black or white, the one with more contrast: at least 4.5 to 1 on any colour."""
    return max("#000000", "#ffffff", key=lambda one: contrast(to_hex(colour), one))


def contrast(one: str, other: str) -> float:
    """The contrast of two colours "#rrggbb" as WCAG 2 defines it, 1 to 21."""
    light, dark = sorted(map(luminance, (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
