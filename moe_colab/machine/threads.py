"""How torch's threads wait for each other. Knows environment variables of OpenMP; imports no
torch."""

from __future__ import annotations

import os
import sys

WAIT_POLICY = "OMP_WAIT_POLICY"
# Each of these is somebody's own choice of how threads wait.
CHOICES = (WAIT_POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def let_threads_sleep() -> bool:
    """Set OMP_WAIT_POLICY=passive for this process and its children, so that waiting threads sleep.
    Call it before torch is imported. Whether it was set.

    Otherwise they spin. Where another program uses a core too, they then take the time of the
    thread for which they wait, and a small model gives one token a second instead of a hundred.
    Nothing is changed where the user has chosen how threads wait, or where torch is imported
    already: OpenMP reads the variable once, when torch loads it.
    """
    if "torch" in sys.modules or any(name in os.environ for name in CHOICES):
        return False
    os.environ[WAIT_POLICY] = "passive"
    return True
