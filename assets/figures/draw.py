"""Draw the figures above the notebooks, from assets/benchmarks and assets/traces.

    python assets/figures/draw.py [FOLDER]

FOLDER is assets/figures if not given. `make figures` runs this script.
"""

from __future__ import annotations

import sys
from pathlib import Path

from moe_colab import plots
from moe_colab.analysis.tables import hit_rates, specialisation, tokens, word
from moe_colab.analysis.timeline import timeline
from moe_colab.cache.homes import CHUNK
from moe_colab.machine.folders import benchmark
from moe_colab.trace import Trace

SLOTS = 4  # of 8
TOPICS = 7  # the layer whose topics are drawn, the last one
ROUTING = "prose", 7  # a label of the trace, and a layer
TOKEN = "prose", 122  # a label of the trace, and a step with right guesses and a wrong one


def speculate() -> plots.Picture:
    """The timeline of one token: the link of a T4, experts as large as Mixtral's."""
    trace = Trace.load().only(TOKEN[0])
    large = trace.sized(16 * CHUNK)
    run = timeline(large, "12GB/s", 1e-3, slots=SLOTS, speculate=2)
    return plots.timeline(run.frame(), TOKEN[1], word(trace, TOKEN[1]).strip())


FIGURES = {
    "block": plots.block,
    "routing": lambda: plots.tokens(tokens(Trace.load().only(ROUTING[0]), ROUTING[1])),
    "quantize": lambda: plots.pareto(benchmark("quality")["rows"]),
    "cache": lambda: plots.hit_rates(hit_rates(Trace.load()), SLOTS),
    "speculate": speculate,
    "topics": lambda: plots.specialisation(specialisation(Trace.load(), TOPICS)),
}


def main(folder: Path) -> list[Path]:
    """Write every figure as NAME.png; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in FIGURES.items():
        paths.append(folder / f"{name}.png")
        paths[-1].write_bytes(draw().png())
    return paths


if __name__ == "__main__":
    for path in main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent):
        print(f"drew {path}")
