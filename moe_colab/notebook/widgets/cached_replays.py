"""The replays of a trace that a widget shows, each computed once.

Knows replays and timelines; knows no widgets and no pictures.
"""

from __future__ import annotations

from functools import lru_cache

from ...analysis import tables
from ...analysis.replay import replay
from ...analysis.timeline import timeline
from ...cache.policies import PolicySpec
from ...trace import Trace

MOST_RESULTS = 64  # replays that are kept


class CachedReplays:
    """A trace, its parts and their replays: each is computed once, and the latest 64 of each kind
    are kept. A part is named by its label, or None for the whole trace.

    part(label): the Trace. rates(label, policy): rows of tables.hit_rates, one for each number of
    slots. replay(label, policy, slots): see mc.replay. timeline(label, expert, policy, slots, link,
    compute, guesses, lookahead, source): see mc.timeline; expert in MB, link in GB/s, compute in
    milliseconds per layer.
    """

    def __init__(self, trace: Trace):
        keep = lru_cache(MOST_RESULTS)
        part = keep(lambda label: trace if label is None else trace.only(label))
        sized = keep(lambda label, nbytes: part(label).sized(nbytes))

        def rates(label: str | None, policy: PolicySpec) -> list[dict]:
            return tables.hit_rates(part(label), [policy]).to_dict("records")

        def timeline_of(label, expert, policy, slots, link, compute, guesses, lookahead, source):
            return timeline(
                sized(label, round(1e6 * expert)), 1e9 * link, compute / 1e3, policy, slots,
                speculate=guesses, lookahead=lookahead, guess_from=source,
            )  # fmt: skip

        self.trace, self.part, self.rates = trace, part, keep(rates)
        self.replay = keep(lambda label, policy, slots: replay(part(label), policy, slots))
        self.timeline = keep(timeline_of)
