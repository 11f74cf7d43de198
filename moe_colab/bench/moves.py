"""Times of the Explorer's moves: every setting that replays is changed and shown.

    python -m moe_colab.bench.moves [--out FILE]

Prints one JSON. Seconds are those of the kernel, until the picture for the page is ready; the page
adds its own. They are of the first part of the shipped trace, and of as many random tokens in a
model with Mixtral's layers. It takes about 30 seconds on 2 CPU cores.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from ..notebook.widgets.explorer import Explorer
from ..notebook.widgets.trace_views import TRACE_VIEWS
from ..trace import Trace
from .machine import describe
from .report import main
from .traces import made_up

TOKENS = 96  # the Explorer's default
MOVES = {  # values of each control that replays
    "slots": (3, 5, 6, 2),
    "policy": ("lfu", "fifo", "optimal", "random", "lru"),
    "guesses": (1, 3, 0, 2),
    "lookahead": (2, 1),
    "link": (8.0, 24.0, 16.0, 12.0),
}


def moves(trace: Trace) -> dict[str, dict[str, dict[str, float]]]:
    """The median and the longest seconds of a move, by view and control."""
    explorer, seconds_of = Explorer(trace=trace), {}
    for view in ("slots", "residency", "time"):
        explorer.view.value, seconds_of[view] = view, {}
        for name in (name for name in MOVES if name in TRACE_VIEWS[view].depends_on):
            control, seconds = explorer.settings[name], []
            for value in MOVES[name]:
                if hasattr(control, "options"):
                    offered = value in dict(map(reversed, control.options))
                else:
                    offered = value <= control.max
                if offered and value != control.value:
                    begin = time.perf_counter()
                    control.value = value
                    seconds.append(time.perf_counter() - begin)
            if seconds:
                seconds_of[view][name] = {
                    "median": round(statistics.median(seconds), 3),
                    "most": round(max(seconds), 3),
                }
        if explorer.error is not None or explorer.status.value:
            raise RuntimeError(f"the Explorer failed: {explorer.status.value}")
    explorer.close()
    return seconds_of


def measure() -> dict[str, Any]:
    small = Trace.load()
    return {
        "bench": "moves",
        "machine": describe(),
        "seconds": {
            "384 tokens x 8 layers x 8 experts": moves(small.only(small.labels[0])),
            f"{TOKENS} tokens x 32 layers x 8 experts": moves(made_up(TOKENS, 32, 8, 2)),
        },
    }


if __name__ == "__main__":
    main(__doc__, measure)
