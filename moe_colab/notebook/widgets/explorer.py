"""`mc.Explorer`: record a text, and show its trace under any cache settings.

Knows record_text and the trace widget; adds controls for the text. Uses only what both ipywidgets
7.7 and 8 have.
"""

from __future__ import annotations

from itertools import chain, count
from typing import Any

import ipywidgets as w

from ...errors import MoEColabError
from ...evaluation.perplexity import DOMAINS, evaluation_texts
from ...offload.read_text import record_text
from ...trace import Trace
from .controls import button, field, menu, slider
from .panel import shows_errors
from .trace import TraceWidget
from .trace_views import TRACE_VIEWS

LETTERS = 700  # of a text in the menu
OWN = "a text of your own"
GREETING = "Once upon a time there was a king who had no money at all, and a cook who had"
MOST_TOKENS, PROMPT = 256, 8  # the first 8 tokens are the prompt
LONGEST = 24  # letters of a text in its label


class Explorer(TraceWidget):
    """Shows all views of a trace: which experts are used, which follow which, and the hit rates and
    times with any cache, policy, prefetch or link. A text is recorded once; every change of a
    control replays it.

    model, tokenizer: from mc.load, to record texts; without them only the trace is shown. trace:
    shown first; None: the trace that comes with moe_colab (the small model over four kinds of
    text). A new recording is added to it, or replaces it if it is of another model. `trace` is the
    whole trace, `words` the control with the text; `record()` records it. Raises MoEColabError for
    a model without a tokenizer, or a trace without steps.
    """

    def __init__(self, model: Any = None, tokenizer: Any = None, trace: Trace | None = None):
        if model is not None and tokenizer is None:
            raise MoEColabError("the tokenizer is missing: use mc.Explorer(model, tokenizer).")
        self.model, self.tokenizer = model, tokenizer
        trace = Trace.load() if trace is None else trace
        reading = []
        if model is not None:
            texts = evaluation_texts(tokenizer)
            self.offered = {name: texts[domain][-1][:LETTERS] for name, domain in DOMAINS.items()}
            self.offered[OWN] = GREETING
            self.kind = menu("Read", [(name, name) for name in self.offered])
            words = {"value": self.offered[self.kind.value], "continuous_update": False}
            self.words = field(w.Textarea, "Words", "98%", rows=3, **words)
            self.length = slider("Tokens", 8, MOST_TOKENS, 96)
            self.more = slider("And write", 0, 64, 0)
            self.go = button("Read and record", "primary")
            self.kind.observe(self._offer, "value")
            self.go.on_click(self.record)
            reading = [(self.kind, self.go), (self.words,), (self.length, self.more)]
        super().__init__(trace, "moe-explorer", list(TRACE_VIEWS), reading)

    @shows_errors
    def record(self, _: Any = None) -> None:
        """Record the text of `words`, and show it."""
        if self.model is None:
            raise MoEColabError("there is no model: use mc.Explorer(model, tokenizer).")
        self.go.disabled = True
        self.say("reading…")
        try:
            mine = record_text(
                self.model,
                self.tokenizer,
                self.words.value,
                label=self._name(),
                prompt=PROMPT,
                tokens=self.length.value,
                more=self.more.value,
            )
        finally:
            self.go.disabled = False
        self.fit(Trace.merge(self.trace, mine) if self.trace.is_like(mine) else mine)
        if len(self.trace.labels) > 1:
            self.part.value = mine.labels[0]

    def _name(self) -> str:
        """The label of the next recording, which no part of the trace has yet."""
        words = " ".join(self.words.value.split())
        offered = self.words.value == self.offered[self.kind.value] and self.kind.value != OWN
        name = self.kind.value if offered else f"“{words[:LONGEST].strip()}”"
        names = chain([name], (f"{name} {number}" for number in count(2)))
        return next(one for one in names if one not in self.trace.labels)

    def _offer(self, change: Any) -> None:
        self.words.value = self.offered[change["new"]]
