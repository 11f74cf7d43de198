"""Tables of what was counted: accesses and loads, of the prompt and of decoded tokens, or by layer.

Knows the counters of a run or a replay; counts nothing itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...cache.stats import Stats
from ...errors import MoEColabError

if TYPE_CHECKING:
    import pandas

OUTCOMES = ("hits", "speculative_hits", "late", "misses")  # they make the accesses
COLUMNS = ("accesses", *OUTCOMES, "hit_rate", "loads", "evictions", "bytes_loaded")


def counts(stats: Stats, by: str = "phase") -> pandas.DataFrame:
    """What `model.offload.stats()` or `mc.replay` has counted, with the columns accesses, hits,
    speculative_hits, late, misses, hit_rate, loads, evictions, bytes_loaded: see Counters. In every
    row hits, speculative hits, late and misses together are the accesses.

    by: "phase", for the rows prompt, decode and all, or "layer", for one row per MoE layer. Raises
    MoEColabError for anything else.
    """
    import pandas as pd

    if by not in ("phase", "layer"):
        raise MoEColabError(f'by must be "phase" or "layer", not {by!r}.')
    if by == "phase":
        rows = {"prompt": stats.prompt, "decode": stats.decode, "all": stats.total}
    else:
        rows = dict(enumerate(stats.layers))
    index = pd.Index(rows, name=by)
    return pd.DataFrame([row.as_dict() for row in rows.values()], index)[list(COLUMNS)]
