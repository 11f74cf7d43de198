"""Ways to look at a trace: each a figure, the numbers beside it, and the settings that it minds.

Knows tables and `counted`, who count, and `plots`, who draws; counts and draws nothing itself, and
knows no widgets: the settings are plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any

from ... import plots
from ...analysis import tables
from ...analysis.replay import Replay, replay
from ...analysis.tables import hit_rates
from ...analysis.timeline import Timeline, timeline
from ...cache.policies import PolicySpec
from ...cache.settings import SOURCES
from ...errors import MoEColabError
from ...trace import Trace
from ...units import human

MOST = 64  # results that are kept

if TYPE_CHECKING:
    import pandas

STEPS = TOKENS = 48  # of a strip
MOST_PICTURES = 3
BOUNDS = ("lru", "random", "optimal", "optimal-bypass")  # drawn beside the chosen policy
COUNTED = "Counted by mc.replay, from empty slots: what a live model would count."
FIRST_CHOICES = (
    "Fewer than the model chose: the router's first choices. More: those its logits name next, "
    "as if this layer alone had been asked for more."
)
MODELLED = "Modelled by mc.timeline for such a link and such layers; not timed on this machine."
Tiles = Sequence[tuple[str, str, str]]
"""(what, number, remark)."""


@dataclass(frozen=True)
class Selection:
    """What is looked at. part: a label of the trace, None for all. layer: of the MoE layers. place:
    of a token. top_k: experts of a token. slots: a layer's. first: the first step that is shown.
    guesses: of each layer. link: GB/s. compute: ms of a layer. expert: MB, as if the trace's were
    so large. step: whose time is shown."""

    part: str | None = None
    layer: int = 0
    place: int = 0
    top_k: int = 2
    policy: PolicySpec = "lru"
    slots: int = 4
    first: int = 0
    guesses: int = 2
    lookahead: int = 1
    source: str = SOURCES[0]
    link: float = 12.0
    compute: float = 1.0
    expert: float = 67.1
    step: int = 0


@dataclass(frozen=True)
class Drawing:
    """A picture that can be drawn, and all that it depends on."""

    of: tuple
    draw: Callable[[], plots.Picture]


@dataclass(frozen=True)
class Shown:
    """Pictures, and the numbers below them, under a title and above a remark."""

    drawings: Sequence[Drawing]
    tiles: Tiles = ()
    title: str = ""
    remark: str = ""


@dataclass(frozen=True)
class TraceView:
    """minds: the fields of Chosen that it depends on."""

    name: str
    depends_on: tuple[str, ...]
    see: Callable[[Counted, Selection], Shown]


# ---------------------------------------------------------------------- routing
def activity(counted: Counted, chosen: Selection) -> Shown:
    trace = counted.part(chosen.part)
    return Shown([drawing(activity, chosen, lambda: plots.activations(tables.activations(trace)))])


def routing(counted: Counted, chosen: Selection) -> Shown:
    trace, place = counted.part(chosen.part), chosen.place
    layer, top_k = chosen.layer, chosen.top_k
    strip = tables.tokens(trace, layer, place - place % TOKENS, TOKENS, top_k)
    spread = tables.activations(trace, top_k=top_k)
    own = strip[strip["place"] == place]
    word = own["text"].iloc[0]
    asked = (chosen.part, layer, top_k)
    drawings = [Drawing(("tokens", *asked, place), lambda: plots.tokens(strip, place))]
    if has_logits(trace):
        said = tables.router(trace, place, layer, top_k)
        drawings.append(Drawing(("router", *asked, place), lambda: plots.router(said, word)))
    drawings.append(Drawing(("shares", *asked), lambda: plots.shares(spread, layer)))
    here = spread[spread["layer"] == layer].set_index("expert")
    return Shown(drawings, routing_tiles(own, here), f"Token {place}", FIRST_CHOICES)


def routing_tiles(own: pandas.DataFrame, spread: pandas.DataFrame) -> Tiles:
    """Of one token, and of all that its layer was shown."""
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
    odds = own["probability"].sum(skipna=False)
    if odds == odds:  # known
        facts.insert(1, ("the router gives them", f"{odds:.0%}", "of its probability"))
    return facts


def has_logits(trace: Trace) -> bool:
    """Does it hold what all its routers said?"""
    return all(map(trace.holds_logits, range(trace.layers)))


def domains(counted: Counted, chosen: Selection) -> Shown:
    trace, layer = counted.trace, chosen.layer
    return Shown(
        [
            drawing(
                domains, chosen, lambda: plots.specialisation(tables.specialisation(trace, layer))
            )
        ]
    )


def transitions(counted: Counted, chosen: Selection) -> Shown:
    trace = counted.part(chosen.part)
    if trace.layers < 2:
        raise MoEColabError("this model has one MoE layer: no other one follows it.")
    layer = min(chosen.layer, trace.layers - 2)  # the last one leads nowhere
    return Shown(
        [drawing(transitions, chosen, lambda: plots.transitions(tables.transitions(trace, layer)))]
    )


def drawing(look: Callable, chosen: Selection, draw: Callable[[], plots.Picture]) -> Drawing:
    """Of all that was chosen."""
    return Drawing((look, *astuple(chosen)), draw)


# ---------------------------------------------------------------------- the cache
def slots(counted: Counted, chosen: Selection) -> Shown:
    policies = dict.fromkeys([*BOUNDS, chosen.policy])
    rows = [row for policy in policies for row in counted.rates(chosen.part, policy)]
    one = drawing(slots, chosen, lambda: plots.hit_rates(rows, chosen.slots))
    return Shown([one], cache_tiles(counted, chosen), "All layers", COUNTED)


def residency(counted: Counted, chosen: Selection) -> Shown:
    trace = counted.part(chosen.part)
    table = tables.residency(trace, chosen.layer, chosen.policy, chosen.slots)
    one = drawing(residency, chosen, lambda: plots.residency(table, chosen.first, STEPS))
    return Shown([one], cache_tiles(counted, chosen), "All layers", COUNTED)


def cache_tiles(counted: Counted, chosen: Selection) -> Tiles:
    """What all layers' caches hit and load, and what more slots or Belady would bring."""
    trace, policy, slots = counted.part(chosen.part), chosen.policy, chosen.slots
    now = counted.replay(chosen.part, policy, slots)
    decoded = max(1, sum(f["rows"] * f["length"] for f in trace.forwards if f["phase"]))
    facts = [
        ("hit rate, decoded tokens", rate(now), f"{now.hits:,} hits in all"),
        (
            "loaded for a token",
            human(now.decode.bytes_loaded / decoded),
            f"{now.decode.loads / decoded:.2f} experts",
        ),
    ]
    if slots < min(trace.experts) and now.decode.accesses:
        more = counted.replay(chosen.part, policy, slots + 1).decode.hit_rate
        told = f"{100 * (more - now.decode.hit_rate):+.1f} points"
        room = human(sum(trace.expert_bytes))
        facts.append(("a slot more in every layer", told, f"of hit rate, for {room} of memory"))
    best = rate(counted.replay(chosen.part, "optimal", slots))
    facts.append(("the best with these slots", best, "Belady, who knows what comes"))
    return facts


def rate(counts: Replay) -> str:
    """Of the decoded tokens, where there are any."""
    return f"{counts.decode.hit_rate:.1%}" if counts.decode.accesses else "–"


# ---------------------------------------------------------------------- time
def time(counted: Counted, chosen: Selection) -> Shown:
    trace, run = counted.part(chosen.part), model_time(counted, chosen)
    word = tables.word(trace, chosen.step)
    one = drawing(time, chosen, lambda: plots.timeline(run.during(chosen.step), chosen.step, word))
    plain = model_time(counted, replace(chosen, guesses=0)) if chosen.guesses else run
    return Shown([one], time_tiles(run, plain), "All decoded tokens", MODELLED)


def model_time(counted: Counted, chosen: Selection) -> Timeline:
    """The timeline of the part, its experts as large as is chosen."""
    ahead = (chosen.guesses, chosen.lookahead, chosen.source)
    return counted.timeline(
        *(chosen.part, chosen.expert, chosen.policy, chosen.slots, chosen.link, chosen.compute),
        *(ahead if chosen.guesses else (0, 1, SOURCES[0])),  # without guesses the rest is the same
    )


def time_tiles(run: Timeline, plain: Timeline) -> Tiles:
    """What guessing has brought, beside a run without it."""
    tokens = max(1, run.decode.tokens)
    waits, before = (1e3 * one.decode.stall_seconds / tokens for one in (run, plain))
    moved, least = (one.decode.bytes / tokens for one in (run, plain))
    wasted = run.stats.decode.bytes_wasted / tokens
    return [
        ("tokens a second", f"{run.tokens_per_second:.1f}", f"{run.stall_share:.0%} waiting"),
        ("waiting for a token", f"{waits:.1f} ms", f"{before:.1f} ms without guesses"),
        ("moved for a token", human(moved), f"{human(least)} without guesses"),
        ("of that, wasted", human(wasted), "wrong guesses"),
    ]


CACHE = ("part", "policy", "slots")
TRACE_VIEWS = {
    "activity": TraceView("Who is busy", ("part",), activity),
    "routing": TraceView("Where tokens go", ("part", "layer", "place", "top_k"), routing),
    "domains": TraceView("Topics", ("layer",), domains),
    "transitions": TraceView("From layer to layer", ("part", "layer"), transitions),
    "slots": TraceView("Hit rates", CACHE, slots),
    "residency": TraceView("Who has a slot", (*CACHE, "layer", "first"), residency),
    "time": TraceView(
        "Time",
        (*CACHE, "guesses", "lookahead", "source", "link", "compute", "expert", "step"),
        time,
    ),
}


class Counted:
    """A trace and its parts, each by its label (None: all of it)."""

    def __init__(self, trace: Trace):
        self.trace = trace
        self._kept: dict[tuple, Any] = {}

    def part(self, label: str | None) -> Trace:
        return self.trace if label is None else self._once(self.trace.only, label)

    def rates(self, label: str | None, policy: PolicySpec) -> list[dict]:
        """The hit rates of one policy with every number of slots: rows of tables.hit_rates."""
        return self._once(self._rates, label, policy)

    def replay(self, label: str | None, policy: PolicySpec, slots: int) -> Replay:
        return self._once(self._replay, label, policy, slots)

    def timeline(
        self,
        label: str | None,
        expert: float,
        policy: PolicySpec,
        slots: int,
        link: float,
        compute: float,
        guesses: int,
        lookahead: int,
        source: str,
    ) -> Timeline:
        """expert: MB; link: GB/s; compute: ms of a layer."""
        large = self._once(self._sized, label, round(1e6 * expert))
        speed = (link * 1e9, compute / 1e3)
        return self._once(_timeline, large, *speed, policy, slots, guesses, lookahead, source)

    # ------------------------------------------------------------------ inside
    def _rates(self, label: str | None, policy: PolicySpec) -> list[dict]:
        return hit_rates(self.part(label), [policy]).to_dict("records")

    def _replay(self, label: str | None, policy: PolicySpec, slots: int) -> Replay:
        return replay(self.part(label), policy, slots)

    def _sized(self, label: str | None, nbytes: int) -> Trace:
        return self.part(label).sized(nbytes)

    def _once(self, count: Callable, *of: Hashable) -> Any:
        """count(*of), or what it was when it was counted before."""
        key = (count, *of)
        if key not in self._kept:
            if len(self._kept) >= MOST:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = count(*of)
        return self._kept[key]


def _timeline(trace, link, compute, policy, slots, guesses, lookahead, source) -> Timeline:
    return timeline(
        trace, link, compute, policy, slots,
        speculate=guesses, lookahead=lookahead, guess_from=source,
    )  # fmt: skip
