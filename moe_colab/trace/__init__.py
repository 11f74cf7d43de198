"""A trace: what happened while a model ran, in compact arrays; and how it is shown, kept and
joined. No torch: `recording` fills one, `replays` asks what another cache would have made of it."""

from .arrays import OUTCOMES as OUTCOMES
from .builder import Builder as Builder
from .trace import Trace as Trace
