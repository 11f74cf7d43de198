"""What the notebooks ask, and whether an answer is right: a hint, never a traceback.

Every right answer is computed from what the exercise tells.
"""

from .bits import check_group_bits, check_mixtral_bits
from .judging import Reply
from .routing import check_active, check_evidence, check_weight
from .slots import check_belady, check_lru, check_stall

__all__ = [
    "Reply",
    "check_active",
    "check_belady",
    "check_evidence",
    "check_group_bits",
    "check_lru",
    "check_mixtral_bits",
    "check_stall",
    "check_weight",
]
