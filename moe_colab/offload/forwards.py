"""The forwards of a model that are under way, so that its weights are freed only when none reads
them. Knows threads; knows no model."""

from __future__ import annotations

import threading
from collections.abc import Callable

PATIENCE = 10.0  # seconds: a forward that meets a closed model ends at its next MoE layer


class Forwards:
    """Each is known by its thread and the module that runs: a model, or the model in it."""

    def __init__(self):
        self.changed = threading.Condition()
        self.running: set[tuple[int, int]] = set()
        self.at_end: Callable[[], None] | None = None

    def begin(self, module: object) -> None:
        """This thread begins a forward of a module."""
        with self.changed:
            self.running.add((threading.get_ident(), id(module)))

    def end(self, module: object) -> None:
        """This thread's forward of a module has ended, or never began."""
        with self.changed:
            self.running.discard((threading.get_ident(), id(module)))
            self.changed.notify_all()
            at_end = None
            if not self.running:
                at_end, self.at_end = self.at_end, None
        if at_end is not None:
            at_end()

    def run_after(self, call: Callable[[], None]) -> None:
        """Call once no other thread runs a forward. Waits for that, but not for ever: later, the
        thread whose forward ends last makes the call."""
        me = threading.get_ident()
        with self.changed:
            alone = lambda: all(thread == me for thread, _ in self.running)  # noqa: E731
            if not self.changed.wait_for(alone, PATIENCE):
                self.at_end = call
                return
        call()
