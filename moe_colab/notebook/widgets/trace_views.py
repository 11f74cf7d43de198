"""Views of a trace: each is a figure, numbers below it, and the settings that both depend on.

Knows replays, tables and plots; knows nothing of widgets: the settings are plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ... import plots
from ...analysis import tables
from ...analysis.replay import Replay
from ...analysis.timeline import Timeline
from ...cache.policies import PolicySpec
from ...cache.settings import SOURCES
from ...errors import MoEColabError
from ...trace import Trace
from ...units import human
from .cached_replays import CachedReplays

if TYPE_CHECKING:
    import pandas

STEPS = TOKENS = 48  # in one figure
MOST_PICTURES = 3
BOUNDS = ("lru", "random", "optimal", "optimal-bypass")  # drawn beside the selected policy
COUNTED = "Counted by mc.replay, which starts with empty slots; a live model counts the same."
FIRST_CHOICES = (
    "With a smaller top-k than the model's, these are the router's first choices. With a larger "
    "one, the experts with the next highest logits are added, in this layer only."
)
MODELLED = "Modelled by mc.timeline for this link and these layers; not timed on this machine."
Tiles = Sequence[tuple[str, str, str]]
"""(label, number, remark) of each."""


@dataclass(frozen=True)
class Selection:
    """The settings of all views. part: a label of the trace, None for the whole trace. layer: an
    index among the MoE layers. place: the index of a token. top_k: experts per token. slots: per
    layer. first: the first step that the figure shows. guesses: experts guessed per layer. link:
    GB/s. compute: ms per layer. expert: MB per expert, in place of the trace's own. step: the step
    whose time is shown."""

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
    """A picture to be drawn, and the values that it depends on."""

    key: tuple
    draw: Callable[[], plots.Picture]


@dataclass(frozen=True)
class Shown:
    """What a view shows: pictures, and below them a title, numbers and a remark."""

    drawings: Sequence[Drawing]
    tiles: Tiles = ()
    title: str = ""
    remark: str = ""


@dataclass(frozen=True)
class TraceView:
    """One view. depends_on: the fields of Selection that change it."""

    name: str
    depends_on: tuple[str, ...]
    show: Callable[[CachedReplays, Selection], Shown]


# ---------------------------------------------------------------------- routing
def activity(replays: CachedReplays, selection: Selection) -> Shown:
    table = partial(tables.activations, replays.part(selection.part))
    return Shown([drawing(activity, selection, lambda: plots.activations(table()))])


def routing(replays: CachedReplays, selection: Selection) -> Shown:
    trace, place = replays.part(selection.part), selection.place
    layer, top_k = selection.layer, selection.top_k
    strip = tables.tokens(trace, layer, place - place % TOKENS, TOKENS, top_k)
    spread = tables.activations(trace, top_k=top_k)
    own = strip[strip["place"] == place]
    word = own["text"].iloc[0]
    key = (selection.part, layer, top_k)
    drawings = [Drawing(("tokens", *key, place), lambda: plots.tokens(strip, place))]
    if has_logits(trace):
        choices = tables.router(trace, place, layer, top_k)
        drawings.append(Drawing(("router", *key, place), lambda: plots.router(choices, word)))
    drawings.append(Drawing(("shares", *key), lambda: plots.shares(spread, layer)))
    here = spread[spread["layer"] == layer].set_index("expert")
    return Shown(drawings, routing_tiles(own, here), f"Token {place}", FIRST_CHOICES)


def routing_tiles(own: pandas.DataFrame, spread: pandas.DataFrame) -> Tiles:
    """The experts of one token, and how often its layer sends tokens to the first of them."""
    experts = [expert for expert in own["expert"] if expert >= 0]
    if not experts:
        return [("routed to", "no expert", "in this layer")]
    first, even = experts[0], spread["uniform"].iloc[0]
    facts = [
        ("routed to", ", ".join(map(str, experts)), f"of {len(spread)} experts"),
        (
            f"expert {first} gets",
            f"{spread['share'][first]:.0%}",
            f"of this text's tokens; an even share is {even:.1%}",
        ),
    ]
    odds = own["probability"].sum(skipna=False)
    if odds == odds:  # known
        facts.insert(1, ("router probability", f"{odds:.0%}", "of these experts together"))
    return facts


def has_logits(trace: Trace) -> bool:
    """Whether the trace holds the router logits of every layer."""
    return all(map(trace.holds_logits, range(trace.layers)))


def domains(replays: CachedReplays, selection: Selection) -> Shown:
    table = partial(tables.specialisation, replays.trace, selection.layer)
    return Shown([drawing(domains, selection, lambda: plots.specialisation(table()))])


def transitions(replays: CachedReplays, selection: Selection) -> Shown:
    trace = replays.part(selection.part)
    if trace.layers < 2:
        raise MoEColabError("this model has one MoE layer, and transitions need two.")
    layer = min(selection.layer, trace.layers - 2)  # the last layer has no next one
    table = partial(tables.transitions, trace, layer)
    return Shown([drawing(transitions, selection, lambda: plots.transitions(table()))])


def drawing(view: Callable, selection: Selection, draw: Callable[[], plots.Picture]) -> Drawing:
    """A drawing that depends on every setting."""
    return Drawing((view, *astuple(selection)), draw)


# ---------------------------------------------------------------------- the cache
def slots(replays: CachedReplays, selection: Selection) -> Shown:
    policies = dict.fromkeys([*BOUNDS, selection.policy])
    rows = [row for policy in policies for row in replays.rates(selection.part, policy)]
    one = drawing(slots, selection, lambda: plots.hit_rates(rows, selection.slots))
    return Shown([one], cache_tiles(replays, selection), "All layers", COUNTED)


def residency(replays: CachedReplays, selection: Selection) -> Shown:
    trace = replays.part(selection.part)
    table = tables.residency(trace, selection.layer, selection.policy, selection.slots)
    one = drawing(residency, selection, lambda: plots.residency(table, selection.first, STEPS))
    return Shown([one], cache_tiles(replays, selection), "All layers", COUNTED)


def cache_tiles(replays: CachedReplays, selection: Selection) -> Tiles:
    """Hit rate and loads over all layers, and the hit rates with one slot more and with Belady."""
    trace, policy, slots = replays.part(selection.part), selection.policy, selection.slots
    now = replays.replay(selection.part, policy, slots)
    decoded = max(1, sum(f["rows"] * f["length"] for f in trace.forwards if f["phase"]))
    facts = [
        ("hit rate, decoded tokens", rate(now), f"{now.hits:,} hits in all"),
        (
            "loaded per token",
            human(now.decode.bytes_loaded / decoded),
            f"{now.decode.loads / decoded:.2f} experts",
        ),
    ]
    if slots < min(trace.experts) and now.decode.accesses:
        more = replays.replay(selection.part, policy, slots + 1).decode.hit_rate
        gain = f"{100 * (more - now.decode.hit_rate):+.1f} points"
        memory = human(sum(trace.expert_bytes))
        facts.append(("one more slot per layer", gain, f"of hit rate, for {memory} of memory"))
    best = rate(replays.replay(selection.part, "optimal", slots))
    facts.append(("best possible with these slots", best, "Belady, which knows the future"))
    return facts


def rate(counts: Replay) -> str:
    """The hit rate of decoded tokens as text, a dash where there are none."""
    return f"{counts.decode.hit_rate:.1%}" if counts.decode.accesses else "–"


# ---------------------------------------------------------------------- time
def time(replays: CachedReplays, selection: Selection) -> Shown:
    trace, run = replays.part(selection.part), model_time(replays, selection)
    step = selection.step
    word = tables.word(trace, step)
    one = drawing(time, selection, lambda: plots.timeline(run.during(step), step, word))
    plain = model_time(replays, replace(selection, guesses=0)) if selection.guesses else run
    return Shown([one], time_tiles(run, plain), "All decoded tokens", MODELLED)


def model_time(replays: CachedReplays, selection: Selection) -> Timeline:
    """The timeline of the selected part, link and size of an expert."""
    now, guessing = selection, (selection.guesses, selection.lookahead, selection.source)
    if not now.guesses:
        guessing = (0, 1, SOURCES[0])  # without guesses the others change nothing
    return replays.timeline(
        *(now.part, now.expert, now.policy, now.slots, now.link, now.compute), *guessing
    )


def time_tiles(run: Timeline, plain: Timeline) -> Tiles:
    """The speed with guesses (`run`) beside the speed without (`plain`)."""
    tokens = max(1, run.decode.tokens)
    waits, before = (1e3 * one.decode.stall_seconds / tokens for one in (run, plain))
    moved, least = (one.decode.bytes / tokens for one in (run, plain))
    wasted = run.stats.decode.bytes_wasted / tokens
    return [
        ("tokens per second", f"{run.tokens_per_second:.1f}", f"{run.stall_share:.0%} waiting"),
        ("waiting per token", f"{waits:.1f} ms", f"{before:.1f} ms without guesses"),
        ("loaded per token", human(moved), f"{human(least)} without guesses"),
        ("of that, wasted", human(wasted), "wrong guesses"),
    ]


CACHE = ("part", "policy", "slots")
TRACE_VIEWS = {
    "activity": TraceView("Expert load", ("part",), activity),
    "routing": TraceView("Routing", ("part", "layer", "place", "top_k"), routing),
    "domains": TraceView("Topics", ("layer",), domains),
    "transitions": TraceView("Transitions", ("part", "layer"), transitions),
    "slots": TraceView("Hit rates", CACHE, slots),
    "residency": TraceView("Cache contents", (*CACHE, "layer", "first"), residency),
    "time": TraceView(
        "Time",
        (*CACHE, "guesses", "lookahead", "source", "link", "compute", "expert", "step"),
        time,
    ),
}
