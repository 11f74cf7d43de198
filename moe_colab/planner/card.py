"""Cards for notebooks: one block of HTML with its own style, light and dark.

Knows HTML; knows nothing of what a card shows. Every output of Colab is a separate document, so
each card contains the style. Colour is never the only sign.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

DARK = "--ink:#e6e6e6;--dim:#a8adb3;--line:#44484d;--back:#1f2124;--tile:#2a2d31"
STYLE = f"""<style>
.moecard{{--ink:#1f2328;--dim:#59636e;--line:#d5dae0;--back:#fff;--tile:#f4f6f8;
--good:#009E73;--bad:#D55E00;color:var(--ink);background:var(--back);
border:1px solid var(--line);border-radius:10px;padding:12px 16px 10px;margin:4px 0;max-width:880px;
box-sizing:border-box;font:14px/1.45 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}}
@media (prefers-color-scheme:dark){{
html:not([theme]) body:not([data-jp-theme-light]) .moecard{{{DARK}}}}}
html[theme=dark] .moecard,body[data-jp-theme-light=false] .moecard{{{DARK}}}
.moecard .moecard-head{{font-size:15px;font-weight:600;margin-bottom:10px}}
.moecard .moecard-head span,.moecard small,.moecard .moecard-foot{{color:var(--dim);
font-weight:400}}
.moecard small{{display:block;font-size:12px}}
.moecard .moecard-foot{{font-size:12px;margin-top:8px}}
.moecard .moecard-tiles{{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));
gap:8px;margin-bottom:10px}}
.moecard .moecard-tiles div{{background:var(--tile);border-radius:8px;padding:7px 11px;
overflow-wrap:anywhere}}
.moecard .moecard-tiles b{{display:block;font-weight:600}}
.moecard .moecard-say{{margin:0 0 8px}}
.moecard .moecard-scroll{{overflow-x:auto}}
.moecard.moecard table{{border-collapse:collapse;table-layout:auto;width:100%;margin:0;border:0;
font-size:13px;color:inherit}}
.moecard.moecard tr:nth-child(n){{background:none;border:0}}
.moecard.moecard th,.moecard.moecard td{{text-align:left;vertical-align:top;border:0;
border-top:1px solid var(--line);padding:7px 14px 7px 0;max-width:none;white-space:normal}}
.moecard.moecard :is(th,td:not([colspan])):last-child{{white-space:nowrap;padding-right:0}}
.moecard.moecard th{{border-top:0;color:var(--dim);font-weight:400;font-size:12px;
padding-bottom:3px}}
.moecard.moecard.moecard code{{font:12px/1.5 "DejaVu Sans Mono",ui-monospace,monospace;
color:var(--dim);background:none;padding:0;overflow-wrap:anywhere}}
.moecard .moecard-yes,.moecard .moecard-no{{font-weight:700}}
.moecard .moecard-yes{{color:var(--good)}}
.moecard .moecard-no{{color:var(--bad)}}
.moecard .moecard-bar{{height:5px;min-width:90px;max-width:150px;border-radius:3px;margin-top:4px;
background:var(--line);overflow:hidden}}
.moecard .moecard-bar i{{display:block;height:100%;background:var(--good)}}
</style>"""

Cell = str | tuple[str, int]
"""The HTML of a cell, or (HTML, number of columns) for a wider one."""


def card(title: str, body: str, foot: str, where: str = "") -> str:
    """The HTML of a card. `body` is HTML, the rest plain text; `where` is a dim part of the
    title."""
    place = f" <span>· {escape(where)}</span>" if where else ""
    return (
        f'{STYLE}<div class="moecard"><div class="moecard-head">{escape(title)}{place}</div>{body}'
        f'<div class="moecard-foot">{escape(foot)}</div></div>'
    )


def tiles(facts: Sequence[tuple[str, str, str]]) -> str:
    """Facts, (name, value, remark) in plain text, as tiles side by side."""
    cells = (
        f"<div><small>{escape(name)}</small><b>{escape(value)}</b><small>{escape(remark)}</small>"
        "</div>"
        for name, value, remark in facts
    )
    return f'<div class="moecard-tiles">{"".join(cells)}</div>'


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table with heads in plain text and cells in HTML."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'<div class="moecard-scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )


def bar(part: float) -> str:
    """A bar filled to `part` of its length, 0 to 1. Hidden from screen readers: write the number
    beside it."""
    return (
        f'<div class="moecard-bar" aria-hidden="true"><i style="width:{100 * part:.0f}%"></i></div>'
    )


def mark(good: bool | None) -> str:
    """A coloured sign for yes, no, or None for unknown."""
    if good is None:
        return "<b>?</b>"
    return '<span class="moecard-yes">✓</span>' if good else '<span class="moecard-no">✗</span>'


def _cell(cell: Cell) -> str:
    content, columns = (cell, 1) if isinstance(cell, str) else cell
    content = re.sub(
        r"(\d) ([kMG]?B)\b", r"\1&nbsp;\2", content
    )  # keeps number and unit on one line
    return f'<td colspan="{columns}">{content}</td>' if columns > 1 else f"<td>{content}</td>"
