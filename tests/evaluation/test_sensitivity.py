"""What a matrix costs in fewer bits, how many bytes every choice takes, and what is chosen."""

from __future__ import annotations

import dataclasses
import math
from random import Random

import pytest
import torch
from families import make_checkpoint

import moe_colab as mc
from moe_colab.checkpoint.source import open_checkpoint
from moe_colab.evaluation.comparison import Interval
from moe_colab.evaluation.sensitivity import (
    FORMATS,
    Loss,
    attention_ways,
    expert_ways,
    relative_errors,
)

pytestmark = pytest.mark.colab
TEXTS = ["The fox looked at the river and did not know what to do.", "What is the weather today?"]
SOME = (mc.Format(2, 64), mc.Format(3, 64), mc.Format(4, 16))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def measured(two_layers):
    return mc.measure_sensitivity(two_layers, TEXTS, formats=SOME, device="cpu", progress=False)


def kept(source, store, overrides):
    options = {"attention_bits": 16, "expert_bits": 16, "progress": False}
    return mc.quantize(source, store, overrides=overrides, **options)


def test_a_loss_is_that_of_this_matrix_alone(two_layers, measured, tmp_path):
    experts = [f"experts.{n}.{name}" for n in (0, 1) for name in ("gate_up_proj", "down_proj")]
    attention = [f"model.layers.{n}.self_attn.{part}_proj" for n in (0, 1) for part in "qkvo"]
    assert [*measured.matrices] == [*measured.frame().matrix]
    assert {*measured.matrices} == {*experts, *attention}
    assert measured.matrices["experts.1.down_proj"].weights == 8 * 192 * 256
    model, tokenizer = mc.load(two_layers, slots=8, kernels="plain", progress=False)
    with model.offload:
        full = mc.perplexity(model, tokenizer, TEXTS)
    for names, found in (
        (["experts.1.down_proj"], measured.matrices["experts.1.down_proj"].loss),
        ([attention[0]], measured.matrices[attention[0]].loss),
        (["experts.*", "*_proj"], measured.together),
    ):
        store = tmp_path / str(len(names)) / names[0].replace("*", "all")
        kept(two_layers, store, dict.fromkeys(names, SOME[0]))
        model, tokenizer = mc.load(store, slots=8, kernels="plain", progress=False)
        with model.offload:
            scores = mc.perplexity(model, tokenizer, TEXTS)
        rise = math.log(scores.perplexity / full.perplexity)
        assert found.rise.value == pytest.approx(rise, abs=1e-6) and rise != 0.0
        assert found.disagreement.value == pytest.approx(1 - scores.agreement(full))
        for interval in (found.rise, found.disagreement):
            assert interval.low <= interval.value <= interval.high


def test_bytes_are_those_of_the_store(two_layers, measured, tmp_path):
    """Of whatever choice, to the byte."""
    random = Random(0)
    for number in range(3):
        chosen = [random.choice(ways) for ways in measured.parts]
        overrides = {name: fmt for way, _ in chosen for name, fmt in way.items()}
        summary = kept(two_layers, tmp_path / f"{number}", overrides)
        expected = measured.fixed_bytes + sum(nbytes for _, nbytes in chosen)
        assert summary.total_bytes == expected


@pytest.mark.parametrize("family", ("gpt_oss", "qwen2_moe"))
def test_bytes_and_errors_of_other_families(family, tmp_path):
    """Matrices kept as [in, out] and biases; shared experts."""
    wide = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64}
    wide |= {"head_dim": 16, "shared_expert_intermediate_size": 64}
    source = make_checkpoint(family, tmp_path / "source", changes=wide)
    checkpoint = open_checkpoint(source, None, progress=False)
    forms = (mc.Format(2, 16), mc.Format(3, 32))
    parts = [*expert_ways(checkpoint, forms), *attention_ways(checkpoint, forms)]
    made = []
    for number, fmt in enumerate(forms):
        chosen = [ways[-number] for ways in parts]  # the first: all in the first form
        assert all(set(way.values()) == {fmt} for way, _ in chosen)
        overrides = {name: fmt for way, _ in chosen for name in way}
        made.append(
            kept(source, tmp_path / f"{number}", overrides).total_bytes
            - sum(nbytes for _, nbytes in chosen)
        )
    assert made[0] == made[1]  # what does not depend on the choice
    frame = mc.inspect(tmp_path / "1").frame()
    frame = frame[frame.bits == 3]
    errors = relative_errors(checkpoint, forms, CPU)
    assert len(errors) == sum(len(way) for way, _ in (ways[0] for ways in parts))
    for name, (weights, by_form) in errors.items():
        _, layer, matrix = name.split(".", 2) if name.startswith("experts.") else ("", None, name)
        rows = frame[frame.matrix == matrix]
        rows = rows if layer is None else rows[rows.layer == int(layer)]
        assert weights == rows.weights.sum()
        assert rows.relative_error.min() <= by_form[forms[1]] * (1 + 1e-6)
        assert by_form[forms[1]] <= rows.relative_error.max() * (1 + 1e-6)


def test_finer_formats_lose_less(measured):
    """As the squares of the errors in the weights, for both scores."""
    for matrix in measured.matrices.values():
        errors = [matrix.errors[fmt] for fmt in SOME]
        assert errors[0] > errors[1] > errors[2] > 0
        at_first = (max(0.0, matrix.loss.rise.value), matrix.loss.disagreement.value**2)
        for by, lost in zip(("perplexity", "agreement"), at_first, strict=True):
            for fmt, error in zip(SOME, errors, strict=True):
                expected = lost * (error / errors[0]) ** 2
                assert matrix.expected(fmt, SOME[0], by) == pytest.approx(expected)


def test_what_is_minded_gets_the_bits(measured, two_layers, tmp_path):
    """Losses set by hand: two matrices are minded, the others are not at all."""
    minded = ("experts.0.down_proj", "model.layers.1.self_attn.v_proj")
    matrices = {}
    for name, matrix in measured.matrices.items():
        lost = Interval(*[float(name in minded)] * 3)
        matrices[name] = dataclasses.replace(matrix, loss=Loss(lost, lost))
    found = dataclasses.replace(measured, matrices=matrices)
    largest = found.fixed_bytes + sum(max(n for _, n in ways) for ways in found.parts)
    smallest = found.fixed_bytes + sum(min(n for _, n in ways) for ways in found.parts)
    overrides = mc.allocate(found, (smallest + largest) // 2)
    assert overrides == mc.allocate(found, (smallest + largest) // 2, by="perplexity")
    assert {name for name, fmt in overrides.items() if fmt == SOME[2]} == set(minded)
    assert {fmt for name, fmt in overrides.items() if name not in minded} == {SOME[0]}
    assert kept(two_layers, tmp_path / "s", overrides).total_bytes <= (smallest + largest) // 2
    assert set(mc.allocate(found, smallest).values()) == {SOME[0]}
    with pytest.raises(mc.MoEColabError, match="allow more bytes"):
        mc.allocate(found, smallest - 1)
    with pytest.raises(mc.MoEColabError, match="choose 'agreement' or 'perplexity'"):
        mc.allocate(found, smallest, by="feeling")


def test_the_usual_formats_are_the_coarsest_first():
    assert FORMATS[0] == min(FORMATS, key=lambda fmt: (fmt.bits, -fmt.group))
    assert len(set(FORMATS)) == 6
