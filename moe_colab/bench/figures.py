"""Draw the figures that stand in notebooks and README as files, from what was measured.

    python -m moe_colab.bench.figures [FOLDER]

`make figures` runs it; FOLDER is assets/figures.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .. import plots
from ..places import benchmark

FIGURES = {"quantize": lambda: plots.pareto(benchmark("quality")["rows"])}


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
