"""A view: a piece of HTML that carries all it needs, and a picture of it for where no script runs.

Knows how a view is put together, packed, shown and saved; knows nothing of what it shows. No
kernel, no other host and nothing shared with another view: every output of Colab is a document of
its own, and the same view may stand twice on one page.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Callable, Mapping
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import MoEColabError

if TYPE_CHECKING:
    from ...plots import Picture

LIMIT = 300_000  # bytes of a view: many of them must fit a notebook
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title></head><body>
{html}
</body></html>
"""
UNSAFE = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


class View:
    """`kind`'s script and style (web/KIND.js, KIND.css, after those of `parts` and of all views)
    at work on `data`. As the last line of a cell it shows itself: a picture, and in its place the
    view where scripts run. `html` is a fragment, `document` a page, `save` writes a file.

    data: what JSON can hold, and numpy arrays (their dtype one of JavaScript's typed arrays), which
    the script reads with `unpack`. picture: draws the twin, called when it is first needed.
    """

    def __init__(
        self,
        kind: str,
        title: str,
        data: Mapping[str, Any],
        picture: Callable[[], Picture],
        parts: tuple[str, ...] = (),
    ):
        self.kind, self.title, self.data = kind, title, data
        self._draw, self._parts = picture, parts

    @cached_property
    def picture(self) -> Picture:
        return self._draw()

    @property
    def html(self) -> str:
        """A fragment with a name of its own, another one every time."""
        name = f"moe-{secrets.token_hex(5)}"
        style = "\n".join(web_asset(f"{part}.css") for part in ("view", self.kind))
        code = "\n".join(web_asset(f"{part}.js") for part in ("view", *self._parts, self.kind))
        return (
            f'<div id="{name}" class="moe-view" role="region" aria-label="{escape(self.title)}">'
            f"<style>#{name} {{\n{style}\n}}</style>"
            f'<script type="application/json">{packed(self.data)}</script>'
            f'<script>(() => {{\n"use strict";\n{code}\n'
            f'{self.kind}(document.getElementById("{name}"));\n}})();</script></div>'
        )

    @property
    def document(self) -> str:
        """A page that asks nobody for anything."""
        return PAGE.format(title=escape(self.title), html=self.html)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a page (.html) or the picture (.png); its path. Raises MoEColabError for another
        ending, or where it cannot be written."""
        path = Path(path)
        if path.suffix not in (".html", ".png"):
            raise MoEColabError(f"{path} must end in .html or .png: these a view can be saved as.")
        whole = self.picture.png() if path.suffix == ".png" else self.document.encode()
        try:
            path.write_bytes(whole)
        except OSError as error:
            raise MoEColabError(f"{path} cannot be written: {error.strerror}.") from error
        return path

    def __repr__(self) -> str:
        return f"<{self.title}>"

    def _ipython_display_(self) -> None:
        from IPython.display import display

        png = base64.b64encode(self.picture.png()).decode()
        sizes = {"image/png": self.picture.shown_size}
        display({"image/png": png, "text/plain": repr(self)}, metadata=sizes, raw=True)
        mine = f'<span class="moe-twin" hidden data-end="{png[-64:]}"></span>'  # whom to hide
        display({"text/html": mine + self.html, "text/plain": repr(self)}, raw=True)


def packed(data: Mapping[str, Any]) -> str:
    """JSON that can stand inside of a script element, whatever texts are in it."""
    told = json.dumps(data, default=array, ensure_ascii=False, separators=(",", ":"))
    # A lone surrogate, which a decoder of tokens may give, cannot be written as UTF-8.
    return told.encode("utf-8", "replace").decode().translate(UNSAFE)


def array(value: Any) -> dict[str, Any]:
    """An array in row order, little end first. Raises TypeError for anything else."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"a view cannot hold {type(value).__name__}")
    if value.dtype.kind not in "iuf" or value.dtype.itemsize > 4 or value.dtype == np.float16:
        raise TypeError(f"no typed array of JavaScript holds {value.dtype}")
    raw = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes()
    packed = base64.b64encode(raw).decode()
    return {"dtype": value.dtype.name, "shape": list(value.shape), "base64": packed}


def web_asset(name: str) -> str:
    """A style sheet or script that comes with the package."""
    return (Path(__file__).parents[1] / "web" / name).read_text(encoding="utf-8")
