"""The same routing under another cache: what `mc.replay` counts.

Knows traces and their caches; with speculation, rehearsals, for then it depends on time what is
late. Knows no bytes but their number, and no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..cache.homes import CHUNK
from ..cache.policies import PolicySpec, policy_name
from ..cache.settings import SOURCES
from ..cache.stats import PHASES, Counters, Stats
from ..trace import Trace
from ..units import human
from .layer_caches import LayerCaches, chosen_slots
from .simulator import Clock, RecordedGuesses, simulate


@dataclass(frozen=True, repr=False)
class Replay(Stats):
    """What `model.offload.stats()` would have said: `total`, `prompt`, `decode`, `layers`, and each
    counter of the total as an attribute. Where bytes come from is not known here, and time only
    with speculation: `disk_bytes`, and without it `stall_seconds`, stay 0. `policy` and `slots`
    (one per layer) are those of the replay."""

    policy: str = ""
    slots: tuple[int, ...] = ()

    def line(self) -> str:
        """Everything in one line."""
        slots = self.slots[0] if len(set(self.slots)) == 1 else ",".join(map(str, self.slots))
        return (
            f"{self.policy}, slots {slots}: {self.accesses:,} accesses, hit rate "
            f"{self.hit_rate:.1%} (decode {self.decode.hit_rate:.1%}), {self.loads:,} loads, "
            f"{human(self.bytes_loaded)} moved"
        )

    def __repr__(self) -> str:
        return f"<Replay {self.line()}>"

    def as_dict(self) -> dict[str, Any]:
        return {"policy": self.policy, "slots": list(self.slots), **super().as_dict()}


def replay(
    trace: Trace,
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
    link: float | str = "12GB/s",
    compute: float | tuple[float, float] = 2e-3,
    chunk: int = CHUNK,
) -> Replay:
    """Count what another cache would have made of the routing in `trace`, from empty slots.

    policy: a name or class as for mc.load, or one of two bounds that know what comes (see
    OptimalCache): "optimal", what any policy needs at least that keeps what it has just loaded, and
    "optimal-bypass", what any needs. slots: a number, or one per layer. budget: instead of slots,
    their sum over all layers, spread so that this trace loads the fewest bytes under this policy
    (one replay for every number of slots). bypass: a missing expert may be run from a scratch slot
    where the policy likes it less than all residents. whole_layer, resident: as for mc.load.

    speculate: guesses of each layer, from those that the trace holds (recorded with speculate= at
    least that), lookahead and guess_from as for mc.load. Who is late then depends on time, that of
    mc.timeline with the same link, compute and chunk, and every guess is made for which there is
    room.

    Without speculation the counts equal those of the live model that was recorded, under any
    setting; with it, those of a live model on a clock link of that speed, compute declared alike,
    stand_aside=False. A policy that asks for logits is shown them in 16 bits, here as there. Raises
    MoEColabError for a setting that cannot be.
    """
    caches = LayerCaches(trace, policy, bypass, whole_layer, resident)
    guesses = RecordedGuesses(trace, speculate, lookahead, guess_from)
    slots = chosen_slots(caches, slots, budget)
    name = "whole layer" if whole_layer else policy_name(policy)
    if speculate and not whole_layer:
        stats = simulate(
            caches, slots, Clock.of(link, compute, trace, chunk), guesses
        ).ledger.stats()
    else:
        stats = counted(caches, slots)
    known = {field.name: getattr(stats, field.name) for field in fields(Stats)}
    return Replay(**known, policy=name, slots=tuple(slots))


def counted(caches: LayerCaches, slots: Sequence[int]) -> Stats:
    """Without speculation time does not matter: layer after layer, each over the whole trace."""
    books = [caches.count(layer, n) for layer, n in enumerate(slots)]
    prompt, decode = (sum((book[phase] for book in books), Counters()) for phase in PHASES)
    layers = tuple(book["prompt"] + book["decode"] for book in books)
    trace = caches.trace
    return Stats(prompt + decode, prompt, decode, layers, trace.steps, len(trace.tokens))
