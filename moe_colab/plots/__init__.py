"""`mc.plots`: one function for each figure; each draws a table or a report.

Knows matplotlib and the columns of the tables; knows no torch and no stores, and measures nothing.
Every figure is a `Picture`: a matplotlib Figure as wide as GitHub shows it, which displays itself
in a notebook.

Most figures draw the table of the same name in `mc.tables`: activations, hit_rates, recall,
residency, router, shares (of activations), specialisation, tokens, transitions, flows (of
transitions with hops=2). The others draw `mc.timeline(...).frame()` (timeline), `mc.inspect(...)`
(bits; its frame(): errors), `model.offload.memory()` (memory), the rows of
`mc.benchmark("quality")` (pareto) and `mc.benchmark("paper")` (ablation), `mc.needs()` (needs), and
one router's probabilities (block).

    rates = mc.tables.hit_rates(mc.Trace.load())
    print(mc.plots.hit_rates(rates, slots=4).save("hit-rates.png"))
"""

from .ablation import ablation
from .activity import activations, transitions
from .bars import bits, memory
from .block import block
from .errors import errors
from .flows import flows
from .hit_rates import hit_rates, recall
from .levels import levels
from .needs import needs
from .pareto import front, pareto
from .picture import Picture
from .residency import residency
from .router import router
from .shares import shares, specialisation
from .step import step
from .timeline import timeline
from .tokens import tokens
from .xray import xray

__all__ = [
    "Picture", "ablation", "activations", "bits", "block", "errors", "flows", "front",
    "hit_rates", "levels", "memory", "needs", "pareto", "recall", "residency", "router",
    "shares", "specialisation", "step", "timeline", "tokens", "transitions", "xray",
]  # fmt: skip
