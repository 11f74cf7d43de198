"""Products with low-bit matrices: a ladder of ways to multiply, plain torch its floor.

The engine multiplies with a LowBitWeight (weight.py); ladder.py decides how, trial.py tries the
ways on this machine; they are plain.py, which says what a way must offer, and int4pack.py.
"""

from .dispatch import Choice, Ladder, named, report
from .plain import Plain, Rung
from .weight import LowBitWeight

__all__ = ["Choice", "Ladder", "LowBitWeight", "Plain", "Rung", "named", "report"]
