"""The builder of a trace: it collects the forwards of a recording and makes arrays of them.

Receives forwards in their order, and in each one every layer's routing, accesses and guesses. A
forward that does not end (an error, Ctrl-C, Stop) is left out. Knows arrays; knows no model and no
torch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..cache.stats import PHASES
from ..errors import MoEColabError
from . import arrays
from .arrays import OUTCOMES
from .trace import Trace


@dataclass
class Forward:
    """One forward that is recorded. ids: of its tokens [rows, length], None where it was given
    embeddings; any array until `Builder.trace` is called. began: seconds of `time.perf_counter`."""

    phase: str
    rows: int
    length: int
    past: int
    ids: Any
    began: float
    routing: dict[int, np.ndarray] = field(default_factory=dict)  # [T, K] by layer
    logits: dict[int, np.ndarray | None] = field(default_factory=dict)  # [T, E] by layer
    spoke: dict[int, float] = field(default_factory=dict)
    accesses: list[tuple] = field(default_factory=list)  # layer, expert, outcome, bytes
    waits: dict[tuple[int, int], float] = field(default_factory=dict)  # by layer and expert
    guesses: list[tuple] = field(default_factory=list)  # the columns of arrays.GUESS

    def routed(self, layer: int, index: np.ndarray, logits: np.ndarray | None) -> None:
        """index [T, K], logits [T, E] within the range of float16 (None: the router shows none), of
        all tokens of the forward. Raises MoEColabError where a layer runs on other tokens than
        the model, or twice."""
        tokens = self.rows * self.length
        if len(index) != tokens or layer in self.routing:
            raise MoEColabError(
                f"MoE layer {layer} was run on {len(index)} tokens in a forward over {tokens}, or "
                "twice: this family cannot be recorded."
            )
        self.routing[layer], self.logits[layer] = index, logits
        self.spoke[layer] = time.perf_counter() - self.began

    def accessed(self, layer: int, expert: int, outcome: str, nbytes: int) -> None:
        """outcome: "hit", "speculative_hit", "late" or "miss"; nbytes: what a miss loads."""
        self.waits[layer, expert] = 0.0
        self.accesses.append((layer, expert, OUTCOMES.index(outcome), nbytes))

    def waited(self, layer: int, expert: int, seconds: float) -> None:
        """How long compute waited for an expert that was accessed."""
        self.waits[layer, expert] = seconds

    def guessed(
        self, at: int, layer: int, ranked: Sequence[tuple[int, float]], source: str
    ) -> None:
        """At the MoE layer `at`, experts were guessed for `layer`: (expert, probability), the
        most likely first. May be called in any thread."""
        self.guesses += [
            (at, layer, expert, place, probability, source)
            for place, (expert, probability) in enumerate(ranked)
        ]


class Builder:
    """Collects forwards; `trace()` holds those that have ended so far. Each thread may be in a
    forward of its own.

    header: what a Trace's header says of the model; label: the name of the part that is recorded.
    """

    def __init__(self, header: Mapping[str, Any], label: str = ""):
        self.header, self.label = dict(header), label
        self.done: list[Forward] = []
        self.start = time.perf_counter()
        self._thread = threading.local()

    @property
    def forward(self) -> Forward | None:
        """This thread's forward, from `begin` to `end`."""
        return getattr(self._thread, "forward", None)

    def begin(self, phase: str, rows: int, length: int, past: int, ids: Any) -> Forward:
        """This thread's next forward; one that has not ended is left out."""
        forward = Forward(phase, rows, length, past, ids, time.perf_counter())
        self._thread.forward = forward
        return forward

    def end(self) -> None:
        """This thread's forward, if there is one, becomes part of the trace."""
        if self.forward is not None:
            self.done.append(self.forward)
        self._thread.forward = None

    def trace(self) -> Trace:
        """The trace of all forwards that have ended."""
        layers, widest = len(self.header["experts"]), max(self.header["experts"])
        top_k = max((i.shape[1] for f in self.done for i in f.routing.values()), default=1)
        joined = arrays.blank(0, 0, layers, top_k, widest)
        sources: dict[str, int] = {}
        if self.done:
            joined = arrays.join([self._arrays(f, top_k, widest, sources) for f in self.done])
            joined["forwards"]["began"] = [f.began - self.start for f in self.done]
            begins = joined["forwards"]["past"] == 0
            begins[0] = True
            joined["forwards"]["sequence"] = np.cumsum(begins) - 1
        return Trace(**self.header, **joined, labels=(self.label,), sources=tuple(sources))

    def _arrays(
        self, forward: Forward, top_k: int, widest: int, sources: dict[str, int]
    ) -> arrays.Arrays:
        """The arrays of one forward, as a trace of one step has them."""
        layers, tokens = len(self.header["experts"]), forward.rows * forward.length
        out = arrays.blank(1, tokens, layers, top_k, widest)
        for name in ("rows", "length", "past"):
            out["forwards"][name] = getattr(forward, name)
        out["forwards"]["phase"] = PHASES.index(forward.phase)
        out["spoke"][0, list(forward.spoke)] = list(forward.spoke.values())
        if forward.ids is not None:
            out["tokens"][:] = np.reshape(forward.ids, -1)
        for layer, index in forward.routing.items():
            exists = index < self.header["experts"][layer]  # larger ids mean no expert
            out["routing"][:, layer, : index.shape[1]] = np.where(exists, index, arrays.NO_EXPERT)
            logits = forward.logits[layer]
            if logits is not None:
                out["logits"][:, layer, : logits.shape[1]] = logits
        rows = [(0, *access, forward.waits[access[:2]]) for access in forward.accesses]
        out["accesses"] = np.array(rows, arrays.ACCESS)
        rows = [
            (0, *guess, sources.setdefault(source, len(sources)))
            for *guess, source in forward.guesses
        ]
        out["guesses"] = np.array(rows, arrays.GUESS)
        return out
