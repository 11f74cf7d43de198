"""mc.replay: counts the same routing under another cache.

Knows traces and their caches; with speculation it uses the simulator, because then time decides
which accesses are late. Knows no bytes but their number, and no torch.
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
from .simulator import Clock, RecordedGuesses, Simulation


@dataclass(frozen=True, repr=False)
class Replay(Stats):
    """The counts, as `model.offload.stats()` gives them: `total`, `prompt`, `decode`, `layers`, and
    each counter of the total as an attribute. `disk_bytes` is 0, and so is `stall_seconds` without
    speculation: unknown. `policy` and `slots` (one per layer) are those of the replay."""

    policy: str = ""
    slots: tuple[int, ...] = ()

    def line(self) -> str:
        """The main counts in one line."""
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
    """Count the accesses of `trace` under another cache, from empty slots.

    policy: a name or class as for mc.load, or a bound that knows the future (see BeladyCache):
    "optimal", the fewest loads of any policy that keeps what it has just loaded, or
    "optimal-bypass", the fewest of any policy. slots: a number, or one per layer. budget: instead
    of slots, their sum over all layers, shared so that this trace loads the fewest bytes under this
    policy (one replay for every number of slots). bypass: the policy may also choose the missing
    expert as its victim, which then uses a spare block. whole_layer, resident: as for mc.load.

    speculate: guesses per layer, from those in the trace (recorded with at least as many).
    lookahead, guess_from: as for mc.load. Which accesses are late then depends on time: link,
    compute and chunk are those of mc.timeline, and every guess is made for which there is room.

    Without speculation the counts equal those of the recorded model under any setting; with it,
    those of a model on a clock link with the same times and stand_aside=False. A policy that needs
    logits gets them in 16 bits, here as there. Raises MoEColabError for a setting that cannot be.

        trace = mc.Trace.load()  # that of the small model, or one of mc.record
        print(mc.replay(trace, policy="lfu", slots=6))
        print(mc.replay(trace, budget=32))  # slots of all layers together
    """
    caches = LayerCaches(trace, policy, bypass, whole_layer, resident)
    guesses = RecordedGuesses(trace, speculate, lookahead, guess_from)
    slots = chosen_slots(caches, slots, budget)
    name = "whole layer" if whole_layer else policy_name(policy)
    if speculate and not whole_layer:
        clock = Clock.of(link, compute, trace, chunk)
        stats = Simulation(caches, slots, clock, guesses).run().tracker.stats()
    else:
        stats = counted(caches, slots)
    known = {field.name: getattr(stats, field.name) for field in fields(Stats)}
    return Replay(**known, policy=name, slots=tuple(slots))


def counted(caches: LayerCaches, slots: Sequence[int]) -> Stats:
    """Count layer after layer: without speculation time does not matter."""
    books = [caches.count(layer, n) for layer, n in enumerate(slots)]
    prompt, decode = (sum((book[phase] for book in books), Counters()) for phase in PHASES)
    layers = tuple(book["prompt"] + book["decode"] for book in books)
    trace = caches.trace
    return Stats(prompt + decode, prompt, decode, layers, trace.steps, len(trace.tokens))
