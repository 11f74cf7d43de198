"""A trace: the recorded routing, guesses and accesses of a model, in compact arrays.

`offload.record` fills one, `analysis` replays it under another cache. Needs no torch.
"""

from .arrays import OUTCOMES as OUTCOMES
from .builder import Builder as Builder
from .trace import Trace as Trace
