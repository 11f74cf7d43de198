"""mc.timeline: the modelled time of a trace: copies, compute and stalls at a given link speed.

Knows simulations; makes tables and sums of them. It models one link that moves chunk after chunk,
and one compute unit that waits for the experts it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cache.homes import CHUNK
from ..cache.policies import PolicySpec
from ..cache.settings import SOURCES
from ..cache.stats import PHASES, Stats
from ..trace import Trace
from .layer_caches import LayerCaches, chosen_slots
from .simulator import GUESSES, KINDS, Clock, RecordedGuesses, Simulation

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Phase:
    """The sums of the prompt, of the decoded tokens, or of both. seconds = compute_seconds +
    stall_seconds; copy_seconds: the link was busy, mostly during compute."""

    seconds: float
    compute_seconds: float
    stall_seconds: float
    copy_seconds: float
    bytes: int
    tokens: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def stall_share(self) -> float:
        return self.stall_seconds / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, eq=False)
class Timeline:
    """A modelled run: its sums `total`, `prompt` and `decode`, its counts `stats`, and `events`,
    every copy, compute and stall (simulator.EVENT)."""

    total: Phase
    prompt: Phase
    decode: Phase
    stats: Stats
    events: np.ndarray
    phases: tuple[str, ...]  # of each step
    clock: Clock

    @property
    def tokens_per_second(self) -> float:
        """Decoded tokens (of all rows) per second."""
        return self.decode.tokens_per_second

    @property
    def stall_share(self) -> float:
        """The share of the decoding time in which compute waits."""
        return self.decode.stall_share

    def frame(self) -> pandas.DataFrame:
        """One row per event, by its beginning: kind ("copy", "compute", "stall"), phase, step,
        layer, expert (-1: compute before the router), begin, end, seconds, bytes, guess ("right" or
        "wrong" for a copy that was a guess, else "no"). A copy's step is the one that asked for it;
        a copy that a demand load interrupts has several rows."""
        return self._frame(slice(None))

    def during(self, step: int) -> pandas.DataFrame:
        """The rows of `frame` of a step, and all copies that move during it."""
        events = self.events
        own = (events["step"] == step) & (events["kind"] != KINDS.index("copy"))
        if not own.any():
            return self._frame(own)
        begin, end = events["begin"][own].min(), events["end"][own].max()
        copies = events["kind"] == KINDS.index("copy")
        return self._frame(own | (copies & (events["end"] > begin) & (events["begin"] < end)))

    def as_dict(self) -> dict[str, Any]:
        out = {name: asdict(getattr(self, name)) for name in ("total", "prompt", "decode")}
        return {
            **out,
            "tokens_per_second": self.tokens_per_second,
            "stall_share": self.stall_share,
            "clock": asdict(self.clock),
            "stats": self.stats.as_dict(),
        }

    def _frame(self, which: Any) -> pandas.DataFrame:
        import pandas as pd

        events = self.events[which]
        phases = np.array([PHASES.index(phase) for phase in self.phases], np.int8)
        frame = pd.DataFrame(
            {
                "kind": pd.Categorical.from_codes(events["kind"].astype(np.int8), KINDS),
                "phase": pd.Categorical.from_codes(phases[events["step"]], PHASES),
                **{name: events[name] for name in ("step", "layer", "expert", "begin", "end")},
            }
        )
        guess = pd.Categorical.from_codes(events["guess"].astype(np.int8), GUESSES)
        seconds = frame["end"] - frame["begin"]
        return frame.assign(seconds=seconds, bytes=events["bytes"], guess=guess)

    def __repr__(self) -> str:
        return (
            f"<Timeline {self.total.seconds:.3f} s for {self.total.tokens:,} tokens, "
            f"{self.tokens_per_second:.1f} decoded per second, {self.stall_share:.0%} of that time "
            f"waiting, hit rate {self.stats.hit_rate:.0%}>"
        )


def timeline(
    trace: Trace,
    link: float | str = "12GB/s",
    compute: float | tuple[float, float] = 2e-3,
    policy: PolicySpec = "lru",
    slots: int | Sequence[int] | None = None,
    *,
    budget: int | None = None,
    bypass: bool = False,
    whole_layer: bool = False,
    resident: Mapping[int, Sequence[int]] | None = None,
    speculate: int = 0,
    lookahead: int = 1,
    guess_from: str = SOURCES[0],
    chunk: int = CHUNK,
) -> Timeline:
    """Model the time of `trace` under a cache, from empty slots.

    link: bytes per second, a number or "12GB/s". compute: seconds of one layer for one token
    without loads, half of them before its router, the rest shared by the token's experts; or a pair
    (before the router, for each distinct expert). chunk: bytes that move at once; a demand load may
    have to wait for a chunk of a guess. All else as for mc.replay, with the same counts: every
    guess is made for which there is room. Raises MoEColabError for a setting that cannot be.
    """
    clock = Clock.of(link, compute, trace, chunk)
    guesses = RecordedGuesses(trace, 0 if whole_layer else speculate, lookahead, guess_from)
    caches = LayerCaches(trace, policy, bypass, whole_layer, resident)
    slots = chosen_slots(caches, slots, budget)
    run = Simulation(caches, slots, clock, guesses).run()
    events = run.events
    decode = np.array([phase == "decode" for phase in caches.phases], bool)
    sizes = np.diff(trace.bounds)
    spent = np.diff(run.step_ends, prepend=0.0)

    def part(steps: np.ndarray) -> Phase:
        own = events[steps[events["step"]]]
        sums = [(own["end"] - own["begin"])[own["kind"] == kind].sum() for kind in range(3)]
        copy, computed, stalled = map(float, sums)
        moved = int(own["bytes"].sum())
        tokens = int(sizes[steps].sum())
        return Phase(float(spent[steps].sum()), computed, stalled, copy, moved, tokens)

    return Timeline(
        part(np.ones(trace.steps, bool)),
        part(~decode),
        part(decode),
        run.tracker.stats(),
        events,
        tuple(caches.phases),
        clock,
    )
