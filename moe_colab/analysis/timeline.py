"""What a cache would cost in time: copies, compute and stalls of a trace, at a stated link speed.

Knows rehearsals; makes tables and sums of them. Modelled, not measured: one link that moves chunk
after chunk, one compute unit that waits for what it needs.
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
from .simulator import GUESSES, KINDS, Clock, RecordedGuesses, simulate

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Phase:
    """The prompt's part, the decoded tokens', or both. seconds = compute_seconds + stall_seconds;
    copy_seconds: the link was at work, most of it behind the others' back."""

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
    """A modelled run. `total`, `prompt` and `decode` sum it up; `stats` counts it, as
    `model.offload.stats()` would; `events` holds every copy, compute and stall (see
    rehearsal.EVENT)."""

    total: Phase
    prompt: Phase
    decode: Phase
    stats: Stats
    events: np.ndarray
    phases: tuple[str, ...]  # of each step
    clock: Clock

    @property
    def tokens_per_second(self) -> float:
        """Decoded tokens (of all rows) a second."""
        return self.decode.tokens_per_second

    @property
    def stall_share(self) -> float:
        """Of the decoding time."""
        return self.decode.stall_share

    def frame(self) -> pandas.DataFrame:
        """One row per event, by its beginning: kind ("copy", "compute", "stall"), phase, step,
        layer, expert (-1: what the layer computes before its router speaks), begin, end, seconds,
        bytes, guess (a copy that was asked for before the router had spoken: "right" or "wrong";
        else "no"). A copy's step is the one in which it was asked for; one that a more urgent copy
        has interrupted has several rows."""
        return self._frame(slice(None))

    def during(self, step: int) -> pandas.DataFrame:
        """The rows of `frame` that belong to a step, or whose copies are under way meanwhile."""
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
            f"{self.tokens_per_second:.1f} decoded a second, {self.stall_share:.0%} of that time "
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
    """Model how long the routing in `trace` would take from a cold start.

    link: bytes a second, a number or "12GB/s". compute: seconds that one layer takes for one token
    where nothing is missing, half of them before its router speaks, the others shared by the
    token's experts; or both, (before the router, for each distinct expert). chunk: bytes that move
    at once, so many of a guess as a load that is needed now may have to wait for. All else as for
    mc.replay, and the counts equal its own. Nothing stands aside: every guess is made for which
    there is room. Raises MoEColabError for a setting that cannot be.
    """
    clock = Clock.of(link, compute, trace, chunk)
    guesses = RecordedGuesses(trace, 0 if whole_layer else speculate, lookahead, guess_from)
    caches = LayerCaches(trace, policy, bypass, whole_layer, resident)
    slots = chosen_slots(caches, slots, budget)
    run = simulate(caches, slots, clock, guesses)
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
        run.ledger.stats(),
        events,
        tuple(caches.phases),
        clock,
    )
