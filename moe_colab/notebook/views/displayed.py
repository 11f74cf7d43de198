"""What displays itself as the last line of a cell, and says in any other session how to save it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path

from ...plots.saving import Forms, how_to_save, save


def in_notebook() -> bool:
    """Whether this session can show pages: a notebook, and not Python or IPython in a terminal."""
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")


class Displayed(ABC):
    """Displays itself in a notebook; IPython in a terminal prints its repr instead."""

    @abstractmethod
    def _display(self) -> None:
        """Show it in this notebook."""

    def _ipython_display_(self) -> None:
        if in_notebook():
            self._display()
        else:
            print(repr(self))


class Saved(Displayed):
    """A Displayed thing that can be saved, and whose repr says so."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What it shows, in a few words."""

    @property
    @abstractmethod
    def file_name(self) -> str:
        """A name for its file, without an ending."""

    @property
    @abstractmethod
    def forms(self) -> Forms:
        """What can be saved, by the ending of the file."""

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a file in the form that its ending names, ".html" (a page that needs no other file)
        for example, and return its path. Raises MoEColabError for another ending, or if the file
        cannot be written."""
        return save(path, self.forms)

    def __repr__(self) -> str:
        return how_to_save(self.title, self.file_name, self.forms)
