"""The simulator: a trace run through the engine's own pool in virtual time.

The clock link moves bytes that do not exist, compute is a number of seconds, and every copy,
compute and stall is recorded. Knows traces, caches, the pool and the clock link; needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ..cache.clock_link import ClockLink
from ..cache.governor import Governor, Ranked
from ..cache.homes import CHUNK
from ..cache.policies import Tokens
from ..cache.pool import Pool
from ..cache.settings import PrefetchSettings, is_whole
from ..cache.spares import SPARES
from ..cache.stats import StatsTracker
from ..errors import MoEColabError
from ..trace import Trace
from ..units import parse_bytes
from .layer_caches import LayerCaches

KINDS = ("copy", "compute", "stall")
GUESSES = ("no", "right", "wrong")
EVENT = np.dtype(
    [
        ("kind", "u1"),  # of KINDS
        ("step", "i4"),  # of a copy: the step that asked for it
        ("layer", "i2"),
        ("expert", "i2"),  # -1: the part of a layer before its router
        ("begin", "f8"),  # seconds
        ("end", "f8"),
        ("bytes", "i8"),  # of a copy
        ("guess", "u1"),  # of GUESSES: whether a copy was a guess
    ]
)


@dataclass(frozen=True)
class Clock:
    """Speeds. link: bytes per second; before_router: seconds that a layer computes before its
    router; per_expert: seconds for each distinct expert; chunk: bytes that move at once."""

    link: float
    before_router: float
    per_expert: float
    chunk: int = CHUNK

    @classmethod
    def of(
        cls,
        link: float | str,
        compute: float | tuple[float, float],
        trace: Trace,
        chunk: int = CHUNK,
    ) -> Clock:
        """Read the settings of mc.timeline. Raises MoEColabError for values that cannot be."""
        rate = link if isinstance(link, Real) else parse_bytes(str(link).strip().removesuffix("/s"))
        if not rate > 0:
            raise MoEColabError(f"link must be above 0 bytes/s, like '12GB/s', not {link!r}.")
        try:
            if isinstance(compute, Sequence):
                before_router, per_expert = map(float, compute)
            else:
                before_router = float(compute) / 2
                per_expert = before_router / trace.routing.shape[2]
        except (TypeError, ValueError) as error:
            raise MoEColabError(
                f"compute must be seconds, or a pair of them, not {compute!r}."
            ) from error
        if not (0 <= before_router < float("inf") and 0 <= per_expert < float("inf")):
            raise MoEColabError(f"compute must be 0 seconds or more, not {compute!r}.")
        if not is_whole(chunk) or chunk < 1:
            raise MoEColabError(f"chunk must be 1 byte or more, not {chunk!r}.")
        return cls(float(rate), before_router, per_expert, int(chunk))


class RecordedGuesses:
    """The guesses of a trace, as a live model makes them with these settings. Raises MoEColabError
    where the trace does not hold as many."""

    def __init__(self, trace: Trace, guesses: int, lookahead: int, source: str):
        PrefetchSettings(guesses, lookahead, source)  # or it raises
        self.source = source
        self.guesses: dict[tuple[int, int], dict[int, list]] = {}  # by step and layer
        if not guesses:
            return
        rows = trace.guesses_from(source)
        if not len(rows) and not trace.forwards["phase"].any():
            return  # a prompt alone: a new model makes no guesses in its first forward
        far = rows["layer"] - rows["at"]
        most = rows["place"].max(initial=-1) + 1, far.max(initial=0)
        if guesses > most[0] or lookahead > most[1]:
            raise MoEColabError(
                f"this trace holds {most[0]} guesses per layer from {source!r}, {most[1]} layers "
                f"ahead: record it with speculate={guesses} and lookahead={lookahead} or more."
            )
        for row in rows[(rows["place"] < guesses) & (far <= lookahead)].tolist():
            step, at, layer, expert, _, probability, _ = row
            ranked = self.guesses.setdefault((step, at), {}).setdefault(layer, [])
            ranked.append((expert, probability))

    def at(self, step: int, layer: int) -> list[tuple[int, Ranked]]:
        """The guesses that are made at a layer: (later layer, its ranked experts)."""
        return list(self.guesses.get((step, layer), {}).items())


@dataclass(frozen=True)
class EmptyHome:
    """An expert without bytes; only its size counts."""

    layer: int
    expert: int
    nbytes: int
    tier: str = "host"

    def fill(self, buffer: object) -> Iterator[int]:
        yield self.nbytes  # at once: a clock link moves all bytes when a load ends


@dataclass(frozen=True)
class EmptyBlock:
    buffer: None = None


class LoggedClockLink(ClockLink):
    """A clock link that logs the copies. A copy that a demand load overtakes is logged in parts."""

    def __init__(self, bytes_per_second: float, chunk: int):
        super().__init__(bytes_per_second, chunk)
        self.step = self.layer = 0
        self.requests: dict[object, tuple[int, int, bool]] = {}  # by ticket: step, layer, urgent?
        self.copies: list[tuple[object, float, float]] = []  # ticket, begin, end
        self.began = 0.0

    def start(self, home, block, after=None, urgent=True):
        ticket = super().start(home, block, after, urgent)
        self.requests[ticket] = self.step, self.layer, urgent
        return ticket

    def _begin_chunk(self, at: float) -> None:
        super()._begin_chunk(at)
        self.began = at

    def _end_chunk(self) -> None:
        self.note()
        super()._end_chunk()

    def note(self) -> None:
        """Log the chunk that is moving: it continues the last copy, or begins one."""
        if self.moving is None:
            return
        (ticket, end), begin = self.moving, self.began
        if self.copies and self.copies[-1][0] is ticket and self.copies[-1][2] == begin:
            begin = self.copies.pop()[1]
        self.copies.append((ticket, begin, end))


class Simulation:
    """One run of a trace: call `run`, then read `events`, `step_ends` (seconds) and `tracker`.

    slots: one number per layer. governed: whether a governor limits the guesses. link: in place of
    a clock link; it has `now`, `compute` and `note` too.
    """

    def __init__(
        self,
        caches: LayerCaches,
        slots: Sequence[int],
        clock: Clock,
        guesses: RecordedGuesses,
        governed: bool = False,
        link: Any = None,
    ):
        self.caches, self.trace, self.clock, self.guesses = caches, caches.trace, clock, guesses
        self.link = link or LoggedClockLink(clock.link, clock.chunk)
        self.tracker = StatsTracker(self.trace.layers)
        homes = [
            [EmptyHome(layer, expert, nbytes) for expert in range(experts)]
            for layer, (experts, nbytes) in enumerate(
                zip(self.trace.experts, self.trace.expert_bytes, strict=True)
            )
        ]
        self.pool = Pool(
            self.link,
            homes,
            [[EmptyBlock()] * n for n in slots],
            [caches.make(layer, n) for layer, n in enumerate(slots)],
            spares={n: [EmptyBlock()] * SPARES for n in set(self.trace.expert_bytes)},
            pinned=[{e: EmptyBlock() for e in pinned} for pinned in caches.pinned],
            tracker=self.tracker,
            governor=Governor(self.link.time) if governed else None,
        )
        self.noted: list[tuple] = []
        self.step_ends: list[float] = []

    def run(self) -> Simulation:
        """Run all steps."""
        needed = [self.caches.needed(layer) for layer in range(self.trace.layers)]
        used = [self.trace.needed(layer) for layer in range(self.trace.layers)]
        shown = [self.caches.shown(layer) for layer in range(self.trace.layers)]
        sizes = np.diff(self.trace.bounds).tolist()
        for step, (phase, tokens) in enumerate(zip(self.caches.phases, sizes, strict=True)):
            self.tracker.forward(phase, tokens)
            for layer in range(self.trace.layers):
                self.link.step, self.link.layer = step, layer
                tokens = next(shown[layer])
                self._layer(step, layer, needed[layer][step], used[layer][step], tokens)
            self.step_ends.append(self.link.now)
        self.link.note()  # a chunk counts when it begins
        return self

    def _layer(
        self,
        step: int,
        layer: int,
        needed: Sequence[int],
        used: Sequence[int],  # the needed experts that compute; fewer where whole layers are loaded
        tokens: Tokens | None,
    ) -> None:
        self._compute(step, layer, -1, self.clock.before_router)
        guesses = self.guesses.at(step, layer)
        from_input = self.guesses.source == "router_input"
        early = guesses if from_input and self.pool.wants_guesses else ()
        before = self.link.now
        for expert, _ in self.pool.experts(layer, needed, tokens, early):
            if self.link.now > before:
                self.noted.append((2, step, layer, expert, before, self.link.now, 0, 0))
            if expert in used:
                self._compute(step, layer, expert, self.clock.per_expert)
            before = self.link.now
        for later, ranked in () if from_input or not self.pool.wants_guesses else guesses:
            self.pool.guess(later, ranked)

    @property
    def events(self) -> np.ndarray:
        """EVENT [n], by their beginning. A wrong guess may still be moving at the end."""
        copies = []
        for ticket, begin, end in self.link.copies:
            home, nbytes = ticket.home, round((end - begin) * self.link.rate)
            step, at, urgent = self.link.requests[ticket]
            guess = 0 if urgent else self._guess(step, at, home)
            copies.append((0, step, home.layer, home.expert, begin, end, nbytes, guess))
        rows = np.array(self.noted + copies, EVENT)
        return rows[np.argsort(rows["begin"], kind="stable")]

    def _guess(self, step: int, at: int, home: EmptyHome) -> int:
        """1 if a guess made in `step`, at the layer `at`, was right, else 2 (also for a step after
        the last one)."""
        meant = step + (home.layer <= at)
        needed = self.trace.needed(home.layer)
        return 1 if meant < len(needed) and home.expert in needed[meant] else 2

    def _compute(self, step: int, layer: int, expert: int, seconds: float) -> None:
        begin = self.link.now
        self.link.compute(seconds)
        self.noted.append((1, step, layer, expert, begin, self.link.now, 0, 0))
