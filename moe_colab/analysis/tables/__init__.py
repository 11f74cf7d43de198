"""Tables as pandas frames: the routing, slots and guesses of a trace, and what a run has counted.
Figures are drawn from them.

Knows traces, their caches and counters; draws nothing, and needs no torch.
"""

from .counts import counts
from .pareto import front
from .routing import activations, router, specialisation, tokens, transitions
from .slots import POLICIES, hit_rates, recall, residency, word

__all__ = [
    "POLICIES",
    "activations",
    "counts",
    "front",
    "hit_rates",
    "recall",
    "residency",
    "router",
    "specialisation",
    "tokens",
    "transitions",
    "word",
]
