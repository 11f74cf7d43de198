"""A panel: controls, pictures, facts and a status line, updated whenever a control changes.

Knows how a panel is laid out, observed, displayed and closed; knows nothing of its content. Uses
only what both ipywidgets 7.7 and 8 have.
"""

from __future__ import annotations

import base64
import contextlib
import functools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ipywidgets as w
from IPython.display import display

from ...errors import MoEColabError
from ...plots.saving import Forms
from ..views.displayed import Saved
from ..views.view import page
from .controls import close, row, status_line, tagged


def shows_errors(handler: Callable) -> Callable:
    """Show errors of a callback in the status line: a notebook does not show them elsewhere."""

    @functools.wraps(handler)
    def wrapped(self, *args, **settings):
        try:
            return handler(self, *args, **settings)
        except MoEColabError as error:
            self.say(str(error), bad=True)
        except Exception as error:
            self.error = error
            self.say(f"unexpected error: {type(error).__name__}: {error}", bad=True)

    return wrapped


class Panel(Saved):
    """A panel, which displays itself as the last line of a cell. `show` fills `pictures` (`picture`
    is the first one) and `facts`; `error` is the latest error that was no MoEColabError. `save`
    writes what is shown, without the controls, as a page (.html).

    name: a CSS class of the page. lines: rows of controls that update the panel. above: rows of
    controls over these that do not. pictures: how many.
    """

    def __init__(
        self,
        name: str,
        *lines: Iterable[w.Widget],
        above: Iterable[Iterable[w.Widget]] = (),
        pictures: int = 1,
    ):
        self.name = name
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
        """Show the panel for the current values of the controls."""
        try:
            self.show()
        except Exception:
            self.facts.value = ""
            for image in self.pictures:  # they belong to other settings
                image.layout.display = "none"
            raise
        self.picture.layout.display = ""
        self.say("")

    @abstractmethod
    def show(self) -> None:
        """Fill the pictures and facts for the current values of the controls."""

    def say(self, text: str, bad: bool = False) -> None:
        """Show a sentence in the status line, or nothing for ""."""
        self.status.value = f'<div role="status">{status_line(text, bad)}</div>' if text else ""

    @property
    def file_name(self) -> str:
        return self.name.removeprefix("moe-")

    @property
    def forms(self) -> Forms:
        return {".html": lambda: page(self.title, self._content()).encode()}

    def close(self) -> None:
        """Remove the panel from the page."""
        close(self.page)

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """A context in which changes of controls do not update the panel."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def _changed(self, _: Any) -> None:
        if not self._quiet:
            self.update()

    def _content(self) -> str:
        """The pictures and facts that are shown, as HTML."""
        shown = [image.value for image in self.pictures if image.layout.display != "none"]
        images = (
            f'<img alt="" style="width:100%;max-width:800px" src="data:image/png;base64,{data}">'
            for data in (base64.b64encode(png).decode() for png in shown)
        )
        return "".join(images) + self.facts.value

    def _display(self) -> None:
        display(self.page)
