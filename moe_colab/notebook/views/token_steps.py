"""Token steps: one token at one MoE layer, with its router's output, slots, evictions, copies,
guesses and expert outputs.

Knows traces and histories of caches; draws nothing, and needs no torch. What experts compute is not
in a trace: `capture` records it from a model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...analysis.cache_history import CacheHistory, CacheSnapshot, Eviction
from ...cache.stats import PHASES
from ...errors import MoEColabError
from ...trace import OUTCOMES, Trace
from ...trace.arrays import softmax


@dataclass(frozen=True)
class Access:
    """One of a token's experts. outcome: "hit", "speculative_hit", "late" or "miss"; wait: seconds
    that compute waited for it, None where that was not recorded for such a cache; eviction: the
    one that made room for it; kept: whether it stays in its slot."""

    expert: int
    outcome: str
    bytes: int  # to be copied; 0 for a hit
    wait: float | None
    eviction: Eviction | None
    kept: bool


@dataclass(frozen=True)
class Guess:
    """The guesses made at this layer for the next one, the most likely first: (expert, probability,
    right?). needed: the experts that the next layer's router then chose."""

    source: str
    experts: tuple[tuple[int, float, bool], ...]
    needed: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Computed:
    """The outputs of a layer's experts for a token, float32. input [H]: of router and experts.
    weights [K]: of the experts in this family. outputs [K, H]: of each expert, not weighted. total
    [H]: of the layer's experts module."""

    input: np.ndarray
    weights: np.ndarray
    outputs: np.ndarray
    total: np.ndarray


@dataclass(frozen=True, eq=False)
class TokenStep:
    """token: its number in the trace; step: the forward; together: tokens of that forward, whose
    needs one access serves. logits float32 [E] as the trace keeps them, probabilities their
    softmax; None where they are not known. experts: in the router's order, each with one of
    `accesses`. resident: the experts in slots before. computed: None without a model."""

    token: int
    layer: int
    step: int
    together: int
    text: str
    position: int
    phase: str
    logits: np.ndarray | None
    probabilities: np.ndarray | None
    experts: tuple[int, ...]
    resident: tuple[int, ...]
    accesses: tuple[Access, ...]
    guess: Guess | None
    computed: Computed | None
    history: CacheHistory = field(repr=False)


class TokenSteps:
    """The steps of the tokens `first` to `end` of a trace. computed[layer][token - first]."""

    def __init__(
        self,
        trace: Trace,
        history: CacheHistory,
        first: int,
        end: int,
        computed: Sequence[Sequence[Computed]] | None = None,
    ):
        self.trace, self.history, self.computed = trace, history, computed
        self.first, self.end = first, end
        self.accesses, self.guesses = self._accesses(), self._guesses()

    def at(self, token: int, layer: int) -> TokenStep:
        """One token at one layer. Raises MoEColabError for one that does not exist."""
        trace = self.trace
        if token not in range(self.first, self.end) or layer not in range(trace.layers):
            raise MoEColabError(
                f"there is no token {token!r} at layer {layer!r} here: these are tokens "
                f"{self.first} to {self.end - 1} at layers 0 to {trace.layers - 1}."
            )
        step = int(trace.step_of[token])
        forward, snapshot = trace.forwards[step], self.history.snapshots[layer][step]
        chosen = trace.routing[token, layer].tolist()
        experts = [expert for expert in chosen if expert >= 0]
        logits = trace.logits[token, layer, : trace.experts[layer]].astype(np.float32)
        known = not np.isnan(logits).any()
        computed = self.computed and self.computed[layer][token - self.first]
        if computed and len(experts) < len(computed.weights):  # the others are no experts
            ranks = [k for k, expert in enumerate(chosen) if expert >= 0]
            weights, outputs = computed.weights[ranks], computed.outputs[ranks]
            computed = replace(computed, weights=weights, outputs=outputs)
        return TokenStep(
            token=token,
            layer=layer,
            step=step,
            together=int(trace.bounds[step + 1] - trace.bounds[step]),
            text=trace.text_of(token),
            position=int(forward["past"] + (token - trace.bounds[step]) % forward["length"]),
            phase=PHASES[forward["phase"]],
            logits=logits if known else None,
            probabilities=softmax(logits) if known else None,
            experts=tuple(experts),
            resident=tuple(sorted({*snapshot.resident, *self.history.pinned[layer]})),
            accesses=tuple(self._access(step, layer, expert, snapshot) for expert in experts),
            guess=self._guess(step, layer),
            computed=computed or None,
            history=self.history,
        )

    def agree(self) -> bool:
        """Whether the history has a hit wherever the recording has one. A recording that began with
        filled slots has hits that a replay from empty slots has not."""
        return all(
            self._there(step, layer, expert) == (outcome == "hit")
            for (step, layer, expert), (outcome, _) in self.accesses.items()
        )

    # ------------------------------------------------------------------ inside
    def _there(self, step: int, layer: int, expert: int) -> bool:
        """Whether the cache history has `expert` in a slot at `step`."""
        snapshot = self.history.snapshots[layer][step]
        return expert in snapshot.resident or expert in self.history.pinned[layer]

    def _access(self, step: int, layer: int, expert: int, snapshot: CacheSnapshot) -> Access:
        """An access by the history; where the recording agrees, with its outcome and wait."""
        there = self._there(step, layer, expert)
        outcome, wait = "hit" if there else "miss", None
        recorded = self.accesses.get((step, layer, expert))
        if recorded is not None and there == (recorded[0] == "hit"):
            outcome, wait = recorded
        eviction = next((one for one in snapshot.evictions if one.newcomer == expert), None)
        nbytes = 0 if there else self.trace.expert_bytes[layer]
        kept = there or self.history.kept(layer, eviction)
        return Access(expert, outcome, nbytes, wait, eviction, kept)

    def _guess(self, step: int, layer: int) -> Guess | None:
        made = self.guesses.get((step, layer))
        if made is None:
            return None
        source, experts = made
        needed = self.trace.needed(layer + 1)[step]
        judged = ((expert, probability, expert in needed) for expert, probability in experts)
        return Guess(source, tuple(judged), tuple(needed))

    def _own(self, rows: np.ndarray) -> np.ndarray:
        """The rows whose step is one of these tokens'."""
        if self.first == self.end:
            return rows[:0]
        first, last = self.trace.step_of[[self.first, self.end - 1]]
        return rows[(rows["step"] >= first) & (rows["step"] <= last)]

    def _accesses(self) -> dict[tuple[int, int, int], tuple[str, float]]:
        """(outcome, wait) by step, layer and expert; none if the caches are not those of the
        recording."""
        if not self.history.recorded:
            return {}
        rows = self._own(self.trace.accesses)[["step", "layer", "expert", "outcome", "wait"]]
        return {(s, n, e): (OUTCOMES[kind], wait) for s, n, e, kind, wait in rows.tolist()}

    def _guesses(self) -> dict[tuple[int, int], tuple[str, list[tuple[int, float]]]]:
        """(source, guesses for the next layer) by the step and layer in which they were made: from
        the source that the model really went by, if that is known."""
        name, sources = self.trace.settings.get("guess_from"), self.trace.sources
        if name not in sources:
            name = sources[0] if sources else ""
        out = defaultdict(lambda: (name, []))
        rows = self._own(self.trace.guesses_from(name))
        rows = rows[rows["layer"] == rows["at"] + 1]
        for row in rows[np.argsort(rows["place"], kind="stable")].tolist():
            out[row[0], row[1]][1].append((row[3], row[5]))
        return dict(out)
