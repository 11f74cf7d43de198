"""`mc.stepper`: what happens to one token in one layer, step by step with the real values.

Knows token steps and the data that web/steps.js reads; counts nothing itself, and needs torch only
if a model is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from ...analysis.cache_history import LATEST, Eviction, replayed
from ...cache.policies import PolicySpec
from ...cache.settings import is_whole
from ...errors import MoEColabError
from ...trace import Trace
from ...trace.outcomes import SIGNS
from ...units import human, parse_bytes
from .token_steps import TokenStep, TokenSteps
from .view import LIMIT, View, fit, shortened

MOST = 64  # tokens of a view
SHOWN = 16  # numbers of a vector
LONGEST = 40  # characters of a token
OWN_TOKENS = 8


class Stepper(View):
    """The view; `at(token, layer)` gives the same values as a TokenStep. `start`: the token and the
    layer that are shown first."""

    def __init__(self, steps: TokenSteps, start: tuple[int, int], link: float):
        self.token_steps, self.start = steps, start
        data = {**page_data(steps), "start": list(start), "link": link}
        title = f"Step by step: {steps.trace.model}"
        super().__init__("stepper", title, data, self._figure, parts=("steps",))

    def at(self, token: int, layer: int) -> TokenStep:
        """Raises MoEColabError for a token or layer that is not in this view."""
        return self.token_steps.at(token, layer)

    def _figure(self):
        from ...plots import step

        return step(self.at(*self.start))


def stepper(
    source: Any = None,
    tokenizer: Any = None,
    text: str | None = None,
    *,
    policy: PolicySpec | None = None,
    slots: int | Sequence[int] | None = None,
    first: int | None = None,
    tokens: int | None = None,
    more: int = OWN_TOKENS,
    link: float | str = "12GB/s",
) -> Stepper:
    """A view of one token in one layer, in nine steps: the input, the router's logits and
    probabilities, the top-k experts, hit or miss, the eviction and its reason, the copy, the guess
    for the next layer and whether it was right, and the experts' outputs with their weighted sum.

    source: a trace (None: the one that comes with moe_colab), or a model of mc.load() with its
    tokenizer and a text. The model reads the text token by token, as in decoding, and then
    generates `more` tokens greedily; it starts with the experts in its slots. It guesses even
    where that saves no time, two experts per layer if its own `speculate` is 0. A trace needs
    neither a model nor torch. It holds no weights and no vectors, and the steps that need them say
    so. A tokenizer gives texts to a trace without any.
    policy, slots: the cache of the replay of a trace, which starts with empty slots (policy also
    "optimal", Belady's); None: the cache of the recording. A model has its own cache.

    first: the first token of the view; None: the first decoded token of a trace, or the first token
    of a text. tokens: how many, at most 64; None: as many of 64 as fit into 300 kB. link: the
    bandwidth for the time of a copy, in bytes per second. Raises MoEColabError for wrong settings,
    and if that many tokens do not fit into 300 kB.
    """
    for name, value, least in (("first", first, 0), ("tokens", tokens, 1), ("more", more, 0)):
        if not (value is None and name != "more") and not (is_whole(value) and value >= least):
            raise MoEColabError(f"{name} must be a whole number from {least} up, not {value!r}.")
    if tokens is not None and tokens > MOST:
        raise MoEColabError(f"a view holds at most {MOST} tokens, not {tokens}: move `first`.")
    rate = link if isinstance(link, (int, float)) else parse_bytes(str(link).removesuffix("/s"))
    if not 0 < rate < math.inf:
        raise MoEColabError(f"link must be a speed such as 12GB/s, not {link!r}.")
    count = MOST if tokens is None else tokens
    if source is None or isinstance(source, Trace):
        if text is not None:
            raise MoEColabError("a trace has its own text: give a model to read another text.")
        trace = Trace.load() if source is None else with_texts(source, tokenizer)
        steps = window(trace, policy, slots, first, count)
    else:
        if policy is not None or slots is not None:
            raise MoEColabError(
                "a model has its own slots and policy: set model.offload.slots and "
                "model.offload.policy before this call."
            )
        from .capture import capture

        steps = capture(source, tokenizer, text, first or 0, count, more)
    wanted = steps.end - steps.first

    def make(count: int) -> tuple[Stepper, int]:
        steps.end = steps.first + count
        return Stepper(steps, clearest(steps), float(rate)), count

    view = fit(make, wanted)
    if view.nbytes > LIMIT:
        raise MoEColabError(
            f"a single token of this model takes {human(view.nbytes)}, and a view holds "
            f"{human(LIMIT)}: take a model of fewer layers or experts."
        )
    if tokens is not None and (fits := steps.end - steps.first) < wanted:
        raise MoEColabError(
            f"{wanted} tokens of this model take more than the {human(LIMIT)} that a view holds: "
            f"ask for tokens={fits}."
        )
    return view


def window(trace: Trace, policy, slots, first: int | None, count: int) -> TokenSteps:
    """The token steps of `count` tokens of a trace, from token `first` on."""
    if not len(trace.tokens):
        raise MoEColabError("this trace is empty: record a generation first.")
    if first is None:
        decoded = np.flatnonzero(trace.forwards["phase"])
        first = int(trace.bounds[decoded[0]]) if len(decoded) else 0
    if first >= len(trace.tokens):
        raise MoEColabError(f"first must be 0 to {len(trace.tokens) - 1}, not {first}.")
    end = min(first + count, len(trace.tokens))
    forwards = int(np.searchsorted(trace.bounds, end))
    return TokenSteps(trace, replayed(trace, policy, slots, forwards), first, end)


def with_texts(trace: Trace, tokenizer: Any) -> Trace:
    """The trace, with texts from the tokenizer if it has none of its own."""
    if tokenizer is None or trace.texts:
        return trace
    ids = sorted(set(trace.tokens.tolist()) - {-1})
    return replace(trace, texts={token: tokenizer.decode([token]) for token in ids})


def clearest(steps: TokenSteps) -> tuple[int, int]:
    """(token, layer) to show first: the first one with a guess and an eviction that the policy
    chose among several experts; else the very first."""
    places = product(range(steps.first, steps.end), range(steps.trace.layers))
    for token, layer in places:
        step = steps.at(token, layer)
        evictions = [access.eviction for access in step.accesses if access.eviction]
        if step.guess and any(len(eviction.scores) > 1 for eviction in evictions):
            return token, layer
    return steps.first, 0


def page_data(steps: TokenSteps) -> dict[str, Any]:
    """What web/steps.js reads. N tokens, L layers, E experts of the widest layer, K top-k."""
    trace, history, tokens = steps.trace, steps.history, range(steps.first, steps.end)
    grid = [[steps.at(token, layer) for layer in range(trace.layers)] for token in tokens]
    column = [row[0] for row in grid]
    return {
        "model": trace.model,
        "first": steps.first,
        "experts": list(trace.experts),
        "bytes": list(trace.expert_bytes),
        "cache": [history.policy, list(history.slots), list(history.measures), history.rule],
        "recorded": history.recorded and steps.agree(),
        "signs": [[sign.name, sign.glyph, sign.means] for sign in SIGNS.values()],
        "texts": [shortened(step.text, LONGEST) for step in column],
        "tokens": [[step.position, step.phase, step.together] for step in column],
        "token_steps": [[row_of(step) for step in row] for row in grid],
        **router(grid, max(trace.experts)),
        **(vectors(grid) if steps.computed else {}),
    }


def row_of(step: TokenStep) -> list[Any]:
    """[resident, accesses, guess]: an access is [expert, outcome, wait in ms, kept, choice], a
    choice [victim, scores], a guess [guessed, needed]."""
    names = list(SIGNS)
    accesses = [
        [
            access.expert,
            names.index(access.outcome),
            None if access.wait is None else round(1e3 * access.wait, 3),
            int(access.kept),
            (one := access.eviction) and [one.victim, score_rows(one, step.history.rule)],
        ]
        for access in step.accesses
    ]
    guess = step.guess and [
        [[expert, round(share, 3), int(right)] for expert, share, right in step.guess.experts],
        step.guess.needed,
    ]
    return [step.resident, accesses, guess]


def score_rows(eviction: Eviction, rule: str) -> list[list[float | None]]:
    """[expert, score ...] of each expert, the next one to evict first. None for an infinite score,
    which JSON does not have."""
    ranked = sorted((score, expert) for expert, score in eviction.scores.items())
    return [
        [expert, *(number if math.isfinite(number) else None for number in score)]
        for score, expert in (reversed(ranked) if rule == LATEST else ranked)
    ]


def router(grid: Sequence[Sequence[TokenStep]], experts: int) -> dict[str, np.ndarray]:
    """logits [N, L, E]: the bits of float16, nan where unknown; probabilities [N, L, E]: 65,535
    stands for 1. An empty dict if all are unknown."""
    shape = (len(grid), len(grid[0]), experts)
    logits, shares = np.full(shape, np.nan, np.float16), np.zeros(shape, np.uint16)
    for token, row in enumerate(grid):
        for layer, step in enumerate(row):
            if step.logits is not None:
                logits[token, layer, : len(step.logits)] = step.logits
                shares[token, layer, : len(step.logits)] = np.rint(65535 * step.probabilities)
    if np.isnan(logits).all():
        return {}
    return {"logits": logits.view(np.uint16), "probabilities": shares}


def vectors(grid: Sequence[Sequence[TokenStep]]) -> dict[str, Any]:
    """weights [N, L, K]; the norm and the first 16 numbers of every vector: input and total
    [N, L, 17], outputs [N, L, K, 17]. K: the most experts of any token."""
    most = max(len(step.experts) for row in grid for step in row)

    def gather(pick) -> np.ndarray:
        return np.array([[pick(step.computed) for step in row] for row in grid], np.float32)

    def padded(rows: np.ndarray) -> np.ndarray:
        return np.pad(rows, [(0, most - len(rows))] + [(0, 0)] * (rows.ndim - 1))

    return {
        "hidden": len(grid[0][0].computed.input),
        "weights": gather(lambda computed: padded(computed.weights)),
        "input": gather(lambda computed: head(computed.input)),
        "outputs": gather(lambda computed: padded(head(computed.outputs))),
        "total": gather(lambda computed: head(computed.total)),
    }


def head(vectors: np.ndarray) -> np.ndarray:
    """[..., H] -> [..., 17]: the norm, then the first 16 numbers."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.concatenate([norms, vectors[..., :SHOWN]], axis=-1)
