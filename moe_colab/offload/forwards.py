"""The forwards of a model that are under way, so that its weights are freed only when none reads
them. Knows threads; knows no model."""

from __future__ import annotations

import threading
from collections.abc import Callable

PATIENCE = 10.0  # seconds: a forward that meets a closed model ends at its next MoE layer


class Forwards:
    """Counts them by thread: a thread runs one at a time."""

    def __init__(self):
        self.changed = threading.Condition()
        self.threads: set[int] = set()
        self.at_end: Callable[[], None] | None = None

    def begin(self) -> None:
        """This thread begins a forward."""
        with self.changed:
            self.threads.add(threading.get_ident())

    def end(self) -> None:
        """This thread's forward has ended, or never began."""
        with self.changed:
            self.threads.discard(threading.get_ident())
            self.changed.notify_all()
            at_end = None
            if not self.threads:
                at_end, self.at_end = self.at_end, None
        if at_end is not None:
            at_end()

    def run_after(self, call: Callable[[], None]) -> None:
        """Call once no other thread runs a forward. Waits for that, but not for ever: later, the
        thread whose forward ends last makes the call."""
        with self.changed:
            mine = {threading.get_ident()}
            if not self.changed.wait_for(lambda: self.threads <= mine, PATIENCE):
                self.at_end = call
                return
        call()
