"""What the figures show, as tables made of a trace: who lay in the slots, who was guessed, and
where each token was sent.

Knows traces and their caches; draws nothing, and needs no torch. Every table is a pandas frame,
with a row for each thing that is drawn.
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
