"""The table of counts of a real run with prefetch: its columns add up, and they are those of the
routing that was recorded meanwhile."""

from __future__ import annotations

import numpy as np
import pytest

import moe_colab as mc
from moe_colab.trace.arrays import OUTCOMES

pytestmark = pytest.mark.colab
PARTS = ["hits", "speculative_hits", "late", "misses"]  # in the order of OUTCOMES


@pytest.fixture(scope="module", params=[1, 3])
def run(request):
    """(statistics, trace) of a model with few slots that reads a text and goes on with it."""
    model, tokenizer = mc.load(
        slots=request.param, speculate=2, lookahead=1, stand_aside=False, progress=False
    )
    inputs = tokenizer("Tell me a story about a dragon", return_tensors="pt")
    with model.offload:
        model.generate(**inputs, max_new_tokens=2)  # the norms are found in the first forward
        model.offload.reset_stats()
        with mc.record(model) as trace:
            model.generate(**inputs, max_new_tokens=24, min_new_tokens=24, do_sample=False)
        yield model.offload.stats(), trace


@pytest.mark.parametrize("by", ["phase", "layer"])
def test_the_parts_make_the_accesses_in_every_row(run, by):
    stats, trace = run
    table = mc.tables.counts(stats, by)
    assert (table[PARTS].sum(axis=1) == table["accesses"]).all()
    right = table["hits"] + table["speculative_hits"]
    assert table["hit_rate"].tolist() == (right / table["accesses"]).tolist()
    assert (table["misses"] <= table["loads"]).all()
    assert stats.speculative_hits + stats.late > 0 and stats.misses > 0


def test_the_rows_are_those_of_the_recorded_routing(run):
    stats, trace = run
    decode = trace.forwards["phase"] > 0
    needed = np.array([[len(step) for step in trace.needed(n)] for n in range(trace.layers)])
    table = mc.tables.counts(stats)
    expected = [needed[:, ~decode].sum(), needed[:, decode].sum(), needed.sum()]
    assert table.index.tolist() == ["prompt", "decode", "all"]
    assert table["accesses"].tolist() == expected
    by_layer = mc.tables.counts(stats, by="layer")
    assert by_layer["accesses"].tolist() == needed.sum(axis=1).tolist()
    for number, part in enumerate(PARTS):
        mine = trace.accesses[trace.accesses["outcome"] == number]
        assert table.loc["decode", part] == decode[mine["step"]].sum(), OUTCOMES[number]
        assert by_layer[part].tolist() == np.bincount(mine["layer"], minlength=8).tolist()


def test_a_replay_has_the_same_table_and_other_rows_are_refused():
    trace = mc.Trace.load().only("prose")
    counts = mc.replay(trace, slots=3, speculate=2, link=5e7)
    table = mc.tables.counts(counts)
    assert counts.late > 0 and counts.speculative_hits > 0
    assert (table[PARTS].sum(axis=1) == table["accesses"]).all()
    assert table.loc["all", "loads"] == counts.loads
    with pytest.raises(mc.MoEColabError, match='"phase" or "layer"'):
        mc.tables.counts(counts, by="expert")
