"""The experts function by itself, and an offloaded model in every way that transformers can run
one."""

from __future__ import annotations

import random
import signal
import zlib

import numpy as np
import pytest
import torch
from census import blocks_counted
from conftest import TINY_MOE
from families import reference
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import pipeline

import moe_colab as mc
from moe_colab.cache.spares import SPARES
from moe_colab.offload.dense import OffloadConfig
from moe_colab.offload.experts import TokensByExpert
from moe_colab.offload.hooks import OffloadedLayer
from moe_colab.offload.slots import Block

pytestmark = pytest.mark.colab


@pytest.fixture(scope="module")
def plain():
    return reference(TINY_MOE)


@pytest.fixture(scope="module")
def offloaded():
    model, tokenizer = mc.load(slots=3, progress=False)
    with model.offload:
        yield model, tokenizer


@given(st.data())
def test_groups_are_eagers_rows_and_order(data):
    experts = data.draw(st.integers(1, 9))
    top_k = data.draw(st.integers(1, experts))
    rows = data.draw(
        st.lists(
            st.permutations(range(experts + 1)).map(lambda p: p[:top_k]), min_size=1, max_size=7
        )
    )
    index = np.array(rows)
    groups = TokensByExpert.of(index, experts)
    assert groups.experts == sorted({e for row in rows for e in row if e < experts})
    for i, expert in enumerate(groups.experts):
        token, position, rank = groups.rows[:, groups.bounds[i] : groups.bounds[i + 1]].tolist()
        eager = [(t, p) for p in range(top_k) for t in range(len(rows)) if rows[t][p] == expert]
        assert list(zip(token, position, strict=True)) == eager
        assert rank == [sorted(rows[t]).index(expert) for t in token]


SYNCHRONIZING = {"_local_scalar_dense", "nonzero", "_unique2", "equal", "masked_select", "bincount"}


class Watch(TorchDispatchMode):
    """Notes the names of all operators."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.seen.add(operator.__name__.partition(".")[0])
        return operator(*args, **(kwargs or {}))


def test_one_transfer_to_the_host_per_layer(offloaded, monkeypatch):
    """On a GPU each of these would wait for everything before it; only the routing may."""
    model, _ = offloaded
    watch, transfers = Watch(), []
    routing = OffloadedLayer.routing

    def transfer(self, top_k_index):
        transfers.append(self.number)
        return routing(self, top_k_index)

    monkeypatch.setattr(OffloadedLayer, "routing", transfer)
    layer = model.model.layers[0].mlp.experts
    x, index = torch.randn(5, 192, dtype=model.dtype), torch.randint(0, 8, (5, 2))
    with watch:
        layer(x, index, torch.rand(5, 2, dtype=model.dtype))
    assert transfers == [0]
    assert {"mm", "index", "index_put_"} <= watch.seen
    assert not watch.seen & SYNCHRONIZING


def test_the_order_of_arrival_changes_nothing(plain, monkeypatch):
    """Experts computed in any order, sums in eager's: bit by bit the same, row after row."""
    weights = OffloadedLayer.weights
    shuffle = random.Random(0)

    def in_any_order(self, *asked):
        copies = [(e, {k: v.clone() for k, v in w.items()}) for e, w in weights(self, *asked)]
        yield from shuffle.sample(copies, len(copies))

    monkeypatch.setattr(OffloadedLayer, "weights", in_any_order)
    model, _ = mc.load(slots=3, progress=False)
    with model.offload, torch.no_grad():
        for length in (1, 24):
            assert torch.equal(model(IDS[:, :length]).logits, plain(IDS[:, :length]).logits)


def test_slots_are_copies_of_their_homes_and_never_written(plain):
    model, _ = mc.load(slots=3, progress=False)
    with model.offload as offload:
        model.generate(IDS, max_new_tokens=20, do_sample=False)
        checked = 0
        for number, table in enumerate(offload.pool.table):
            for expert, slot in table.items():
                home = offload.pool.homes[number][expert]
                assert zlib.crc32(slot.block.buffer) == home.crc32
                checked += 1
        assert checked == 8 * 3


IDS = torch.randint(6, 4000, (1, 24), generator=torch.Generator().manual_seed(1))


def test_prompt_lookup(plain, offloaded):
    ids = IDS[:, :8].repeat(1, 3)
    settings = {"prompt_lookup_num_tokens": 3, "max_new_tokens": 16, "do_sample": False}
    assert torch.equal(offloaded[0].generate(ids, **settings), plain.generate(ids, **settings))


def test_assisted_by_the_plain_model(plain, offloaded):
    settings = {"assistant_model": plain, "max_new_tokens": 16, "do_sample": False}
    got = offloaded[0].generate(IDS, **settings)
    assert torch.equal(got, plain.generate(IDS, max_new_tokens=16, do_sample=False))


def test_static_cache(plain, offloaded):
    settings = {"cache_implementation": "static", "max_new_tokens": 12, "do_sample": False}
    settings["disable_compile"] = True
    assert torch.equal(offloaded[0].generate(IDS, **settings), plain.generate(IDS, **settings))


def test_chunked_prefill(plain, offloaded):
    settings = {"prefill_chunk_size": 10, "max_new_tokens": 12, "do_sample": False}
    assert torch.equal(offloaded[0].generate(IDS, **settings), plain.generate(IDS, **settings))


def test_pipeline(plain, offloaded):
    model, tokenizer = offloaded
    settings = {"max_new_tokens": 12, "do_sample": False}
    said = [
        pipeline("text-generation", m, tokenizer=tokenizer)("Hello", **settings)
        for m in (model, plain)
    ]
    assert said[0] == said[1]


def test_many_rows_of_different_length(plain, offloaded):
    model, tokenizer = offloaded
    tokenizer.padding_side = "left"
    batch = tokenizer(
        ["Hi", "I need a flight to New York, please."], padding=True, return_tensors="pt"
    )
    settings = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(model.generate(**batch, **settings), plain.generate(**batch, **settings))


def test_an_unattached_model_says_so():
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TINY_MOE, quantization_config=OffloadConfig())
    with pytest.raises(mc.MoEColabError, match="were never loaded"):
        model(IDS)


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_leaves_the_model_whole(plain, monkeypatch, presses):
    """The first waits for the end of the layer, the second comes through at once; neither does
    harm."""
    model, _ = mc.load(slots=2, progress=False)
    settings = {"max_new_tokens": 12, "do_sample": False}
    expected = plain.generate(IDS, **settings)
    views = Block.views
    for at in (1, 7, 30, 31, 32):
        calls = []

        def press(self, layout, expert, calls=calls, at=at):
            calls.append(1)
            if len(calls) == at:
                for _ in range(presses):
                    signal.raise_signal(signal.SIGINT)
            return views(self, layout, expert)

        with monkeypatch.context() as patch:
            patch.setattr(Block, "views", press)
            with pytest.raises(KeyboardInterrupt):
                model.generate(IDS, **settings)
        assert len(calls) == at if presses == 2 else len(calls) >= at
        assert blocks_counted(model.offload.pool) == 8 * 2 + SPARES
        assert torch.equal(model.generate(IDS, **settings), expected)
    model.offload.close()


class Probable(mc.Policy):
    """A reader's own policy: stays whom the router finds probable; who is less so than all does not
    enter."""

    needs_logits = True

    def __init__(self, experts):
        super().__init__(experts)
        self.score = [0.0] * experts

    def observe(self, used, tokens=None):
        for _, logits in tokens:
            odds = torch.tensor(logits).softmax(0).tolist()
            self.score = [0.9 * old + new for old, new in zip(self.score, odds, strict=True)]

    def victim(self, candidates, newcomer):
        return min([*candidates, newcomer], key=self.score.__getitem__)


def test_a_policy_that_reads_the_routers_logits(plain, monkeypatch):
    seen = []
    observe = Probable.observe
    monkeypatch.setattr(
        Probable,
        "observe",
        lambda self, used, tokens: seen.append(tokens) or observe(self, used, tokens),
    )
    logits = []
    gates = [layer.mlp.gate for layer in plain.model.layers]
    handles = [g.register_forward_hook(lambda _, __, out: logits.append(out[0])) for g in gates]
    expected = plain(IDS).logits
    for handle in handles:
        handle.remove()
    model, _ = mc.load(slots=3, policy=Probable, progress=False)
    with model.offload, torch.no_grad():
        assert torch.equal(model(IDS).logits, expected)
        assert model.offload.policy == "Probable"
        assert model.offload.stats().bypasses > 0
    assert len(seen) == len(logits) == 8
    for tokens, layer in zip(seen, logits, strict=True):
        assert [list(t[1]) for t in tokens] == layer.double().tolist()
        assert [sorted(t[0]) for t in tokens] == layer.topk(2).indices.sort().values.tolist()
