"""Tables of a cache: the experts in the slots, hit rates by number of slots, recall of guesses.

Knows traces and their caches; draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...cache.policies import PolicySpec, policy_name
from ...cache.settings import SOURCES, check_slots
from ...cache.stats import PHASES, Counters
from ...errors import MoEColabError
from ...trace import Trace
from ..layer_caches import LayerCaches
from .choices import blocks, check_layer
from .intervals import shares

if TYPE_CHECKING:
    import pandas

POLICIES = ("lru", "lfu", "random", "optimal")


def residency(
    trace: Trace, layer: int = 0, policy: PolicySpec = "lru", slots: int = 4, bypass: bool = False
) -> pandas.DataFrame:
    """The experts in the slots of one layer, from empty slots: one row for each step and expert
    that is needed or has a slot after the step, with the columns step, phase, label, token (the
    text of the step's only token, "" for several or an unknown one), expert, state.

    state: "hit", "miss" (loaded into a slot), "passing" (loaded, used, and evicted in the same
    step) or "idle" (has a slot, not needed). Raises MoEColabError for a setting that cannot be.
    """
    import pandas as pd

    check_layer(trace, layer)
    check_slots(slots, [trace.experts[layer]])
    caches = LayerCaches(trace, policy, bypass)
    cache, rows = caches.make(layer, slots), []
    for step, (_, decisions) in enumerate(caches.walk(layer, cache)):
        states = {d.expert: "hit" if d.hit else "miss" for d in decisions}
        left = [e for e, state in states.items() if state == "miss" and e not in cache.resident]
        states |= dict.fromkeys(left, "passing")
        states |= dict.fromkeys(cache.resident - set(states), "idle")
        rows += [(step, expert, state) for expert, state in sorted(states.items())]
    frame = pd.DataFrame(rows, columns=["step", "expert", "state"])
    labels = np.array(trace.labels)[trace.forwards["label"]]
    words = [word(trace, step) for step in range(trace.steps)]
    for column, values in (("phase", caches.phases), ("label", labels), ("token", words)):
        frame.insert(1, column, np.array(values)[frame["step"]])
    return frame[["step", "phase", "label", "token", "expert", "state"]]


def word(trace: Trace, step: int) -> str:
    """The text of a step's only token, "" for several."""
    first, end = trace.bounds[step : step + 2]
    return trace.text_of(first) if end - first == 1 else ""


def hit_rates(
    trace: Trace, policies: Iterable[PolicySpec] = POLICIES, slots: Sequence[int] | None = None
) -> pandas.DataFrame:
    """The hit rate of every policy with every number of slots per layer, one row each for the
    prompt and for the decoded tokens: policy, slots, phase, accesses, loads, bytes, hit_rate.

    policies: as for mc.replay, "optimal" (Belady) included. slots: 1 to all experts by default.
    Raises MoEColabError for a setting that cannot be.
    """
    import pandas as pd

    rows = []
    for policy in policies:
        caches = LayerCaches(trace, policy)
        for n in range(1, min(trace.experts) + 1) if slots is None else slots:
            check_slots(n, trace.experts)
            books = [caches.count(layer, n) for layer in range(trace.layers)]
            for phase in PHASES:
                total = sum((book[phase] for book in books), Counters())
                if total.accesses:
                    counts = (total.accesses, total.loads, total.bytes_loaded, total.hit_rate)
                    rows.append((policy_name(policy), n, phase, *counts))
    names = ["policy", "slots", "phase", "accesses", "loads", "bytes", "hit_rate"]
    return pd.DataFrame(rows, columns=names)


def recall(trace: Trace, guesses: int = 2) -> pandas.DataFrame:
    """The share of the experts needed by decoded tokens that had been guessed: one row for each
    source of guesses, lookahead and guessed layer, with the columns source, lookahead, layer,
    needed, guessed, recall (guessed / needed), low and high (its 95 % interval, by
    intervals.shares) and chance (the recall of random guesses).

    guesses: per layer, the most likely first. Raises MoEColabError where the trace holds fewer.
    """
    import pandas as pd

    frame = trace.guess_frame()
    held = 0 if frame.empty else int(frame["place"].max()) + 1
    if not 1 <= guesses <= held:
        raise MoEColabError(
            f"this trace holds {held} guesses per layer, not {guesses!r}: record one with "
            f"speculate={guesses!r}."
        )
    decode = trace.forwards["phase"] == PHASES.index("decode")
    frame = frame[(frame["place"] < guesses) & decode[frame["step"]]]
    frame = frame.assign(lookahead=frame["layer"] - frame["at"])
    frame = frame[frame["lookahead"] > 0]
    block, rows = blocks(trace)[trace.bounds[:-1]], []
    decoded = np.flatnonzero(decode).tolist()
    for source in (name for name in SOURCES if name in trace.sources):
        for (ahead, layer), own in frame[frame["source"] == source].groupby(["lookahead", "layer"]):
            guessed = set(zip(own["step"], own["expert"], strict=True))
            needed = [(step, e) for step in decoded for e in trace.needed(layer)[step]]
            right = np.array([[need in guessed] for need in needed])
            recalled = shares(right, block[[step for step, _ in needed]])
            columns = (recalled.tokens, recalled.share, recalled.low, recalled.high)
            chance = min(1.0, guesses / trace.experts[layer])
            rows.append((source, ahead, layer, recalled.of, *(c[0] for c in columns), chance))
    names = ["source", "lookahead", "layer", "needed", "guessed", "recall", "low", "high", "chance"]
    return pd.DataFrame(rows, columns=names)
