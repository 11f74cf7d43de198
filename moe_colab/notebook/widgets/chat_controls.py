"""The controls of the chat: their labels and their layout, and which of them are shown.

Knows nothing of what they do to a conversation: chat.py observes them. Uses only what both
ipywidgets 7.7 and 8 have.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import ipywidgets as w

from ...cache.policies import POLICIES
from ...chat import markup
from ...chat.session import ChatSession
from ...chat.settings import ANSWER_TOKENS, sampling
from ...chat.suggestions import Suggestions
from ...errors import MoEColabError
from ..views.view import web_asset
from .controls import button, field, row, size, slots_value, tagged


class ChatControls:
    """Every control is an attribute; `page` contains them all. `questions`: the buttons of the
    suggested questions, each with the question as its text."""

    def __init__(self, session: ChatSession, suggested: Suggestions, name: str):
        """name: a CSS class of the page, by which the script finds it."""
        offload, defaults = session.model.offload, session.model.generation_config

        about = tagged(w.HTML(markup.about(suggested)), "moe-about")
        self.history, self.live = w.HTML(), w.HTML()
        self.log = tagged(w.VBox([self.history, self.live]), "moe-log")
        self.status = tagged(w.HTML(), "moe-statusline")
        self.numbers = tagged(w.HTML(), "moe-numbers")

        self.questions = [tagged(button(text), "moe-turn") for text in suggested.questions]
        self.suggested = tagged(row(w.HTML("Try:"), *self.questions), "moe-suggested")

        # Not continuous: else Enter could arrive before the last update of the text.
        self.line = tagged(field(w.Text, "Message", "98%", continuous_update=False), "moe-line")
        self.line.placeholder = "write, then press Enter"
        self.lines = tagged(
            field(w.Textarea, "Message", "98%", rows=4, continuous_update=False), "moe-lines"
        )
        self.lines.placeholder = "several lines; Ctrl-Enter or Send sends them"
        self.lines.layout.display = "none"
        self.send = tagged(button("Send", "primary"), "moe-send")
        self.stop = button("Stop", "danger", disabled=True)
        self.retry, self.clear = button("Retry"), button("Clear")
        for control in (self.send, self.stop, self.retry, self.clear):
            control.add_class("moe-turn")
        self.several = w.Checkbox(description="Several lines", indent=False, layout=size("130px"))
        self.more = w.Checkbox(description="Settings", indent=False, layout=size("100px"))
        self.several.observe(self._change_several, "value")
        self.more.observe(self._change_more, "value")
        bar = row(self.send, self.stop, self.retry, self.clear, self.several, self.more)

        greedy = not defaults.do_sample
        self.temperature = field(
            w.BoundedFloatText, "Temperature", min=0, max=5, step=0.1,
            value=0.0 if greedy else defaults.temperature or 1.0,
        )  # fmt: skip
        self.top_p = field(
            w.BoundedFloatText, "Top-p", min=0.01, max=1, step=0.05, value=defaults.top_p or 1.0
        )
        self.max_tokens = field(
            w.BoundedIntText, "Max tokens", min=1, max=10**6,
            value=defaults.max_new_tokens or ANSWER_TOKENS,
        )  # fmt: skip
        self.seed = field(w.Text, "Seed", placeholder="random")
        self.slots = field(w.BoundedIntText, "Slots", min=1, max=max(offload.experts))
        self.policy = field(w.Dropdown, "Policy", options=[(name, name) for name in POLICIES])
        self.refresh(offload)
        self.system = field(
            w.Textarea, "System", "98%", rows=2, value=session.system or "", continuous_update=False
        )
        self.system.placeholder = "instructions for the model, before the conversation"
        self.as_json, self.as_markdown = button("Save as JSON"), button("Save as Markdown")
        self.settings = w.VBox(
            [
                row(self.temperature, self.top_p, self.max_tokens, self.seed),
                row(self.slots, self.policy),
                self.system,
                row(self.as_json, self.as_markdown),
            ],
            layout=w.Layout(display="none"),
        )

        style = w.HTML(f"<style>{web_asset('chat.css')}</style>", layout=w.Layout(height="0"))
        conversation = (about, self.log, self.suggested)
        parts = (self.line, self.lines, bar, self.status, self.numbers, self.settings)
        self.page = tagged(w.VBox([style, *conversation, *parts]), "moe-chat", name)

    @property
    def box(self) -> w.Text | w.Textarea:
        """The message box that is shown."""
        return self.lines if self.several.value else self.line

    def generation(self) -> dict[str, Any]:
        """Keywords for the next answer. Raises MoEColabError for an invalid seed."""
        seed = self.seed.value.strip()
        if seed and not (seed.isdecimal() and int(seed) < 2**32):
            raise MoEColabError(f"the seed must be empty or a whole number below 2^32, not {seed}.")
        settings = sampling(self.temperature.value, self.top_p.value, self.max_tokens.value)
        return {"seed": int(seed) if seed else None, **settings}

    def refresh(self, offload) -> None:
        """Show the current slots and policy of the model."""
        self.slots.value = slots_value(offload)
        if offload.policy_spec not in (value for _, value in self.policy.options):
            self.policy.options = [*self.policy.options, (offload.policy, offload.policy_spec)]
        self.policy.value = offload.policy_spec

    def suggest(self, but: Collection[str]) -> None:
        """Show the suggested questions, but not these, which were asked already."""
        left = [question for question in self.questions if question.description not in but]
        for question in self.questions:
            question.layout.display = "" if question in left else "none"
        self.suggested.layout.display = "flex" if left else "none"

    def set_busy(self, busy: bool) -> None:
        """Enable Stop while an answer is under way, and the other buttons while none is."""
        turns = (self.send, self.retry, self.clear, *self.questions)
        for control in (*turns, self.slots, self.policy):
            control.disabled = busy
        self.stop.disabled = not busy
        (self.page.add_class if busy else self.page.remove_class)("moe-busy")

    def resend(self) -> None:
        """Send the page everything that changes by itself, but not the text a person is writing."""
        shown = (self.page, self.history, self.live, self.numbers, self.status)
        suggested = (self.suggested.layout, *self.questions, *(q.layout for q in self.questions))
        buttons = (self.send, self.stop, self.retry, self.clear, *suggested)
        for widget in (*shown, *buttons, self.slots, self.policy):
            widget.send_state()

    def _change_several(self, change) -> None:
        shown, hidden = self.line, self.lines
        if change["new"]:
            shown, hidden = hidden, shown
        shown.value, hidden.value = hidden.value, ""
        shown.layout.display, hidden.layout.display = "", "none"

    def _change_more(self, change) -> None:
        self.settings.layout.display = "" if change["new"] else "none"
