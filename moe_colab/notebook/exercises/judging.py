"""Whether an answer is right, and what is said to it: a hint, never a traceback.

Knows numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ...planner.card import STYLE, mark

# 32 layers of 8 experts, each three matrices of 4096 x 14336; attention (q
# and o 4096 x 4096, k and v 4096 x 1024); embeddings and head.
MIXTRAL_EXPERTS = 32 * 8 * 3 * 4096 * 14336
MIXTRAL_ATTENTION = 32 * 2 * (4096 * 4096 + 4096 * 1024)
MIXTRAL_EMBEDDINGS = 2 * 32000 * 4096
MIXTRAL_ROUTERS = 32 * 8 * 4096


@dataclass(frozen=True)
class Reply:
    """What is said to an answer. `right` is None where there was none yet."""

    right: bool | None
    text: str

    def __repr__(self) -> str:
        return f"{ {True: 'Right', False: 'Not yet', None: 'Your turn'}[self.right] }: {self.text}"

    def _repr_html_(self) -> str:
        said, text = repr(self).split(": ", 1)
        sign = "" if self.right is None else mark(self.right)
        return f'{STYLE}<div class="moecard">{sign} <b>{said}.</b> {escape(text)}</div>'


def judge(
    answer: object, right: float, tolerance: float, praise: str, mistakes: Sequence[tuple]
) -> Reply:
    """A number within `tolerance` of the right one; `mistakes`: (what they lead to, hint), of which
    the one within the tolerance is told."""
    if answer is None or answer is ...:
        return Reply(None, "put a number in place of the dots and run the cell again.")
    try:
        value = float(answer)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        return Reply(False, f"a number is asked for, such as 2.5, and {answer!r} is none.")
    if abs(value - right) <= tolerance:
        return Reply(True, praise)
    for wrong, hint in mistakes:
        if abs(value - wrong) <= tolerance:
            return Reply(False, hint)
    return Reply(False, "too " + ("low" if value < right else "high") + f": {mistakes[-1][1]}")
