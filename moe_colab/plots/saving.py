"""Saving of figures and views: the forms of a file, its errors, and how a session without a
notebook is told of it. Knows files; knows nothing of what is saved."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import MoEColabError
from ..files import write_file

Forms = Mapping[str, Callable[[], bytes]]
"""The content of a file by its ending, ".png" for example."""


def save(path: str | os.PathLike[str], forms: Forms) -> Path:
    """Write the form that the path ends in, and return the path. Raises MoEColabError for another
    ending, or if the file cannot be written."""
    path = Path(path).expanduser()
    if path.suffix not in forms:
        raise MoEColabError(f"{path} must end in {' or '.join(forms)}.")
    return write_file(path, forms[path.suffix]())


def how_to_save(title: str, name: str, forms: Forms) -> str:
    """What stands for a figure or view where only text can be shown. name: of a file, without its
    ending."""
    calls = " or ".join(f'.save("{name}{ending}")' for ending in forms)
    return f"<{title}. A notebook shows it; anywhere else, save it with {calls}>"
