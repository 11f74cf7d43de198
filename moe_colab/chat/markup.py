"""A conversation as safe HTML. Knows turns and suggestions; knows no widgets.

What a person or a model wrote is shown as text and never runs: no HTML of its own, no scripts, no
requests to other hosts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from markdown_it import MarkdownIt

from .suggestions import Suggestions
from .turn import Turn

DEEPEST = 100  # levels of lists and quotes; the parser drops what is deeper
LINKS = re.compile(r"(https?://|mailto:)", re.I)  # addresses of another kind stay text

# HTML in the text stays text, and a link cannot run a script or a program. Images are disabled,
# because the page would fetch them from any address that the model writes.
_markdown = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": DEEPEST})
_markdown.enable("table").disable(["image", "html_block", "html_inline"])
_markdown.validateLink = lambda address: LINKS.match(address) is not None


def _open_in_new_tab(self, tokens, place, options, env) -> str:
    for name, value in (("target", "_blank"), ("rel", "noopener noreferrer nofollow")):
        tokens[place].attrSet(name, value)
    return self.renderToken(tokens, place, options, env)


_markdown.add_render_rule("link_open", _open_in_new_tab)


def plain(text: str) -> str:
    """Text without Markdown; line breaks and spaces are kept."""
    return f'<div class="moe-text" dir="auto">{escape(text)}</div>'


def markdown(text: str) -> str:
    """CommonMark with tables as HTML. Text whose HTML is very much longer, or with lists and quotes
    in more levels than the parser follows, stays plain text."""
    try:
        tokens = _markdown.parse(text)
        html = _markdown.renderer.render(tokens, _markdown.options, {})
    except RecursionError:
        return plain(text)
    deepest = max((token.level for token in tokens), default=0)
    if deepest >= DEEPEST - 1 or len(html) > 20 * len(text) + 2000:
        return plain(text)
    return f'<div class="moe-markdown" dir="auto">{html}</div>'


def about(suggested: Suggestions) -> str:
    """The model's name, and what it is good for."""
    return f"<strong>{escape(suggested.name)}</strong> is {escape(suggested.about)}"


def conversation(turns: Sequence[Turn]) -> str:
    if not turns:
        return '<div class="moe-empty">No messages yet. Write one, or click a question.</div>'
    return "".join(map(finished, turns))


def finished(turn: Turn) -> str:
    facts = turn.line() + (" (stopped)" if turn.stopped else "")
    answer = f'{markdown(turn.text)}<div class="moe-facts">{escape(facts)}</div>'
    return exchange(turn, thinking(turn.thinking) + answer)


def under_way(turn: Turn) -> str:
    if turn.text:
        return exchange(turn, thinking(turn.thinking) + plain(turn.text + "▍"))
    return exchange(turn, thinking(turn.thinking, now=True) + plain("" if turn.thinking else "▍"))


def thinking(text: str, now: bool = False) -> str:
    """What the model thought, folded; open while it thinks now."""
    if not text:
        return ""
    if now:
        begin = '<details class="moe-thinking moe-now" open><summary>Thinking ...</summary>'
        return f"{begin}{plain(text + '▍')}</details>"
    words = len(text.split())
    summary = f"Thinking: {words:,} word{'' if words == 1 else 's'}"
    begin = f'<details class="moe-thinking"><summary>{summary}</summary>'
    return f"{begin}{plain(text)}</details>"


def exchange(turn: Turn, answer: str) -> str:
    note = left_out_note(turn.left_out)
    return (
        (f'<div class="moe-note">{escape(note)}</div>' if note else "")
        + f'<div class="moe-you"><span class="moe-who">You</span>{plain(turn.question)}</div>'
        + f'<div class="moe-model"><span class="moe-who">Model</span>{answer}</div>'
    )


def left_out_note(count: int) -> str:
    if not count:
        return ""
    turns = "oldest turn was" if count == 1 else f"{count} oldest turns were"
    return f"the context is full: the {turns} left out"


def numbers(turn: Turn, rate: float) -> str:
    """The numbers of an answer under way; rate: tokens per second over the last few tokens."""
    text = f"reading {turn.prompt_tokens - turn.reused_tokens} tokens, {turn.seconds:.1f} s"
    if turn.tokens:
        text = (
            f"{turn.tokens} tokens, first after {turn.first_token_seconds:.2f} s, now {rate:.1f} "
            f"tokens/s, hit rate {turn.hit_rate:.0%}, {turn.bytes_per_token / 1e6:.2f} MB per "
            f"token, {turn.stall_share:.0%} of the time spent waiting for experts"
        )
    return f'<span class="moe-facts">{escape(text)}</span>'
