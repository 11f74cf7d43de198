"""Cache statistics: hits, speculative hits, late, misses, loads, stalls.

Knows what the pool counts; knows nothing of how loads are made.

An *access* is one distinct expert that one MoE layer needs in one forward, for one token or for
many. It is counted when the layer's router has chosen and before any of its loads begins, and it is
exactly one of these:

- *hit*: it is on the device, in a slot or pinned, and no first use of a prefetch;
- *speculative hit*: a prefetch has brought all of it, and this is its first use;
- *late*: a prefetch of it was started and has not ended: compute waits for the rest;
- *miss*: neither it nor a prefetch of it is there: its load begins now.

So late is neither a hit nor a miss, and accesses = hits + speculative_hits + late + misses for
every layer and phase. A *load* brings all bytes of one expert to the device: loads = misses +
prefetches, without those that were cancelled before their end; `bytes_loaded` also counts what
these moved.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

PHASES = ("prompt", "decode")


@dataclass(slots=True)
class Counters:
    """The counters of one layer and phase, or their sum over several.

    accesses = hits + speculative_hits + late + misses: see the beginning of this module. bypasses:
    loads that were used once and not kept in a slot. bytes_wasted: bytes of prefetches that were
    never used. stall_seconds: time in which compute waited for bytes.
    """

    accesses: int = 0
    hits: int = 0
    speculative_hits: int = 0
    late: int = 0
    misses: int = 0
    loads: int = 0
    evictions: int = 0
    bypasses: int = 0
    bytes_loaded: int = 0
    disk_bytes: int = 0
    bytes_wasted: int = 0
    stall_seconds: float = 0.0

    def __add__(self, other: Counters) -> Counters:
        return Counters(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Counters)}
        )

    def count(self, outcomes: Sequence[str]) -> None:
        """Count accesses, each as one of "hit", "speculative_hit", "late" and "miss"."""
        self.accesses += len(outcomes)
        self.hits += outcomes.count("hit")
        self.speculative_hits += outcomes.count("speculative_hit")
        self.late += outcomes.count("late")
        self.misses += outcomes.count("miss")

    @property
    def hit_rate(self) -> float:
        """(hits + speculative hits) / accesses; 0 before the first access."""
        return (self.hits + self.speculative_hits) / self.accesses if self.accesses else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "hit_rate": self.hit_rate}


@dataclass(frozen=True)
class Stats:
    """A snapshot of the counters since loading or `reset_stats()`.

    `total`, `prompt` and `decode` sum all layers; `layers` holds one sum per MoE layer. A forward
    with one new token per row after the first is *decode*, any other is prefill (the phase called
    `prompt` here and in traces). Every counter of `total` is also an attribute: `stats.hits`,
    `stats.bytes_loaded`, `stats.hit_rate`. `speculation`: in words, whether the speculative
    prefetch saves time, and which layers have none because their router failed; "" for nothing to
    say.
    """

    total: Counters
    prompt: Counters
    decode: Counters
    layers: tuple[Counters, ...]
    forwards: int
    tokens: int
    speculation: str = ""

    def __getattr__(self, name: str) -> Any:
        if name != "hit_rate" and name not in Counters.__slots__:
            raise AttributeError(name)
        return getattr(self.total, name)

    def as_dict(self) -> dict[str, Any]:
        """The counters of `total` flat, then `prompt`, `decode` and `layers` as dictionaries of the
        same counters."""
        return {
            **self.total.as_dict(),
            "forwards": self.forwards,
            "tokens": self.tokens,
            "speculation": self.speculation,
            "prompt": self.prompt.as_dict(),
            "decode": self.decode.as_dict(),
            "layers": [layer.as_dict() for layer in self.layers],
        }


class StatsTracker:
    """The running counters: one Counters per layer and phase, and the phase of each thread's
    forward. recording: what records single events too, such as a trace.Builder, or None."""

    def __init__(self, layers: int):
        self.layers = layers
        self.recording: Any = None
        self._thread = threading.local()
        self.reset()

    def reset(self) -> None:
        self.forwards = 0
        self.tokens = 0
        self._counters = {phase: [Counters() for _ in range(self.layers)] for phase in PHASES}

    def forward(self, phase: str, tokens: int) -> None:
        """A forward over `tokens` tokens (all rows) begins."""
        self._thread.phase = phase
        self.forwards, self.tokens = self.forwards + 1, self.tokens + tokens

    @property
    def recorder(self) -> Any:
        """What records this thread's forward, such as a trace.builder.Forward, or None."""
        recording = self.recording  # read once: another thread may end the recording
        return recording and recording.forward

    @property
    def phase(self) -> str:
        """The phase of this thread's forward: "prompt" (prefill) or "decode"."""
        return getattr(self._thread, "phase", "prompt")

    def layer(self, layer: int, phase: str | None = None) -> Counters:
        """The counters of a layer, to be added to: those of this thread's phase, or of `phase`."""
        return self._counters[phase or self.phase][layer]

    def stats(self) -> Stats:
        prompt, decode = (sum(self._counters[phase], Counters()) for phase in PHASES)
        layers = tuple(
            p + d for p, d in zip(self._counters["prompt"], self._counters["decode"], strict=True)
        )
        return Stats(prompt + decode, prompt, decode, layers, self.forwards, self.tokens)
