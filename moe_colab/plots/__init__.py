"""Tables in, figures out: one function for each figure, fed by any report.

Knows matplotlib and what the columns of a table are called; imports no torch, opens no store and
measures nothing. Every figure is a `Picture`: an ordinary matplotlib Figure of GitHub's width that
shows itself in a notebook.
"""

from .bars import bits
from .curves import hit_rates, recall
from .heat import errors
from .histogram import levels
from .lanes import timeline
from .page import Picture
from .strip import residency
from .tradeoff import front, pareto

__all__ = [
    "Picture",
    "bits",
    "errors",
    "front",
    "hit_rates",
    "levels",
    "pareto",
    "recall",
    "residency",
    "timeline",
]
