"""About a thousand mutants of every kind of file, as in the benchmark of reliability: each gives
what the whole file gives, or what plain transformers gives, or one MoEColabError; never a wrong
result, nor any other error."""

from __future__ import annotations

from collections import Counter
from operator import attrgetter
from random import Random

import pytest

from moe_colab.bench import mutants
from moe_colab.bench.damage import KINDS
from moe_colab.bench.trials import FAULTS, run_kind

SEED = 1
# Most mutants must be refused, or the mutators are too tame; of these kinds only a few, or none.
FEW_REFUSED = {"config of mixtral", "config of olmoe", "config of deepseek_v3", "report", "index"}
MAY_BE_RIGHT = {"journal", "bit of a shard", "bit under a model"}


@pytest.mark.parametrize("kind", KINDS, ids=attrgetter("name"))
def test_mutants_of(kind):
    count = min(120, max(20, kind.count // 100))
    ended = list(run_kind(kind, range(count), SEED))
    assert not [one for one in ended if one.outcome in FAULTS]
    outcomes = Counter(one.outcome for one in ended)
    assert outcomes.total() == count
    least = 0 if kind.name in MAY_BE_RIGHT else count // (6 if kind.name in FEW_REFUSED else 3)
    assert outcomes["refused"] >= least


@pytest.mark.parametrize(
    "mutate",
    [
        *(mutants.of_bytes, mutants.one_bit, mutants.of_json, mutants.of_manifest),
        *(mutants.of_lines, mutants.of_journal),
    ],
)
def test_a_mutant_depends_on_the_bytes_and_the_dice_alone(mutate):
    data = b'00000000 {"format": 2, "a": [1, {"b": "text"}], "c": 5}\n'
    data = data if mutate in (mutants.of_lines, mutants.of_journal) else data[9:]
    made = [mutate(data, Random(seed)) for seed in range(40)]
    assert made == [mutate(data, Random(seed)) for seed in range(40)]
    assert len({*made}) > 20
