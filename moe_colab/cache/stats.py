"""The words that are counted. Knows what the pool reports; knows nothing of how loads are made.

One *access* is one distinct expert needed by one MoE layer in one forward. It is exactly one of
*hit* (resident and ready), *speculative hit* (brought by speculation, ready, first use), *late*
(its speculative load is under way) and *miss* (a load must be issued). A *load* brings one expert's
bytes into a device slot; `bytes_loaded` counts also what moved of loads that were called back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

PHASES = ("prompt", "decode")


@dataclass(slots=True)
class Counters:
    """What happened in one layer and phase, or a sum of such."""

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

    @property
    def hit_rate(self) -> float:
        """(hits + speculative hits) / accesses; 0 before the first access."""
        return (self.hits + self.speculative_hits) / self.accesses if self.accesses else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "hit_rate": self.hit_rate}


@dataclass(frozen=True)
class Stats:
    """A snapshot since loading or `reset_stats()`. `total`, `prompt` and `decode` sum all layers;
    `layers` holds one sum per MoE layer. A forward with one new token per row after the first is
    *decode*, any other is *prompt*. Every counter of `total` is also an attribute: `stats.hits`,
    `stats.bytes_loaded`, `stats.hit_rate`. `speculation`: whether guessing has paid, in words; ""
    as long as that is not known."""

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
        """The totals flat, then `prompt`, `decode` and `layers` as dictionaries of the same
        counters."""
        return {
            **self.total.as_dict(),
            "forwards": self.forwards,
            "tokens": self.tokens,
            "speculation": self.speculation,
            "prompt": self.prompt.as_dict(),
            "decode": self.decode.as_dict(),
            "layers": [layer.as_dict() for layer in self.layers],
        }


Note = Callable[[int, Sequence[tuple[int, float]]], None]
"""Told of a layer, and the experts that are guessed for it with their probability, the likeliest
first."""


class RecordingListener(Protocol):
    """Told of every event while a model is recorded, in the thread that runs it."""

    def routed(self, layer: int, index: Any, logits: Any) -> None:
        """The router's choice [T, K] and logits [T, E] (None: it shows none), on the host."""

    def accessed(self, layer: int, expert: int, outcome: str, nbytes: int) -> None:
        """An access: "hit", "speculative_hit", "late" or "miss"; the bytes that a miss loads."""

    def waited(self, layer: int, expert: int, seconds: float) -> None:
        """How long compute waited for an expert that was accessed."""

    def guessing(self, at: int, source: str) -> Note:
        """A hidden state at the MoE layer `at` is asked what later layers will need. The answer is
        told of each layer's guesses, in any thread."""


class Ledger:
    """The open books: one Counters per layer and phase, and the phase each thread's forward is
    in. `witness` hears of single events too, while there is one."""

    def __init__(self, layers: int):
        self.layers = layers
        self.recorder: RecordingListener | None = None
        self._thread = threading.local()
        self.reset()

    def reset(self) -> None:
        self.forwards = 0
        self.tokens = 0
        self._books = {phase: [Counters() for _ in range(self.layers)] for phase in PHASES}

    def forward(self, phase: str, tokens: int) -> None:
        """A forward over `tokens` tokens (all rows) begins."""
        self._thread.phase = phase
        self.forwards, self.tokens = self.forwards + 1, self.tokens + tokens

    @property
    def phase(self) -> str:
        """Of this thread's forward."""
        return getattr(self._thread, "phase", "prompt")

    def layer(self, layer: int, phase: str | None = None) -> Counters:
        """The book to write in now, or in that phase."""
        return self._books[phase or self.phase][layer]

    def stats(self) -> Stats:
        prompt, decode = (sum(self._books[phase], Counters()) for phase in PHASES)
        layers = tuple(
            p + d for p, d in zip(self._books["prompt"], self._books["decode"], strict=True)
        )
        return Stats(prompt + decode, prompt, decode, layers, self.forwards, self.tokens)
