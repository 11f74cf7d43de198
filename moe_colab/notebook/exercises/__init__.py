"""`mc.exercises`: checks the answers to the notebooks' exercises, with hints and no tracebacks.

Every right answer is computed from the numbers in the exercise.
"""

from .bits import check_group_bits, check_mixtral_bits
from .judging import Reply
from .routing import check_active, check_evidence, check_weight
from .slots import check_belady, check_lru, check_stall

__all__ = [
    "Reply", "check_active", "check_belady", "check_evidence", "check_group_bits", "check_lru",
    "check_mixtral_bits", "check_stall", "check_weight",
]  # fmt: skip
