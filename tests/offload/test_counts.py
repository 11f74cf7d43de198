"""What is counted, against a cache written here from the words of the specification.

The routing is hooked from the *plain* transformers model; nothing of moe_colab helps to compute
what is expected.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from conftest import TINY_MOE
from families import make_checkpoint, reference
from naive import NaiveLayer, plain_routing

import moe_colab as mc
from moe_colab.cache.homes import DiskHome

pytestmark = pytest.mark.colab
FIRST, SECOND = 12, 25  # forwards of the two generations
POLICIES = ["lru", "lfu", "fifo", "random", "none"]


def talk(model) -> None:
    """Two generations: a long prompt with three rows, then one token of prompt."""
    ids = torch.randint(5, 120, (3, 60), generator=torch.Generator().manual_seed(0))
    for prompt, length in ((ids, FIRST), (ids[:1, :1], SECOND)):
        model.generate(prompt, max_new_tokens=length, min_new_tokens=length, do_sample=False)


@pytest.fixture(scope="module", params=["shipped", "qwen3_moe", "gpt_oss"])
def case(request, tmp_path_factory):
    folder = TINY_MOE
    if request.param != "shipped":
        folder = make_checkpoint(request.param, tmp_path_factory.mktemp("counts") / request.param)
    plain = reference(folder)
    experts = next(m for name, m in plain.named_modules() if name.endswith(".experts"))
    sizes = [p[0].nbytes for p in experts.parameters()]
    blob = -(-sum(-(-size // 256) * 256 for size in sizes) // 4096) * 4096
    return folder, plain_routing(plain, talk), blob


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("slots", [2, 5, 8])
def test_counts_are_those_of_a_naive_cache(case, policy, slots):
    folder, routing, blob = case
    model, _ = mc.load(folder, slots=slots, policy=policy, speculate=0, progress=False)
    with model.offload:
        talk(model)
        stats = model.offload.stats()
    assert len(stats.layers) == len(routing)
    for number, (layer, forwards) in enumerate(zip(stats.layers, routing, strict=True)):
        naive = NaiveLayer(policy, slots, number)
        for needed in forwards:
            naive.forward(needed)
        expected = dict(naive.count) | {"evictions": naive.count["evictions"]}
        got = {key: getattr(layer, key) for key in expected}
        assert got == expected
        assert layer.misses == layer.loads
        assert layer.bytes_loaded == layer.disk_bytes == naive.count["loads"] * blob
        assert layer.bypasses == (layer.loads if policy == "none" else 0)
        assert layer.speculative_hits == layer.late == layer.bytes_wasted == 0


def test_prompt_and_decode_are_told_apart(case):
    folder, routing, _ = case
    model, _ = mc.load(folder, slots=4, progress=False)
    with model.offload:
        talk(model)
        stats = model.offload.stats()
    assert stats.forwards == len(routing[0]) == FIRST + SECOND
    prompts = [forward for layer in routing for forward in (layer[0], layer[FIRST])]
    assert stats.prompt.accesses == sum(map(len, prompts))
    assert (
        stats.prompt.accesses + stats.decode.accesses
        == stats.accesses
        == sum(len(forward) for layer in routing for forward in layer)
    )
    hits = stats.decode.hits + stats.decode.speculative_hits
    assert stats.as_dict()["decode"]["hit_rate"] == hits / stats.decode.accesses


def test_whole_layer_moves_every_expert_each_time(case):
    folder, routing, blob = case
    model, _ = mc.load(folder, slots=4, whole_layer=True, progress=False)
    with model.offload:
        talk(model)
        stats = model.offload.stats()
    assert stats.loads == stats.accesses == stats.misses == 8 * len(routing) * len(routing[0])
    assert stats.bytes_loaded == stats.loads * blob


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_long_prompt_reads_every_expert_at_most_once(monkeypatch, slots, policy):
    reads = Counter()
    fill = DiskHome.fill
    monkeypatch.setattr(
        DiskHome, "fill", lambda self, buffer: reads.update([self.label]) or fill(self, buffer)
    )
    model, _ = mc.load(slots=slots, policy=policy, progress=False)
    with model.offload, torch.no_grad():
        model(torch.randint(6, 4000, (1, 200)))
        assert max(reads.values()) == 1
        assert model.offload.stats().accesses == len(reads) > 8 * 4


def test_reset_begins_anew():
    model, _ = mc.load(slots=2, progress=False)
    with model.offload, torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
        assert model.offload.stats().accesses > 0
        model.offload.reset_stats()
        assert model.offload.stats().as_dict()["accesses"] == 0
        model(torch.tensor([[5, 6, 7]]))
        assert model.offload.stats().hits > 0  # the slots were not emptied
