"""What goes wrong, in words a person can act on."""

from __future__ import annotations

import sys

CLOSED = "this model was closed: load it again with mc.load()."


class MoEColabError(Exception):
    """The one exception family a user meets: what was found, what was expected, what to do next.

    A notebook shows it as its sentence, without the traceback, which `%tb` shows."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of the traceback."""
        formatter = _formatter_of_tb()
        if formatter is None:
            return [f"{type(self).__name__}: {self}\n(%tb shows where it was raised)"]
        return formatter.structured_traceback(type(self), self, self.__traceback__, tb_offset=1)


def _formatter_of_tb():
    """IPython's formatter of tracebacks while its magic %tb is at work, else None. IPython asks an
    error in the same way for both, so the caller is looked for."""
    frame = sys._getframe()
    while frame is not None:
        module, function = frame.f_globals.get("__name__"), frame.f_code.co_name
        if (module, function) == ("IPython.core.magics.execution", "tb"):
            return frame.f_locals["self"].shell.InteractiveTB
        frame = frame.f_back
    return None
