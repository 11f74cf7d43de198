"""The quality bench on a model of two layers, and what was measured on the shipped model."""

from __future__ import annotations

import hashlib
import json
import math
from functools import partial

import pytest
from conftest import ROOT, TINY_MOE, first_layers

import moe_colab as mc
from moe_colab.__main__ import main
from moe_colab.bench.allocation import allocation_table
from moe_colab.bench.quality import table

FILE = ROOT / "assets" / "benchmarks" / "quality.json"
PAGE = (ROOT / "assets" / "benchmarks" / "README.md").read_text()
quantize = partial(mc.quantize, group_size=64, progress=False)
SCORES = {
    *("perplexity", "ratio", "ratio_low", "ratio_high", "tie"),
    *("agreement", "agreement_low", "agreement_high"),
}
BITS = {
    *("attention_bits", "attention_group", "expert_bits", "expert_group", "bytes"),
    *("attention_bits_per_weight", "expert_bits_per_weight"),
}


@pytest.fixture(scope="module")
def shipped():
    return json.loads(FILE.read_text())


@pytest.fixture(scope="module")
def quick(two_layers, tmp_path_factory):
    """(the report, what was printed)"""
    out = tmp_path_factory.mktemp("out") / "quality.json"
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *text, **how: lines.extend(text[0].split("\n")))
        assert main(["bench", "quality", str(two_layers), "--quick", "--out", str(out)]) == 0
    return json.loads(out.read_text()), lines


def check_row(row: dict, full: float) -> None:
    assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert 0 <= row["agreement_low"] <= row["agreement"] <= row["agreement_high"] <= 1
    assert row["ratio"] == pytest.approx(row["perplexity"] / full)
    assert row["tie"] == (row["ratio_low"] <= 1 <= row["ratio_high"])


def check_report(report: dict) -> None:
    rows = report["rows"]
    assert report["bench"] == "quality" and report["machine"]["packages"]["torch"]
    assert report["tokens"] == sum(report["text"].values())
    for row in rows:
        assert set(row) == SCORES | BITS
        check_row(row, rows[0]["perplexity"])
    assert rows[0]["ratio"] == rows[0]["agreement"] == 1.0
    allocation = report["allocation"]
    assert report["tokens"] > allocation["judged_tokens"]
    documents = allocation["fitted_documents"] + allocation["judged_documents"]
    assert documents == sum(report["documents"].values())
    matrices = [row["matrix"] for row in allocation["sensitivity"]["matrices"]]
    for one in (allocation, *allocation["other_budgets"]):
        uniform, allocated = one["rows"]
        full = uniform["perplexity"] / uniform["ratio"]
        for row, name in (
            (uniform, "uniform"),
            (allocated, "allocated"),
            (one["by_rise"], "by_rise"),
            (one["blind"], "blind"),
        ):
            assert row["name"] == name and set(row) == SCORES | {"name", "bytes"}
            assert row["bytes"] <= one["budget_bytes"] == uniform["bytes"]
            check_row(row, full)
            if row is not allocated:
                over = one[f"allocated_over_{name}"]
                assert over["ratio"] == pytest.approx(allocated["perplexity"] / row["perplexity"])
                gain = allocated["agreement"] - row["agreement"]
                assert over["agreement_gain"] == pytest.approx(gain)
                assert over["tie"] == (over["ratio_low"] <= 1 <= over["ratio_high"])
        assert sorted(one["formats"]) == sorted(matrices)


# ---------------------------------------------------------------------- a run
@pytest.mark.slow
def test_the_rows_are_of_the_stores_that_they_name(quick, two_layers, tmp_path):
    report, _ = quick
    check_report(report)
    assert report["documents"] == dict.fromkeys(report["text"], 4) and len(report["text"]) == 5
    rows = {(row["attention_bits"], row["expert_bits"]): row for row in report["rows"]}
    assert set(rows) == {(16, 16), (16, 2), (2, 16), (2, 2)}
    for (attention, experts), row in rows.items():
        store = tmp_path / f"{attention}-{experts}"
        summary = quantize(two_layers, store, attention_bits=attention, expert_bits=experts)
        assert row["bytes"] == summary.total_bytes
        assert row["expert_bits_per_weight"] == summary.bits_per_weight
        assert (row["attention_bits_per_weight"] == 16) == (attention == 16)
    saved = rows[16, 16]["bytes"] - rows[2, 16]["bytes"]
    weights = 2 * 192 * (192 + 64 + 64 + 192)
    assert saved == pytest.approx(
        weights * (16 - rows[2, 2]["attention_bits_per_weight"]) / 8, abs=4096
    )
    agreements = [rows[key]["agreement"] for key in ((16, 16), (2, 16), (2, 2))]
    assert agreements == sorted(agreements, reverse=True) and agreements[2] < 0.95


@pytest.mark.slow
def test_two_models_scored_again(quick, two_layers, tmp_path):
    """The figures of a row and its interval, by the public functions."""
    report, _ = quick
    row = next(r for r in report["rows"] if r["attention_bits"] == 16 and r["expert_bits"] == 2)
    scored = []
    for bits in (16, 2):
        quantize(two_layers, tmp_path / f"{bits}", attention_bits=16, expert_bits=bits)
        model, tokenizer = mc.load(tmp_path / f"{bits}", kernels="plain", progress=False)
        texts = mc.evaluation_texts(tokenizer)
        chosen = [(text, name) for name, all in texts.items() for text in sorted(all, key=len)[:4]]
        with model.offload:
            scored.append(mc.perplexity(model, tokenizer, [text for text, _ in chosen]))
    assert scored[1].tokens == report["tokens"]
    assert scored[1].perplexity == pytest.approx(row["perplexity"], rel=1e-3)
    found = mc.compare(scored[1], scored[0], domains=[name for _, name in chosen])
    assert found.ratio.low == pytest.approx(row["ratio_low"], rel=1e-3)
    assert found.ratio.high == pytest.approx(row["ratio_high"], rel=1e-3)
    assert found.agreement.low == pytest.approx(row["agreement_low"], abs=0.01)


@pytest.mark.slow
def test_what_is_printed(quick, tmp_path):
    report, lines = quick
    assert json.loads(lines[-1]) == report
    assert lines[:-1] == [
        *table(report["rows"]).split("\n"),
        *allocation_table(report["allocation"]).split("\n"),
    ]


def test_a_tie_is_printed_as_a_tie(shipped):
    row = {**shipped["rows"][-1], "ratio": 0.9991, "ratio_low": 0.9981, "ratio_high": 1.0002}
    for tie, shown in ((True, "| tie |"), (False, "| x0.999 (0.998 to 1.000) |")):
        assert shown in table([{**row, "tie": tie}])


def test_mistakes(tmp_path, capsys):
    assert main(["bench", "quality", "--out", str(tmp_path / "no" / "where.json")]) == 2
    assert "its folder does not exist" in capsys.readouterr().err
    first_layers(1, tmp_path)
    for path in tmp_path.glob("token*"):
        path.unlink()
    assert main(["bench", "quality", str(tmp_path)]) == 2
    assert "has no tokenizer" in capsys.readouterr().err


# ---------------------------------------------------------------------- what was measured
def test_the_table_is_whole_and_of_the_model_that_ships(shipped):
    check_report(shipped)
    weights = (TINY_MOE / "model.safetensors").read_bytes()
    assert shipped["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert shipped["tokens"] > 20_000 and set(shipped["text"]) == {
        path.stem for path in (ROOT / "assets" / "evaluation").glob("*.txt")
    }
    formats = {(16, None), *((bits, group) for bits in (2, 3, 4) for group in (16, 64))}
    found = [
        (row["attention_bits"], row["attention_group"], row["expert_bits"], row["expert_group"])
        for row in shipped["rows"]
    ]
    assert len(found) == 49
    assert set(found) == {(*attention, *experts) for attention in formats for experts in formats}


def test_bytes_follow_from_the_formats(shipped):
    """Counted again for the shipped model's shapes, padding and all."""

    def blob(matrices, bits: int, group: int, page: int) -> int:
        if bits == 16:
            fields = [2 * rows * columns for rows, columns in matrices]
        else:
            fields = [
                size
                for rows, columns in matrices
                for size in (
                    *([rows * columns // 4, rows * columns // 8] if bits == 3 else []),
                    *([rows * columns * bits // 8] if bits != 3 else []),
                    *[rows * columns // group] * 2,  # scales, zeros
                    8 * rows,  # a line for each
                )
            ]
        inside = sum(256 * math.ceil(size / 256) for size in fields)
        return page * math.ceil(inside / page)

    expert = [(512, 192), (192, 256)]
    attention = [(192, 192), (64, 192), (64, 192), (192, 192)]
    for row in shipped["rows"]:
        experts = 64 * blob(expert, row["expert_bits"], row["expert_group"], 4096)
        weights = 64 * sum(rows * columns for rows, columns in expert)
        assert row["expert_bits_per_weight"] == 8 * experts / weights
        low = 8 * sum(
            blob([one], row["attention_bits"], row["attention_group"], 256) for one in attention
        )
        weights = 8 * sum(rows * columns for rows, columns in attention)
        assert row["attention_bits_per_weight"] == 8 * low / weights
        rest = row["bytes"] - experts - low  # norms, gates, embedding, and a header
        assert 0 <= rest - 2 * (4096 * 192 + 8 * 8 * 192 + 17 * 192) <= 8192


def test_fewer_bits_agree_less(shipped):
    """At one group size, of the experts and of the attention."""
    rows = {
        (r["attention_bits"], r["attention_group"], r["expert_bits"], r["expert_group"]): r
        for r in shipped["rows"]
    }
    for group in (16, 64):
        experts = [rows[16, None, bits, group]["agreement"] for bits in (4, 3, 2)]
        attention = [rows[bits, group, 16, None]["agreement"] for bits in (4, 3, 2)]
        assert 1 > experts[0] > experts[1] > experts[2] > 0.5
        assert 1 > attention[0] > attention[1] > attention[2] > 0.5
        assert rows[16, None, 2, group]["agreement"] < rows[2, group, 16, None]["agreement"]


def test_the_readme_quotes_the_table(shipped):
    assert table(shipped["rows"]) in PAGE
    assert allocation_table(shipped["allocation"]) in PAGE
    assert f"{shipped['tokens']:,} tokens" in PAGE


def test_what_the_readme_says_of_allocation(shipped):
    """It agrees more than uniform bits, than choosing without measuring, and than choosing by the
    rise of the loss. Its perplexity is a tie with uniform bits; by the rise it is lower."""
    allocation = shipped["allocation"]
    for one in (allocation, *allocation["other_budgets"]):
        for name in ("uniform", "blind", "by_rise"):
            assert one[f"allocated_over_{name}"]["agreement_gain_low"] > 0
        assert one["allocated_over_uniform"]["tie"]
        assert one["allocated_over_by_rise"]["ratio_low"] > 1
