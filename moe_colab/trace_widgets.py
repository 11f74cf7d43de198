"""A trace under settings that can be moved: another cache, another way to guess, another link.

Knows tables, replays and timelines, who count, and `plots`, who draws; counts and draws nothing
itself. Needs a trace, not the model. Only what ipywidgets 7.7 has as well as 8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import ipywidgets as w
import numpy as np

from . import plots, tables
from .card import card, tiles
from .errors import MoEColabError
from .hardware import human, parse_bytes
from .panel import Panel, decimal, menu, slider
from .replays import Replay, replay
from .settings import SOURCES
from .timelines import Timeline, timeline
from .trace import Trace

if TYPE_CHECKING:
    import pandas

ALL = "all of it"
POLICIES = (
    *(("LRU", "lru"), ("LFU", "lfu"), ("FIFO", "fifo"), ("random", "random")),
    ("Belady, who knows what comes", "optimal"),
)
STEPS = 48  # of the strip
TOKENS = 48  # of the text
EXPERT = "67.1MB"  # about what an expert of Mixtral takes at the paper's 2 bits: 16 chunks of 4 MiB


class TraceWidget(Panel):
    """What both have: a trace's part, a widget beside the first controls. Raises MoEColabError for
    a trace without steps."""

    def __init__(self, trace: Trace, name: str, *lines: tuple[w.Widget, ...], pictures: int = 1):
        if not trace.steps:
            raise MoEColabError("there is nothing in this trace: record a generation first.")
        self.trace = trace
        labels = [label for label in trace.labels if len(trace.labels) > 1]
        self.part = menu("Text", [*((label, label) for label in labels), (ALL, None)])
        self._parts: dict[str | None, Trace] = {None: trace}
        super().__init__(name, (self.part, *lines[0]), *lines[1:], pictures=pictures)
        self.update()

    @property
    def chosen(self) -> Trace:
        """The part of the trace that is shown."""
        label = self.part.value
        if label not in self._parts:
            self._parts[label] = self.trace.only(label)
        return self._parts[label]


class RoutingWidget(TraceWidget):
    """Where each token goes: a stretch of text with the experts of one layer below every token,
    what the router said to one of them, and how evenly the layer's tokens are spread. `layer`,
    `place` (the token, from the text's beginning) and `top_k` are widgets.

    trace: mc.Trace.load(), or what mc.record has recorded; of one without logits, what the routers
    said is left out.
    """

    def __init__(self, trace: Trace):
        self.layer = menu("Layer", [(str(layer), layer) for layer in range(trace.layers)])
        self.place = slider("Token", 0, max(0, len(trace.tokens) - 1), min(20, len(trace.tokens)))
        self.heard = not np.isnan(trace.logits).any()
        k = trace.routing.shape[2]
        self.top_k = slider("Top-k", 1, min(trace.experts) if self.heard else k, k)
        self._drawn: dict[int, tuple] = {}
        super().__init__(trace, "moe-routing", (self.layer,), (self.place, self.top_k), pictures=3)

    def show(self) -> None:
        trace, layer, top_k = self.chosen, self.layer.value, self.top_k.value
        self.place.max = len(trace.tokens) - 1
        place = min(self.place.value, self.place.max)
        asked = (self.part.value, layer, top_k)
        first = place - place % TOKENS
        strip = tables.tokens(trace, layer, first, TOKENS, top_k)
        word = strip[strip["place"] == place]["text"].iloc[0]
        self.draw(0, (*asked, place), lambda: plots.tokens(strip, place))
        if self.heard:
            said = tables.router(trace, place, layer, top_k)
            self.draw(1, (*asked, place), lambda: plots.router(said, word))
        spread = tables.activations(trace, top_k=top_k)
        self.draw(2, asked, lambda: plots.shares(spread, layer))
        spread = spread[spread["layer"] == layer].set_index("expert")
        own = strip[strip["place"] == place]
        self.facts.value = card(f"Token {place}", tiles(self.tiles(own, spread)), FIRST_CHOICES)

    def draw(self, number: int, asked: tuple, picture: Callable[[], plots.Picture]) -> None:
        """What was drawn for the same settings stays."""
        if self._drawn.get(number) != asked:
            self.pictures[number].value = picture().png()
            self._drawn[number] = asked

    def tiles(self, own: pandas.DataFrame, spread: pandas.DataFrame) -> list[tuple[str, str, str]]:
        experts = [expert for expert in own["expert"] if expert >= 0]
        if not experts:
            return [("this layer sends it", "nowhere", "to no expert")]
        first, even = experts[0], spread["uniform"].iloc[0]
        facts = [
            ("goes to", ", ".join(map(str, experts)), f"of {len(spread)} experts"),
            (
                f"of this text, expert {first} gets",
                f"{spread['share'][first]:.0%}",
                f"of the tokens; an even share is {even:.1%}",
            ),
        ]
        if self.heard:
            odds = own["probability"].sum()
            facts.insert(1, ("the router gives them", f"{odds:.0%}", "of its probability"))
        return facts


class CacheWidget(TraceWidget):
    """A layer's slots under another cache: who lay in them, and what all layers' caches together
    have hit and loaded, counted. `slots`, `policy`, `layer` and `first` (the first step shown) are
    widgets.

    trace: mc.Trace.load(), or what mc.record has recorded.
    """

    def __init__(self, trace: Trace):
        experts = min(trace.experts)
        self.slots = slider("Slots (k)", 1, experts, min(4, experts))
        self.policy = menu("Policy", POLICIES)
        self.layer = menu("Layer", [(str(layer), layer) for layer in range(trace.layers)])
        self.first = slider("From step", 0, max(0, trace.steps - 1), 0)
        super().__init__(trace, "moe-cache", (self.policy, self.layer), (self.slots, self.first))

    def show(self) -> None:
        trace, policy, slots = self.chosen, self.policy.value, self.slots.value
        first = min(self.first.value, trace.steps - 1)
        table = tables.residency(trace, self.layer.value, policy, slots)
        self.picture.value = plots.residency(table, first, STEPS).png()
        self.facts.value = card("All layers", tiles(self.tiles()), COUNTED)

    def counts(self, **setting) -> Replay:
        """What is chosen, or with another setting."""
        return replay(
            self.chosen, **{"policy": self.policy.value, "slots": self.slots.value, **setting}
        )

    def tiles(self) -> list[tuple[str, str, str]]:
        now, most = self.counts(), self.slots.max
        trace, slots = self.chosen, self.slots.value
        decoded = sum(f["rows"] * f["length"] for f in trace.forwards if f["phase"])
        facts = [
            ("hit rate, decoded tokens", f"{now.decode.hit_rate:.1%}", f"{now.hits:,} hits in all"),
            (
                "loaded for a token",
                human(now.decode.bytes_loaded / max(1, decoded)),
                f"{now.decode.loads / max(1, decoded):.2f} experts",
            ),
        ]
        if slots < most:
            more = self.counts(slots=slots + 1).decode.hit_rate
            room = human(sum(trace.expert_bytes))
            told = f"{100 * (more - now.decode.hit_rate):+.1f} points"
            facts.append(("a slot more in every layer", told, f"of hit rate, for {room} of memory"))
        best = self.counts(policy="optimal").decode.hit_rate
        facts.append(("the best with these slots", f"{best:.1%}", "Belady, who knows what comes"))
        return facts


class SpeculationWidget(TraceWidget):
    """One token on its way through the layers, in modelled time, and what guessing has brought to
    all of them. `guesses`, `lookahead`, `source`, `link` (GB/s), `compute` (ms a layer), `slots`
    and `step` are widgets.

    trace: one with guesses, such as mc.Trace.load(). expert: bytes that an expert has here, a
    number or "67.1MB", as if those of the trace's model were so large; about Mixtral's at 2 bits if
    not said.
    """

    def __init__(self, trace: Trace, expert: int | str = EXPERT):
        trace = replace(trace, expert_bytes=(parse_bytes(expert),) * trace.layers)
        held = int(trace.guesses["place"].max(initial=-1)) + 1
        self.guesses = slider("Guesses", 0, held, min(2, held))
        self.lookahead = menu("Lookahead", [("1 layer", 1), ("2 layers", 2)])
        names = {"router_input": "its router's input", "layer_output": "its output"}
        sources = trace.sources or SOURCES[:1]
        self.source = menu("Guess from", [(names.get(name, name), name) for name in sources])
        self.link = decimal("Link, GB/s", 1, 64, 12)
        self.compute = decimal("Layer, ms", 0.1, 10, 1)
        self.slots = slider("Slots (k)", 1, min(trace.experts), min(4, *trace.experts))
        decoded = [step for step, forward in enumerate(trace.forwards) if forward["phase"]]
        self.step = slider(
            "Step", 0, trace.steps - 1, decoded[min(7, len(decoded) - 1)] if decoded else 0
        )
        super().__init__(
            trace,
            "moe-speculation",
            (self.guesses, self.lookahead),
            (self.source, self.slots),
            (self.link, self.compute),
            (self.step,),
        )

    def show(self) -> None:
        run, step = self.run(), min(self.step.value, self.chosen.steps - 1)
        word = tables.word(self.chosen, step)
        self.picture.value = plots.timeline(run.frame(), step, word).png()
        self.facts.value = card("All decoded tokens", tiles(self.tiles(run)), MODELLED)

    def run(self, **setting) -> Timeline:
        """What is chosen, or with another setting."""
        chosen = {
            **{"link": self.link.value * 1e9, "compute": self.compute.value / 1e3},
            **{"slots": self.slots.value, "speculate": self.guesses.value},
            **{"lookahead": self.lookahead.value, "guess_from": self.source.value},
        }
        return timeline(self.chosen, **{**chosen, **setting})

    def tiles(self, run: Timeline) -> list[tuple[str, str, str]]:
        tokens = max(1, run.decode.tokens)
        plain = self.run(speculate=0) if self.guesses.value else run
        waits, before = (1e3 * one.decode.stall_seconds / tokens for one in (run, plain))
        moved, least = (one.decode.bytes / tokens for one in (run, plain))
        wasted = run.stats.decode.bytes_wasted / tokens
        return [
            ("tokens a second", f"{run.tokens_per_second:.1f}", f"{run.stall_share:.0%} waiting"),
            ("waiting for a token", f"{waits:.1f} ms", f"{before:.1f} ms without guesses"),
            ("moved for a token", human(moved), f"{human(least)} without guesses"),
            ("of that, wasted", human(wasted), "wrong guesses"),
        ]


FIRST_CHOICES = (
    "Fewer than the model chose: the router's first choices. More: those its logits name next, "
    "as if this layer alone had been asked for more."
)
COUNTED = "Counted by mc.replay, from empty slots: what a live model would count."
MODELLED = "Modelled by mc.timeline for such a link and such layers; not timed on this machine."
