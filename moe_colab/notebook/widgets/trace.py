"""Widgets that show a trace under other settings: another cache, another prefetch, another link.

Knows the views of trace_views; gives a control to each of their settings. Needs a trace, not the
model. Uses only what both ipywidgets 7.7 and 8 have.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import ipywidgets as w
import numpy as np

from ...cache.settings import SOURCES
from ...errors import MoEColabError
from ...planner.card import card, tiles
from ...trace import Trace
from ...units import parse_bytes
from .cached_replays import CachedReplays
from .controls import decimal, menu, slider, unseen
from .panel import Panel
from .trace_views import MOST_PICTURES, TRACE_VIEWS, Drawing, Selection, has_logits

ALL = "all of it"
POLICIES = (
    *(("LRU", "lru"), ("LFU", "lfu"), ("FIFO", "fifo"), ("random", "random")),
    *(("Belady, which knows the future", "optimal"), ("Belady with bypass", "optimal-bypass")),
)
NAMES = {"router_input": "its router's input", "layer_output": "its output"}
LOOKAHEADS = (("1 layer", 1), ("2 layers", 2))
EXPERT = 67.1  # MB: about one expert of Mixtral at the paper's 2 bits
PLACE = 20  # the token that is shown first
SMALL = 10.0  # MB: smaller experts load too fast to see


class TraceWidget(Panel):
    """A panel with some views of a trace, one of them shown. Every field of Selection is an
    attribute: the control for it. `view` is the control that selects the view. Raises MoEColabError
    for a trace without steps."""

    def __init__(
        self,
        trace: Trace,
        name: str,
        views: Sequence[str],
        above: Sequence[Sequence[w.Widget]] = (),
    ):
        self.view = menu("View", [(TRACE_VIEWS[key].name, key) for key in views])
        self.part, self.policy = menu("Text", []), menu("Policy", POLICIES)
        self.layer, self.slots = menu("Layer", []), slider("Slots (k)", 1, 1, 1)
        self.place, self.top_k = slider("Token", 0, 0, 0), slider("Top-k", 1, 1, 1)
        self.first, self.step = slider("From step", 0, 0, 0), slider("Step", 0, 0, 0)
        self.guesses = slider("Guesses", 0, 0, 0)
        self.lookahead = menu("Lookahead", LOOKAHEADS)
        self.source = menu("Guess from", [])
        self.link = decimal("Link, GB/s", 1, 64, 12)
        self.compute = decimal("Layer, ms", 0.1, 10, 1)
        self.expert = decimal("Expert, MB", 0.1, 1000, EXPERT)
        self.settings = {field: getattr(self, field) for field in Selection.__dataclass_fields__}
        used = {field for key in views for field in TRACE_VIEWS[key].depends_on}
        shown = [control for field, control in self.settings.items() if field in used]
        first_line = [self.view] if len(views) > 1 else []
        super().__init__(name, first_line, shown, above=above, pictures=MOST_PICTURES)
        self.trace: Trace | None = None
        self.fit(trace)

    def fit(self, trace: Trace) -> None:
        """Show this trace. The controls offer what it has; for a trace of the same model they keep
        their values where they can."""
        if not trace.steps:
            raise MoEColabError("this trace is empty: record a generation first.")
        fresh = self.trace is None or not self.trace.is_like(trace)
        self.trace, self.replays = trace, CachedReplays(trace)
        self._drawn: dict[w.Image, tuple] = {}
        self._titles: dict[w.Image, str] = {}
        experts, top_k = min(trace.experts), trace.routing.shape[2]
        decoded = np.flatnonzero(trace.forwards["phase"]).tolist()
        guessed = int(trace.guesses["place"].max(initial=-1)) + 1
        far = max(1, (trace.guesses["layer"] - trace.guesses["at"]).max(initial=1))
        own = max(trace.expert_bytes) / 1e6
        labels = [trace.labels[number] for number in np.unique(trace.forwards["label"])]
        sources = held_sources(trace) or trace.sources or SOURCES[:1]
        with self.quiet():
            parts = [(label, label) for label in labels if len(labels) > 1]
            offer(self.part, [*parts, (ALL, None)])
            offer(self.layer, [(str(layer), layer) for layer in range(trace.layers)])
            offer(self.lookahead, LOOKAHEADS[:far])
            offer(self.source, [(NAMES.get(source, source), source) for source in sources])
            for control, most, value in (
                (self.slots, experts, min(4, experts)),
                (self.place, len(trace.tokens) - 1, min(PLACE, len(trace.tokens) - 1)),
                (self.top_k, experts if has_logits(trace) else top_k, top_k),
                (self.first, trace.steps - 1, 0),
                (self.step, trace.steps - 1, decoded[min(7, len(decoded) - 1)] if decoded else 0),
                (self.guesses, guessed, min(2, guessed)),
            ):
                control.max = most
                if fresh:
                    control.value = value
            if fresh:
                self.expert.value = own if own >= SMALL else EXPERT
        self.update()

    @property
    def title(self) -> str:
        return f"{TRACE_VIEWS[self.view.value].name}: {self.trace.model}"

    @property
    def selected(self) -> Trace:
        """The trace of the selected part."""
        return self.replays.part(self.part.value)

    def show(self) -> None:
        view, trace = TRACE_VIEWS[self.view.value], self.selected
        with self.quiet():  # a part is shorter than the whole trace
            self.place.max = len(trace.tokens) - 1
            self.first.max = self.step.max = trace.steps - 1
        for field, control in self.settings.items():
            control.layout.display = "" if field in view.depends_on else "none"
        selection = Selection(**{name: control.value for name, control in self.settings.items()})
        shown = view.show(self.replays, selection)
        for image, drawing in zip_longest(self.pictures, shown.drawings):
            self.draw(image, drawing)
        if shown.tiles:
            self.facts.value = card(shown.title, tiles(shown.tiles), shown.remark)
        else:
            self.facts.value = unseen(self._titles[self.picture])

    def draw(self, image: w.Image, drawing: Drawing | None) -> None:
        """Draw it, unless the image shows it already."""
        image.layout.display = "none" if drawing is None else ""
        if drawing is not None and self._drawn.get(image) != drawing.key:
            picture = drawing.draw()
            image.value, self._titles[image] = picture.png(), picture.get_suptitle()
            self._drawn[image] = drawing.key


class RoutingWidget(TraceWidget):
    """Shows the experts that each token was routed to: a part of the text with the experts of one
    layer below every token, the router's probabilities for one token, and how evenly the layer's
    tokens are spread. `layer`, `place` (the token's index in the text) and `top_k` are controls.

    trace: mc.Trace.load(), or what mc.record has recorded; without logits in it, the router's
    probabilities are left out.
    """

    def __init__(self, trace: Trace):
        super().__init__(trace, "moe-routing", ["routing"])


class CacheWidget(TraceWidget):
    """Shows a replay with another cache: the experts in one layer's slots at each step, and the
    hits and loads of all layers together. `slots`, `policy`, `layer` and `first` (the first step
    shown) are controls.

    trace: mc.Trace.load(), or what mc.record has recorded.
    """

    def __init__(self, trace: Trace):
        super().__init__(trace, "moe-cache", ["residency"])


class SpeculationWidget(TraceWidget):
    """Shows the modelled time of one step, layer by layer, and what prefetching changes for all
    tokens. `guesses`, `lookahead`, `source`, `link` (GB/s), `compute` (ms per layer), `expert`
    (MB), `slots`, `policy` and `step` are controls.

    trace: a trace with guesses, such as mc.Trace.load(). expert: the size of an expert in bytes, a
    number or "67.1MB", in place of the trace's own; None: the trace's own, or about Mixtral's at 2
    bits where that is less than 10 MB.
    """

    def __init__(self, trace: Trace, expert: int | str | None = None):
        super().__init__(trace, "moe-speculation", ["time"])
        if expert is not None:
            self.expert.value = parse_bytes(expert) / 1e6


def offer(control: w.Dropdown, options: list[tuple[str, Any]]) -> None:
    """Give a menu new options; its value stays if it is among them."""
    before = control.value
    control.options = options
    values = [value for _, value in options]
    control.value = before if before in values and before is not None else values[0]


def held_sources(trace: Trace) -> list[str]:
    """The sources of which every part with decoded steps holds guesses."""
    label = trace.forwards["label"]
    parts = set(label[trace.forwards["phase"] > 0].tolist())
    steps_of = {name: trace.guesses_from(name)["step"] for name in trace.sources}
    return [name for name, steps in steps_of.items() if parts <= set(label[steps].tolist())]
