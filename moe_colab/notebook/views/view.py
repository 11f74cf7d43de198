"""A view: an HTML fragment that is complete in itself, and a picture for pages without scripts.

Knows how a view is assembled, packed, displayed and saved; knows nothing of its content. A view
uses no kernel, no other host and nothing of another view: every output of Colab is a document of
its own, and one page may contain the same view twice.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Mapping
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...plots.saving import Forms
from .displayed import Saved

if TYPE_CHECKING:
    from ...plots import Picture

LIMIT = 300_000  # bytes of a view, so that a notebook can hold many of them
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title></head><body>
{html}
</body></html>
"""
UNSAFE = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


class View(Saved):
    """An interactive view of `data`. As the last line of a cell it displays itself: a picture, and
    in its place the view, where scripts run. `html` is a fragment, `document` a page; `save`
    writes the page (.html) or the picture (.png).

    kind: names its script and style, web/KIND.js and KIND.css, which run after those of `parts` and
    of all views. data: JSON values and numpy arrays of a dtype that JavaScript's typed arrays have;
    the script reads them with `unpack`. picture: draws the static picture when it is first needed.
    """

    def __init__(
        self,
        kind: str,
        title: str,
        data: Mapping[str, Any],
        picture: Callable[[], Picture],
        parts: tuple[str, ...] = (),
    ):
        self.kind, self._title, self.data = kind, title, data
        self._draw, self._parts = picture, parts

    @property
    def title(self) -> str:
        return self._title

    @cached_property
    def picture(self) -> Picture:
        return self._draw()

    @property
    def html(self) -> str:
        """The HTML fragment, under a new random name each time."""
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

    @cached_property
    def nbytes(self) -> int:
        """The size of `html` in bytes."""
        return len(self.html.encode())

    @property
    def document(self) -> str:
        """A complete HTML page that loads nothing from elsewhere."""
        return page(self.title, self.html)

    @property
    def file_name(self) -> str:
        return self.kind

    @property
    def forms(self) -> Forms:
        return {".html": lambda: self.document.encode(), ".png": lambda: self.picture.png()}

    def _display(self) -> None:
        from IPython.display import display

        png = base64.b64encode(self.picture.png()).decode()
        sizes = {"image/png": self.picture.shown_size}
        display({"image/png": png, "text/plain": repr(self)}, metadata=sizes, raw=True)
        marker = f'<span class="moe-twin" hidden data-end="{png[-64:]}"></span>'  # what to hide
        display({"text/html": marker + self.html, "text/plain": repr(self)}, raw=True)


def page(title: str, html: str) -> str:
    """A complete HTML page that loads nothing from elsewhere. html: its body."""
    return PAGE.format(title=escape(title), html=html)


def fit(make: Callable[[int], tuple[View, int]], count: int) -> View:
    """The view of as many things, at most `count`, as fit into LIMIT bytes.

    make(count): the view of `count` things or fewer, and how many it shows. A view of a single
    thing is returned even where it is larger than LIMIT.
    """
    while True:
        view, count = make(count)
        if view.nbytes <= LIMIT or count == 1:
            return view
        count = max(1, min(count - 1, count * LIMIT // view.nbytes))


def shortened(text: str, longest: int) -> str:
    """At most `longest` characters of a text."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def packed(data: Mapping[str, Any]) -> str:
    """JSON that is safe inside a script element, whatever texts it contains."""
    text = json.dumps(data, default=array, ensure_ascii=False, separators=(",", ":"))
    # A tokenizer may decode a lone surrogate, which UTF-8 cannot encode.
    return text.encode("utf-8", "replace").decode().translate(UNSAFE)


def array(value: Any) -> dict[str, Any]:
    """An array as JSON: row-major, little-endian, base64. Raises TypeError for anything else."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"a view cannot hold {type(value).__name__}")
    if value.dtype.kind not in "iuf" or value.dtype.itemsize > 4 or value.dtype == np.float16:
        raise TypeError(f"no typed array of JavaScript holds {value.dtype}")
    raw = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes()
    packed = base64.b64encode(raw).decode()
    return {"dtype": value.dtype.name, "shape": list(value.shape), "base64": packed}


def web_asset(name: str) -> str:
    """The text of a style sheet or script in web/."""
    return (Path(__file__).parents[1] / "web" / name).read_text(encoding="utf-8")
