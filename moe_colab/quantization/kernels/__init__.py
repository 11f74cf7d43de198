"""Kernels: products with low-bit matrices.

The engine multiplies with a `LowBitWeight` (weight.py). dispatch.py chooses the kernel, after a
self-test on this machine (self_test.py). kernel.py is the interface; int4pack.py and the fallback
in plain torch (fallback.py) implement it.
"""

from .dispatch import Dispatcher, KernelChoice, dispatcher_for, report
from .fallback import Fallback
from .kernel import Kernel
from .weight import LowBitWeight

__all__ = [
    "Dispatcher",
    "Fallback",
    "Kernel",
    "KernelChoice",
    "LowBitWeight",
    "dispatcher_for",
    "report",
]
