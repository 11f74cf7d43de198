"""A panel: controls, a picture, facts and a status line, drawn anew whenever a control is moved.

Knows how such a thing is laid out, listened to, shown and closed; knows nothing of what it shows.
Only what ipywidgets 7.7 has as well as 8.
"""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ipywidgets as w
from IPython.display import display

from ...chat import markup
from ...errors import MoEColabError
from .controls import below, row, tagged


def shows_errors(handler: Callable) -> Callable:
    """Errors in a callback are invisible in a notebook: they go to the status line, in words."""

    @functools.wraps(handler)
    def wrapped(self, *args, **settings):
        try:
            return handler(self, *args, **settings)
        except MoEColabError as error:
            self.say(str(error), bad=True)
        except Exception as error:
            self.error = error
            self.say(f"this went wrong: {type(error).__name__}: {error}", bad=True)

    return wrapped


class Panel(ABC):
    """As the last line of a cell it shows itself. `pictures` (the first is `picture` too) and
    `facts` are what `show` fills; `error` is the latest error that was no MoEColabError.

    name: a class of the page. lines: the controls, from the top; those `above` are only laid out:
    they change nothing that is shown. pictures: how many.
    """

    def __init__(
        self,
        name: str,
        *lines: Iterable[w.Widget],
        above: Iterable[Iterable[w.Widget]] = (),
        pictures: int = 1,
    ):
        self.error: Exception | None = None
        self._quiet = False
        self.facts, self.status = w.HTML(), w.HTML()
        shape = {"width": "100%", "max_width": "800px"}
        self.pictures = [w.Image(format="png", layout=w.Layout(**shape)) for _ in range(pictures)]
        self.picture = self.pictures[0]
        lines = [tuple(line) for line in lines if line]
        for control in (control for line in lines for control in line):
            control.observe(self._changed, "value")
        under = (*self.pictures, self.facts, self.status)
        rows = [row(*line) for line in (*above, *lines)]
        self.page = tagged(w.VBox([*rows, *under]), name)

    @shows_errors
    def update(self) -> None:
        """Count anew what is chosen, and show it."""
        try:
            self.show()
        except Exception:
            self.facts.value = ""
            for image in self.pictures:  # of other settings
                image.layout.display = "none"
            raise
        self.picture.layout.display = ""
        self.say("")

    @abstractmethod
    def show(self) -> None:
        """What is chosen, counted anew."""

    def say(self, text: str, bad: bool = False) -> None:
        line = markup.status(text, bad) if text else ""
        self.status.value = f'<div role="status">{line}</div>' if line else ""

    def close(self) -> None:
        """Take the panel off the page."""
        for widget in list(below(self.page)):
            widget.close()

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Nothing is shown anew while controls are set in here."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def _changed(self, _: Any) -> None:
        if not self._quiet:
            self.update()

    def _ipython_display_(self) -> None:
        display(self.page)
