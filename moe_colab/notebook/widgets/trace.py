"""A trace under settings that can be moved: another cache, another way to guess, another link.

Knows `looks`, what each shows and which settings it minds; shows them, with a control for each.
Needs a trace, not the model. Only what ipywidgets 7.7 has as well as 8.
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
from .controls import decimal, menu, slider
from .panel import Panel
from .trace_views import MOST_PICTURES, TRACE_VIEWS, Counted, Drawing, Selection, has_logits

ALL = "all of it"
POLICIES = (
    *(("LRU", "lru"), ("LFU", "lfu"), ("FIFO", "fifo"), ("random", "random")),
    *(("Belady, who knows what comes", "optimal"), ("Belady with bypass", "optimal-bypass")),
)
NAMES = {"router_input": "its router's input", "layer_output": "its output"}
AHEAD = (("1 layer", 1), ("2 layers", 2))
EXPERT = 67.1  # MB, about what an expert of Mixtral takes at the paper's 2 bits
PLACE = 20  # of the token that is shown first
SMALL = 10.0  # MB: experts below it would be moved in no time


class TraceWidget(Panel):
    """Some looks at a trace, one of them shown. Every field of looks.Chosen is an attribute, the
    control for it; `look` says which look is shown. Raises MoEColabError for a trace without
    steps."""

    def __init__(
        self,
        trace: Trace,
        name: str,
        looks: Sequence[str],
        above: Sequence[Sequence[w.Widget]] = (),
    ):
        self.look = menu("Look at", [(TRACE_VIEWS[key].name, key) for key in looks])
        self.part, self.policy = menu("Text", []), menu("Policy", POLICIES)
        self.layer, self.slots = menu("Layer", []), slider("Slots (k)", 1, 1, 1)
        self.place, self.top_k = slider("Token", 0, 0, 0), slider("Top-k", 1, 1, 1)
        self.first, self.step = slider("From step", 0, 0, 0), slider("Step", 0, 0, 0)
        self.guesses = slider("Guesses", 0, 0, 0)
        self.lookahead = menu("Lookahead", AHEAD)
        self.source = menu("Guess from", [])
        self.link = decimal("Link, GB/s", 1, 64, 12)
        self.compute = decimal("Layer, ms", 0.1, 10, 1)
        self.expert = decimal("Expert, MB", 0.1, 1000, EXPERT)
        self.settings = {field: getattr(self, field) for field in Selection.__dataclass_fields__}
        minded = {field for key in looks for field in TRACE_VIEWS[key].depends_on}
        shown = [control for field, control in self.settings.items() if field in minded]
        choose = [self.look] if len(looks) > 1 else []
        super().__init__(name, choose, shown, above=above, pictures=MOST_PICTURES)
        self.trace: Trace | None = None
        self.fit(trace)

    def fit(self, trace: Trace) -> None:
        """Show this trace: the controls offer what it has; of one of the same model they keep what
        they can."""
        if not trace.steps:
            raise MoEColabError("there is nothing in this trace: record a generation first.")
        fresh = self.trace is None or not self.trace.is_like(trace)
        self.trace, self.counted = trace, Counted(trace)
        self._drawn: dict[w.Image, tuple] = {}
        self._titles: dict[w.Image, str] = {}
        experts, top_k = min(trace.experts), trace.routing.shape[2]
        decoded = np.flatnonzero(trace.forwards["phase"]).tolist()
        held = int(trace.guesses["place"].max(initial=-1)) + 1
        far = max(1, (trace.guesses["layer"] - trace.guesses["at"]).max(initial=1))
        own = max(trace.expert_bytes) / 1e6
        labels = [trace.labels[number] for number in np.unique(trace.forwards["label"])]
        sources = held_sources(trace) or trace.sources or SOURCES[:1]
        with self.quiet():
            parts = [(label, label) for label in labels if len(labels) > 1]
            offer(self.part, [*parts, (ALL, None)])
            offer(self.layer, [(str(layer), layer) for layer in range(trace.layers)])
            offer(self.lookahead, AHEAD[:far])
            offer(self.source, [(NAMES.get(source, source), source) for source in sources])
            for control, most, value in (
                (self.slots, experts, min(4, experts)),
                (self.place, len(trace.tokens) - 1, min(PLACE, len(trace.tokens) - 1)),
                (self.top_k, experts if has_logits(trace) else top_k, top_k),
                (self.first, trace.steps - 1, 0),
                (self.step, trace.steps - 1, decoded[min(7, len(decoded) - 1)] if decoded else 0),
                (self.guesses, held, min(2, held)),
            ):
                control.max = most
                if fresh:
                    control.value = value
            if fresh:
                self.expert.value = own if own >= SMALL else EXPERT
        self.update()

    @property
    def chosen(self) -> Trace:
        """The part of the trace that is shown."""
        return self.counted.part(self.part.value)

    def show(self) -> None:
        look, trace = TRACE_VIEWS[self.look.value], self.chosen
        with self.quiet():  # a part is shorter than the whole
            self.place.max = len(trace.tokens) - 1
            self.first.max = self.step.max = trace.steps - 1
        for field, control in self.settings.items():
            control.layout.display = "" if field in look.depends_on else "none"
        seen = look.see(self.counted, Selection(**{f: c.value for f, c in self.settings.items()}))
        for image, drawing in zip_longest(self.pictures, seen.drawings):
            self.draw(image, drawing)
        if seen.tiles:
            self.facts.value = card(seen.title, tiles(seen.tiles), seen.remark)
        else:  # for who cannot see the picture
            self.facts.value = card(self._titles[self.picture], "", "")

    def draw(self, image: w.Image, drawing: Drawing | None) -> None:
        """What was drawn of the same things stays."""
        image.layout.display = "none" if drawing is None else ""
        if drawing is not None and self._drawn.get(image) != drawing.of:
            picture = drawing.draw()
            image.value, self._titles[image] = picture.png(), picture.get_suptitle()
            self._drawn[image] = drawing.of


class RoutingWidget(TraceWidget):
    """Where each token goes: a stretch of text with the experts of one layer below every token,
    what the router said to one of them, and how evenly the layer's tokens are spread. `layer`,
    `place` (the token, from the text's beginning) and `top_k` are widgets.

    trace: mc.Trace.load(), or what mc.record has recorded; of one without logits, what the routers
    said is left out.
    """

    def __init__(self, trace: Trace):
        super().__init__(trace, "moe-routing", ["routing"])


class CacheWidget(TraceWidget):
    """A layer's slots under another cache: who lay in them, and what all layers' caches together
    have hit and loaded, counted. `slots`, `policy`, `layer` and `first` (the first step shown) are
    widgets.

    trace: mc.Trace.load(), or what mc.record has recorded.
    """

    def __init__(self, trace: Trace):
        super().__init__(trace, "moe-cache", ["residency"])


class SpeculationWidget(TraceWidget):
    """One token on its way through the layers, in modelled time, and what guessing has brought to
    all of them. `guesses`, `lookahead`, `source`, `link` (GB/s), `compute` (ms a layer), `expert`
    (MB), `slots`, `policy` and `step` are widgets.

    trace: one with guesses, such as mc.Trace.load(). expert: bytes that an expert has here, a
    number or "67.1MB", as if those of the trace's model were so large; if not said, its own, and
    for experts of less than 10 MB about Mixtral's at 2 bits.
    """

    def __init__(self, trace: Trace, expert: int | str | None = None):
        super().__init__(trace, "moe-speculation", ["time"])
        if expert is not None:
            self.expert.value = parse_bytes(expert) / 1e6


def offer(control: w.Dropdown, options: list[tuple[str, Any]]) -> None:
    """Other options; what was chosen stays, if it is among them."""
    before = control.value
    control.options = options
    values = [value for _, value in options]
    control.value = before if before in values and before is not None else values[0]


def held_sources(trace: Trace) -> list[str]:
    """Those from which every part with decoded steps holds guesses."""
    label, guesses = trace.forwards["label"], trace.guesses
    parts = set(label[trace.forwards["phase"] > 0].tolist())
    return [
        name
        for number, name in enumerate(trace.sources)
        if parts <= set(label[guesses["step"][guesses["source"] == number]].tolist())
    ]
