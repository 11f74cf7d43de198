"""Draw the figures that stand in notebooks and README as files, from what was measured or recorded.

    python -m moe_colab.bench.figures [FOLDER]

`make figures` runs it; FOLDER is assets/figures.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .. import plots
from ..analysis.tables import hit_rates, specialisation, tokens, word
from ..analysis.timeline import timeline
from ..cache.homes import CHUNK
from ..machine.folders import benchmark
from ..trace import Trace

SLOTS = 4  # of 8
TOPICS = 7  # a layer: the last
STRIP = "prose", 7  # a label of the trace, and a layer
TOKEN = "prose", 122  # a label of the trace, and a step of it: right guesses and a wrong one


def speculate() -> plots.Picture:
    """One token at a T4's proportions, experts as large as Mixtral's."""
    trace = Trace.load().only(TOKEN[0])
    large = trace.sized(16 * CHUNK)
    run = timeline(large, "12GB/s", 1e-3, slots=SLOTS, speculate=2)
    return plots.timeline(run.frame(), TOKEN[1], word(trace, TOKEN[1]).strip())


FIGURES = {
    "routing": lambda: plots.tokens(tokens(Trace.load().only(STRIP[0]), STRIP[1])),
    "quantize": lambda: plots.pareto(benchmark("quality")["rows"]),
    "cache": lambda: plots.hit_rates(hit_rates(Trace.load()), SLOTS),
    "speculate": speculate,
    "topics": lambda: plots.specialisation(specialisation(Trace.load(), TOPICS)),
}


def main(folder: Path) -> list[Path]:
    """Write every figure; their files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in FIGURES.items():
        paths.append(folder / f"{name}.png")
        paths[-1].write_bytes(draw().png())
    return paths


if __name__ == "__main__":
    for path in main(Path(*sys.argv[1:] or ["assets", "figures"])):
        print(f"drew {path}")
