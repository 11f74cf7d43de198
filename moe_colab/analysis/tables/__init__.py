"""Tables of a trace, as pandas frames: routing, slots and guesses. Figures are drawn from them.

Knows traces and their caches; draws nothing, and needs no torch.
"""

from .pareto import front
from .routing import activations, router, specialisation, tokens, transitions
from .slots import POLICIES, hit_rates, recall, residency, word

__all__ = [
    "POLICIES",
    "activations",
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
