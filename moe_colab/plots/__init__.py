"""Tables in, figures out: one function for each figure, fed by any report.

Knows matplotlib and what the columns of a table are called; imports no torch, opens no store and
measures nothing. Every figure is a `Picture`: an ordinary matplotlib Figure of GitHub's width that
shows itself in a notebook.
"""

from .ablation import ablation
from .activity import activations, transitions
from .bars import bits, memory
from .cells import xray
from .curves import hit_rates, recall
from .dots import shares, specialisation
from .heat import errors
from .histogram import levels
from .lanes import timeline
from .moment import step
from .page import Picture
from .say import router
from .strip import residency
from .text import tokens
from .tradeoff import front, pareto
from .ways import flows

__all__ = [
    "Picture",
    "ablation",
    "activations",
    "bits",
    "errors",
    "flows",
    "front",
    "hit_rates",
    "levels",
    "memory",
    "pareto",
    "recall",
    "residency",
    "router",
    "shares",
    "specialisation",
    "step",
    "timeline",
    "tokens",
    "transitions",
    "xray",
]
