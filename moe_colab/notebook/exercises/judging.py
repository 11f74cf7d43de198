"""The judge of an answer: right, or a hint that fits the mistake. Knows numbers only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from ...planner.card import STYLE, mark


@dataclass(frozen=True)
class Reply:
    """The reply to an answer. `right` is None if there is no answer yet."""

    right: bool | None
    text: str

    def __repr__(self) -> str:
        return f"{ {True: 'Right', False: 'Not yet', None: 'Your turn'}[self.right] }: {self.text}"

    def _repr_html_(self) -> str:
        verdict, text = repr(self).split(": ", 1)
        sign = "" if self.right is None else mark(self.right)
        return f'{STYLE}<div class="moecard">{sign} <b>{verdict}.</b> {escape(text)}</div>'


def judge(
    answer: object,
    right: float,
    tolerance: float,
    praise: str,
    hint: str,
    mistakes: Mapping[float, str],
) -> Reply:
    """Judge a number, which is right within `tolerance`. mistakes: {wrong number: its own hint};
    `hint` is for all other numbers."""
    if answer is None or answer is ...:
        return Reply(None, "put a number in place of the dots and run the cell again.")
    try:
        value = float(answer)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        return Reply(False, f"the answer must be a number such as 2.5, not {answer!r}.")
    if abs(value - right) <= tolerance:
        return Reply(True, praise)
    for wrong, own_hint in mistakes.items():
        if abs(value - wrong) <= tolerance:
            return Reply(False, own_hint)
    return Reply(False, f"too {'low' if value < right else 'high'}: {hint}")
