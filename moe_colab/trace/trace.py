"""The trace of a run: the experts of every token, the guesses, and the cost of every access.

Knows arrays and files; knows no model and no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cache.policies import Tokens
from ..errors import MoEColabError
from ..machine.folders import shipped_trace
from ..units import parse_bytes
from . import archive, arrays, frames, route_csv
from .header import NAMES, checked

if TYPE_CHECKING:
    import pandas

KIND, VERSION = "trace", 1


@dataclass(frozen=True, eq=False)
class Trace:
    """A recording. A step is one forward of the model; all arrays are in the order of time (legend:
    arrays.py).

    model: its name. experts, expert_bytes: one number per MoE layer. labels: names of the parts.
    sources: names of the guesses' sources. texts: by token id, where a tokenizer was given.
    settings: those of the model when the recording began.
    forwards [F], spoke float32 [F, L] (seconds from a forward's beginning to the layer's router
    choice; nan: not known), tokens int32 [N] (ids, forward after forward, row after row; -1:
    not known), routing int16 [N, L, K] (in the router's order; -1: none), logits float16 [N, L, E]
    (the router's; nan: not known), accesses [A] (none where it is not known what became of them),
    guesses [G].
    """

    model: str
    experts: tuple[int, ...]
    expert_bytes: tuple[int, ...]
    forwards: np.ndarray
    spoke: np.ndarray
    tokens: np.ndarray
    routing: np.ndarray
    logits: np.ndarray
    accesses: np.ndarray
    guesses: np.ndarray
    labels: tuple[str, ...] = ("",)
    sources: tuple[str, ...] = ()
    texts: Mapping[int, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    # ------------------------------------------------------------------ questions
    @property
    def layers(self) -> int:
        """Number of MoE layers."""
        return len(self.experts)

    @property
    def steps(self) -> int:
        """Number of steps: forwards of the model."""
        return len(self.forwards)

    @cached_property
    def bounds(self) -> np.ndarray:
        """int64 [F + 1]: step f has tokens bounds[f] to bounds[f + 1]."""
        return arrays.bounds(self.forwards)

    @cached_property
    def step_of(self) -> np.ndarray:
        """int64 [N]: the step of each token."""
        return np.repeat(np.arange(self.steps), np.diff(self.bounds))

    def text_of(self, token: int) -> str:
        """The text of a token, by its number in the trace; "" where it is not known."""
        return self.texts.get(int(self.tokens[token]), "")

    def needed(self, layer: int) -> list[list[int]]:
        """The distinct experts that every step needs in this layer, ascending."""
        if layer not in self._needed:
            flat = self.routing[:, layer].reshape(-1).tolist()
            bounds = (self.bounds * self.routing.shape[2]).tolist()
            chosen = (set(flat[a:b]) for a, b in pairwise(bounds))
            self._needed[layer] = [sorted(experts - {arrays.NO_EXPERT}) for experts in chosen]
        return self._needed[layer]

    @cached_property
    def _needed(self) -> dict[int, list[list[int]]]:
        return {}

    def holds_logits(self, layer: int) -> bool:
        """Whether all router logits of this layer are known."""
        return not np.isnan(self.logits[:, layer, : self.experts[layer]]).any()

    def shown(self, layer: int) -> Iterator[Tokens]:
        """The (top-k, logits) pairs of every step's tokens, for a policy that needs them. Raises
        MoEColabError where the logits are not known."""
        logits = self.logits[:, layer, : self.experts[layer]]
        if not self.holds_logits(layer):
            raise MoEColabError(
                f"this trace does not hold the router's logits of MoE layer {layer}: choose a "
                "policy that does not need them."
            )
        for a, b in pairwise(self.bounds.tolist()):
            yield list(zip(self.routing[a:b, layer].tolist(), logits[a:b].tolist(), strict=True))

    def frame(self) -> pandas.DataFrame:
        """One row per step, layer, token (batch row, position) and rank (0: the router's first
        choice), with the columns phase, label, sequence, token, text (where known), expert, logit,
        began (seconds from the start of the recording to this router's choice).

        All tokens of a step that need the same expert of a layer share one access. Its `outcome`
        and `guessed` (the source of a right guess) are in all their rows; `bytes` and `seconds`
        (that compute waited) only in the first row, marked `first`: count outcomes there."""
        return frames.choices(self)

    def guesses_from(self, source: str) -> np.ndarray:
        """The guesses from one source; none where the trace does not have it."""
        number = self.sources.index(source) if source in self.sources else len(self.sources)
        return self.guesses[self.guesses["source"] == number]

    def guess_frame(self) -> pandas.DataFrame:
        """One row per guess: the step and layer (`at`) in which it was made, the guessed layer and
        expert, its place (0: the most likely), probability, source, and whether the router then
        chose it (`right`). A layer that is not after `at` means the next step; guesses for a step
        after the last one are left out."""
        return frames.guesses(self)

    # ------------------------------------------------------------------ parts and wholes
    def only(self, label: str) -> Trace:
        """The part with one label. Raises MoEColabError where there is none."""
        if label not in self.labels:
            raise MoEColabError(
                f"this trace has no part {label!r}; it has {', '.join(map(repr, self.labels))}."
            )
        return self._steps(self.forwards["label"] == self.labels.index(label))

    def between(self, begin: int, end: int) -> Trace:
        """The steps from `begin` to before `end`."""
        number = np.arange(self.steps)
        return self._steps((begin <= number) & (number < end))

    def is_like(self, other: Trace) -> bool:
        """Whether both are of one model: the same name, layers, experts and bytes."""
        names = ("model", "experts", "expert_bytes")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    @classmethod
    def merge(cls, *traces: Trace) -> Trace:
        """Join traces, one after the other. Raises MoEColabError where they are not of the same
        model."""
        if not traces:
            raise MoEColabError("merge needs at least one trace.")
        if not all(traces[0].is_like(trace) for trace in traces):
            raise MoEColabError(
                f"traces of {' and '.join(sorted({trace.model for trace in traces}))} differ in "
                "their layers, experts or bytes: only traces of one model can be merged."
            )
        header = traces[0]._header()
        for name in ("labels", "sources"):
            header[name] = tuple(dict.fromkeys(n for trace in traces for n in getattr(trace, name)))
        header["texts"] = {token: text for trace in traces for token, text in trace.texts.items()}
        parts = [trace._arrays() for trace in traces]
        for trace, part in zip(traces, parts, strict=True):
            for rows, column, names in (
                ("forwards", "label", "labels"),
                ("guesses", "source", "sources"),
            ):
                part[rows] = arrays.renumber(
                    part[rows], column, getattr(trace, names), header[names]
                )
        return cls(**header, **arrays.join(parts))

    def sized(self, expert: int | str) -> Trace:
        """The same trace with `expert` bytes (a number or "67.1MB") for each expert: the routing at
        the cost of a larger model. Raises MoEColabError for an invalid number of bytes."""
        nbytes = parse_bytes(expert)
        if not nbytes > 0:
            raise MoEColabError(f"expert must be a number of bytes above 0, not {expert!r}.")
        return replace(self, expert_bytes=(nbytes,) * self.layers)

    # ------------------------------------------------------------------ files
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one compressed file, whole or not at all, and return its path. Raises MoEColabError
        where it cannot be written."""
        header = self._header()
        header["texts"] = {str(token): text for token, text in sorted(self.texts.items())}
        archive.write(path, KIND, VERSION, header, **self._arrays())
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> Trace:
        """Load a saved trace; by default the one that comes with moe_colab: the small model over
        four domains, each a label. Raises MoEColabError for a file that is missing, damaged or no
        trace."""
        path = shipped_trace() if path is None else path
        header, stored = archive.read(path, KIND, VERSION)
        try:
            trace = cls._of(header, stored)
            arrays.check(trace._arrays(), trace.experts, len(trace.labels), len(trace.sources))
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise MoEColabError(
                f"{path} does not hold what a trace must hold ({type(error).__name__}: {error}): "
                "record it again."
            ) from error
        return trace

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> Trace:
        """Load a `route_trace v1` of another engine (see route_csv.py). It has no logits, tokens,
        times or guesses. Raises MoEColabError for any other file."""
        return cls._of(*route_csv.read(path))

    # ------------------------------------------------------------------ inside
    def _fill_from(self, other: Trace) -> None:
        """Take over all that `other` holds: a recording fills the trace that it returned at its
        start."""
        self.__dict__.clear()
        self.__dict__.update(other.__dict__)

    @classmethod
    def _of(cls, header: Mapping[str, Any], stored: arrays.Arrays) -> Trace:
        named = {name: stored[name] for name in arrays.NAMES}
        return cls(**checked(header), **named)

    def _steps(self, kept: np.ndarray) -> Trace:
        return Trace(**self._header(), **arrays.take(self._arrays(), kept))

    def _header(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in NAMES}

    def _arrays(self) -> arrays.Arrays:
        return {name: getattr(self, name) for name in arrays.NAMES}

    def __repr__(self) -> str:
        prompts = int((self.forwards["phase"] == 0).sum())
        return (
            f"<Trace of {self.model}: {self.steps:,} steps ({prompts:,} of prompts), "
            f"{len(self.tokens):,} tokens, {self.layers} MoE layers of {max(self.experts)} experts>"
        )
