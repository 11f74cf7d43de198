"""The check after quantizing: what it reads, what it says, and when it says noise."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections import Counter

import pytest
import torch
from conftest import TINY_MOE
from families import make_checkpoint
from safetensors.torch import load_file, save_file

import moe_colab as mc
from moe_colab.evaluation import check as check_module
from moe_colab.evaluation.check import check_store
from moe_colab.offload.text_ids import text_ids
from moe_colab.store.check import Check

LOW = {"expert_bits": 2, "attention_bits": 2, "progress": False}


@pytest.fixture(scope="module")
def brittle(tmp_path_factory):
    """The small model, with neurons of very different sizes in the experts: the same function,
    which 2 bits cannot hold."""
    folder = tmp_path_factory.mktemp("brittle") / "model"
    shutil.copytree(TINY_MOE, folder, ignore=shutil.ignore_patterns("training"))
    tensors = load_file(folder / "model.safetensors")
    random = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(".w3.weight")]:
        down = name.replace(".w3.", ".w2.")
        sizes = 2.0 ** torch.randint(-7, 8, (len(tensors[name]),), generator=random)
        tensors[name] = (tensors[name].float() * sizes[:, None]).half()
        tensors[down] = (tensors[down].float() / sizes).half()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def by_hand(store) -> tuple[int, float, float]:
    """Tokens, perplexity and perplexity by frequency of the texts that a check reads."""
    model, tokenizer = mc.load(store, progress=False)
    by_domain = [iter(texts) for texts in mc.evaluation_texts(tokenizer).values()]
    ids, nll = [], 0.0
    for number in range(100):
        text = next(by_domain[number % len(by_domain)])
        ids += text_ids(tokenizer, text)[0, 1:].tolist()
        scores = mc.perplexity(model, tokenizer, text, window=check_module.WINDOW)
        nll += math.log(scores.perplexity) * scores.tokens
        if len(ids) >= check_module.TOKENS:
            break
    shares = [count / len(ids) for count in Counter(ids).values()]
    by_frequency = math.exp(-sum(share * math.log(share) for share in shares))
    return len(ids), math.exp(nll / len(ids)), by_frequency


@pytest.mark.slow
def test_it_says_what_it_read_and_keeps_it(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = mc.quantize("shipped", tmp_path / "store", progress=False)
    assert report.bits == {4: 128}, "the default"
    check = report.check
    tokens, perplexity, by_frequency = by_hand(tmp_path / "store")
    assert check.tokens == tokens >= check_module.TOKENS
    assert check.perplexity == pytest.approx(perplexity, rel=1e-6)
    assert check.by_frequency == pytest.approx(by_frequency, rel=1e-6)
    assert check.bits == 4 and 0.05 < check.error < 0.1 and not check.noise
    assert mc.inspect(tmp_path / "store").check == check
    assert f"check: {check.line()}" in report.text() and "it predicts text" in check.line()
    assert mc.verify(tmp_path / "store").files > 0


@pytest.mark.slow
def test_noise_is_called_noise_and_what_to_use_instead(tmp_path, brittle):
    with pytest.warns(UserWarning, match=r"this model is noise, make it with 4 bits\.$"):
        report = mc.quantize(brittle, tmp_path / "low", **LOW)
    assert report.check.noise and report.check.perplexity > report.check.by_frequency
    full = mc.quantize(brittle, tmp_path / "full", expert_bits=16, attention_bits=8, progress=False)
    assert not full.check.noise, "the model itself is as good as it was"


def test_where_nothing_can_be_read_the_error_must_do(tmp_path):
    wide = {"intermediate_size": 64}
    source = make_checkpoint("mixtral", tmp_path / "model", changes=wide)  # it has no tokenizer
    low = mc.quantize(source, tmp_path / "low", **LOW)
    assert low.check.tokens == 0 and not low.check.ran and not low.check.noise
    assert "could not read a text" in low.check.line()
    assert "many models into noise: make it with 4 bits" in low.check.line()
    high = mc.quantize(source, tmp_path / "high", expert_bits=8, progress=False)
    assert "lost 0% of their norm" in high.check.line() or "lost 1% of" in high.check.line()
    assert "noise" not in high.check.line()


def test_time_is_limited(tmp_path, monkeypatch):
    mc.quantize("shipped", tmp_path / "store", check=False, progress=False)
    assert mc.inspect(tmp_path / "store").check is None
    monkeypatch.setattr(check_module, "SECONDS", 0.0)
    check = check_store(mc.inspect(tmp_path / "store"))
    assert check.tokens == 0 and "could not read" in check.line()


def test_full_precision_needs_no_check(tmp_path):
    keep = {"expert_bits": 16, "attention_bits": 16, "progress": False}
    assert mc.quantize("shipped", tmp_path / "store", **keep).check is None


@pytest.mark.parametrize(
    "wrong",
    [5, [], {}, {"tokens": "many"}, {"tokens": -1}, {"perplexity": math.nan}, {"bits": None}],
    ids=str,
)
def test_a_damaged_result_is_one_sentence(wrong):
    right = Check(900, 40.0, 300.0, 0.08, 4).as_dict()
    assert Check.from_dict(right).as_dict() == right
    assert Check.from_dict(json.loads(json.dumps(right))) == Check(**right)
    spoilt = {**right, **wrong} if isinstance(wrong, dict) and wrong else wrong
    with pytest.raises((ValueError, TypeError)):
        Check.from_dict(spoilt)
