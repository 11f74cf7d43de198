"""The expert cache: eviction policies, slots, loads and the prefetch queue. Needs no torch."""

from .policies import FIFO as FIFO
from .policies import LFU as LFU
from .policies import LRU as LRU
from .policies import POLICIES as POLICIES
from .policies import KeepNothing as KeepNothing
from .policies import Policy as Policy
from .policies import RandomChoice as RandomChoice
