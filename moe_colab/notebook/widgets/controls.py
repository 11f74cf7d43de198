"""Controls of the widgets: rows, labels, sliders, menus, status lines. Uses only what both
ipywidgets 7.7 and 8 have."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import ipywidgets as w

LABEL = "90px"


def below(widget: w.Widget) -> Iterator[w.Widget]:
    """The widget and everything inside it, the innermost first."""
    for child in getattr(widget, "children", ()):
        yield from below(child)
    yield widget


def close(page: w.Widget) -> None:
    """Remove a widget and everything inside it from the page, with layouts and styles."""
    for widget in list(below(page)):
        for part in (widget, widget.layout, getattr(widget, "style", None)):
            if part is not None:
                part.close()


def tagged(widget: w.DOMWidget, *classes: str) -> w.DOMWidget:
    for name in classes:
        widget.add_class(name)
    return widget


def size(width: str) -> w.Layout:
    return w.Layout(width=width)


def field(kind: type, label: str, width: str = "200px", **settings) -> w.DOMWidget:
    """A control with its label. settings: of the widget `kind`."""
    style = {"description_width": LABEL}
    return kind(description=label, layout=size(width), style=style, **settings)


def slider(label: str, least: int, most: int, value: int) -> w.IntSlider:
    settings = {"min": least, "max": most, "value": value, "continuous_update": False}
    return field(w.IntSlider, label, "360px", **settings)


def decimal(label: str, least: float, most: float, value: float) -> w.BoundedFloatText:
    return field(w.BoundedFloatText, label, min=least, max=most, step=least, value=value)


def menu(label: str, options: Any, width: str = "300px") -> w.Dropdown:
    return field(w.Dropdown, label, width, options=options)


def button(label: str, style: str = "", **settings) -> w.Button:
    return w.Button(description=label, button_style=style, layout=size("auto"), **settings)


def row(*widgets: w.Widget) -> w.Box:
    return w.Box(widgets, layout=w.Layout(display="flex", flex_flow="row wrap"))


def status_line(text: str, bad: bool = False) -> str:
    """A sentence as HTML; bad: as an error, with a warning sign."""
    kind, sign = ("moe-error", "⚠ ") if bad else ("moe-status", "")
    return f'<span class="{kind}">{sign}{escape(text)}</span>'


def unseen(text: str) -> str:
    """A text as HTML that only screen readers find: what a picture shows, in words."""
    style = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)"
    return f'<span style="{style}">{escape(text)}</span>'


def slots_value(offload) -> int:
    """The slots of a layer as one number: the smallest where layers differ."""
    return offload.slots if isinstance(offload.slots, int) else min(offload.slots)
