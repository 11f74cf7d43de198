"""An offloaded model says exactly what the plain one says: same logits, bit by bit, same tokens."""

from __future__ import annotations

import functools
import itertools
import shutil

import pytest
import torch
from allpairspy import AllPairs
from families import FAMILIES, PROMISED, make_checkpoint, reference
from safetensors.torch import load_file, save_file

import moe_colab as mc

pytestmark = pytest.mark.colab
AXES = {
    "family": list(PROMISED),
    "slots": [2, 3, 5, 8],
    "policy": ["lru", "lfu", "fifo", "random", "none", "whole layer"],
    "batch": [1, 3],
    "prompt": [1, 200],
    "decoding": ["greedy", "sampling", "beams"],
}
NEW_TOKENS = 6
DECODING = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 1.3, "top_k": 50},
    "beams": {"do_sample": False, "num_beams": 3},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("families"))


class World:
    """Checkpoints, plain models and what these say, each made once."""

    def __init__(self, root):
        self.root = root
        self.folder = functools.cache(lambda family: make_checkpoint(family, root / family))
        self.plain = functools.cache(lambda family: reference(self.folder(family)))
        self.said = functools.cache(lambda family, *case: say(self.plain(family), *case))


def prompt_ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(3, 128, (batch, length), generator=torch.Generator().manual_seed(length))


def say(model, batch: int, length: int, decoding: str):
    """(tokens, logits of every step) of a short generation."""
    torch.manual_seed(7)
    out = model.generate(
        prompt_ids(batch, length),
        max_new_tokens=NEW_TOKENS,
        return_dict_in_generate=True,
        output_logits=True,
        **DECODING[decoding],
    )
    return out.sequences, torch.stack(out.logits)


def assert_same(got, expected):
    assert torch.equal(got[0], expected[0]), "other tokens"
    assert torch.equal(got[1], expected[1]), "other logits"


def check(world, family, slots, policy, batch, prompt, decoding):
    settings = {"whole_layer": True} if policy == "whole layer" else {"policy": policy}
    model, _ = mc.load(world.folder(family), slots=slots, progress=False, **settings)
    with model.offload:
        assert_same(
            say(model, batch, prompt, decoding), world.said(family, batch, prompt, decoding)
        )
        if policy != "none" and policy != "whole layer":
            assert model.offload.stats().misses > 0


@pytest.mark.parametrize(list(AXES), list(AllPairs(list(AXES.values()))))
def test_every_pair_of_settings(world, family, slots, policy, batch, prompt, decoding):
    check(world, family, slots, policy, batch, prompt, decoding)


@pytest.mark.full
@pytest.mark.parametrize(list(AXES), list(itertools.product(*AXES.values())))
def test_every_setting(world, family, slots, policy, batch, prompt, decoding):
    check(world, family, slots, policy, batch, prompt, decoding)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_and_a_whole_forward(world, family):
    model, _ = mc.load(world.folder(family), slots=3, progress=False)
    with model.offload, torch.no_grad():
        ids = prompt_ids(2, 40)
        assert torch.equal(model(ids).logits, world.plain(family)(ids).logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_16_bit_sums_are_eagers_too(tmp_path, family, dtype):
    folder = make_checkpoint(family, tmp_path / family, dtype=dtype)
    model, _ = mc.load(folder, slots=3, progress=False)
    plain = reference(folder)
    with model.offload, torch.no_grad():
        ids = prompt_ids(2, 20)
        assert model.dtype == dtype
        assert torch.equal(model(ids).logits, plain(ids).logits)


def test_shards_are_read_like_one_file(tmp_path):
    folder = make_checkpoint("qwen3_moe", tmp_path / "sharded", max_shard_size="40kB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    model, _ = mc.load(folder, slots=2, progress=False)
    with model.offload:
        assert_same(say(model, 1, 20, "greedy"), say(reference(folder), 1, 20, "greedy"))


@pytest.mark.parametrize("family", PROMISED)
@pytest.mark.parametrize("damage", ["swap", "alter"])
def test_the_check_sees_a_wrong_expert(world, tmp_path, family, damage):
    folder = tmp_path / family
    shutil.copytree(world.folder(family), folder)
    spoil(folder / "model.safetensors", damage)
    model, _ = mc.load(folder, slots=3, progress=False)
    expected = world.said(family, 1, 200, "greedy")
    with model.offload, pytest.raises(AssertionError, match="other"):
        assert_same(say(model, 1, 200, "greedy"), expected)


def spoil(path, damage: str) -> None:
    """Swap experts 0 and 1 in one layer, or change one of them, whether they are stored apart or
    fused."""
    tensors = load_file(path)
    first = sorted(n for n in tensors if ("experts.0." in n or "experts." in n or "_linear" in n))
    apart = [n for n in first if ".experts.0." in n]
    if apart:
        layer = apart[0].split(".experts.0.")[0]
        pairs = [(n, n.replace(".experts.0.", ".experts.1.")) for n in apart if n.startswith(layer)]
        for zero, one in pairs:
            if damage == "swap":
                tensors[zero], tensors[one] = tensors[one], tensors[zero]
            else:
                tensors[zero] = tensors[zero] * 1.5
    else:
        fused = [n for n in first if tensors[n].dim() >= 2 and tensors[n].shape[0] == 8]
        layer = fused[0].rpartition(".")[0].split(".experts")[0].split("_moe")[0]
        for name in (n for n in fused if n.startswith(layer)):
            tensor = tensors[name].clone()
            if damage == "swap":
                tensor[[0, 1]] = tensor[[1, 0]]
            else:
                tensor[0] *= 1.5
            tensors[name] = tensor
    save_file({n: t.contiguous() for n, t in tensors.items()}, path, metadata={"format": "pt"})
