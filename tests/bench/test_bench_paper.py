"""The paper's four rows: model and replay count the same, and what was saved still holds."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch

import moe_colab as mc
from moe_colab.__main__ import build_parser, main
from moe_colab.bench import four_domains, paper
from moe_colab.bench.four_domains import sequences
from moe_colab.cache.stats import Counters
from moe_colab.offload.read_text import read

pytestmark = pytest.mark.colab
ROWS = list(paper.ROWS)
SAVED = mc.benchmark("paper")
LENGTH, PROMPT = 40, 32


@pytest.fixture(scope="module")
def short():
    """A document, and the trace of it."""
    options = {"speculate": 2, "stand_aside": False, "device": "cpu", "progress": False}
    model, tokenizer = mc.load(slots=3, **options)
    ids = sequences(tokenizer)["prose"][1][:, :LENGTH]
    with model.offload:
        read(model, ids)  # norms are found in the first forward
        with mc.record(model) as trace:
            read(model, ids)
    return ids, trace


@pytest.mark.parametrize("name", ROWS)
def test_engine_and_replay_count_the_same_bytes(short, name):
    ids, trace = short
    assert trace.steps == 1 + LENGTH - PROMPT
    counts = paper.run_engine(paper.ROWS[name], [ids, ids])
    assert counts == paper.replayed(mc.Trace.merge(trace, trace), paper.ROWS[name])
    if name == "full":
        assert counts["speculative_hits"] + counts["late"] > 0
    else:
        assert counts["bytes_loaded"] == counts["loads"] * trace.expert_bytes[0]
    if name == "no-cache":  # every expert that a router names, each time
        named = [len(step) for layer in range(trace.layers) for step in trace.needed(layer)]
        assert counts["loads"] == 2 * sum(named)
    if name == "whole-layer":
        assert counts["loads"] == 2 * trace.steps * trace.layers * 8


def test_a_whole_layer_is_moved_and_the_chosen_are_computed(short):
    """At a link that costs no time, the compute of a token is that of its two experts."""
    _, trace = short
    run = mc.timeline(trace, 1e15, (0.002, 0.001), slots=4, whole_layer=True)
    assert run.decode.compute_seconds == pytest.approx((LENGTH - PROMPT) * trace.layers * 0.004)


def test_a_guess_delays_a_load_by_a_chunk_at_the_most():
    """In one piece, a guess that was begun is in the way to its end."""
    trace = mc.Trace.load().only("prose")
    clock = paper.clock(trace.expert_bytes[0])
    waits = []
    for pieces in (1, 16):
        clock["chunk"] = -(-trace.expert_bytes[0] // pieces)
        waits.append(mc.timeline(trace, slots=4, speculate=4, **clock).decode.stall_seconds)
    assert waits[1] < waits[0]
    with pytest.raises(mc.MoEColabError, match="chunk"):
        mc.replay(trace, slots=4, speculate=2, chunk=0)


@pytest.mark.parametrize("name", ROWS)
def test_what_was_saved_is_counted_again(name):
    (row,) = (row for row in SAVED["rows"] if row["row"] == name)
    trace = mc.Trace.load()
    again = json.loads(json.dumps(paper.replayed(trace, paper.ROWS[name])))
    assert row["replay"] == row["engine"] == again and row["same"]
    assert row["modelled"] == paper.modelled(trace, paper.ROWS[name])
    assert row["paper"] == {"tokens_per_second": paper.ROWS[name].paper}


def test_each_row_that_loses_something_moves_more_or_takes_longer():
    modelled = [row["modelled"]["tokens_per_second"] for row in SAVED["rows"]]
    assert modelled == sorted(modelled, reverse=True) and len(set(modelled)) == 4
    factors = [before / after for before, after in pairwise(modelled)]
    assert factors[0] < min(factors[1:])  # guesses bring the least
    assert [row["row"] for row in SAVED["rows"]] == ROWS


@pytest.fixture
def few_documents(monkeypatch):
    """One short document of each domain, so that recording takes a second."""
    monkeypatch.setattr(four_domains, "DOCUMENTS", 1)
    monkeypatch.setattr(four_domains, "LENGTH", LENGTH)


def test_from_a_shell(capsys, monkeypatch, tmp_path, few_documents):
    assert main(["bench", "paper", "--row", "no-cache", "--replay"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["row"] for row in said["rows"]] == ["no-cache"] and "engine" not in said["rows"][0]
    saved = next(row for row in SAVED["rows"] if row["row"] == "no-cache")
    assert said["rows"][0]["replay"] == saved["replay"] and said["machine"]["packages"]["torch"]
    for name in ROWS:
        assert build_parser().parse_args(["bench", "paper", "--row", name]).row == name

    lie = Counters(accesses=1, bytes_loaded=7)
    monkeypatch.setattr(
        paper, "run_engine", lambda row: {n: getattr(lie, n) for n in paper.COUNTED}
    )
    assert main(["bench", "paper", "--row", "full", "--out", str(tmp_path / "x.json")]) == 1
    out, error = capsys.readouterr()
    assert "differently" in error and not json.loads(out.splitlines()[-1])["rows"][0]["same"]
    assert json.loads((tmp_path / "x.json").read_text())["rows"][0]["engine"]["bytes_loaded"] == 7


def test_other_choices_on_another_processor_are_no_failure(capsys, monkeypatch, few_documents):
    """As if this machine rounded otherwise than that of the shipped trace: every router's weights
    are changed a little, and some tokens go to other experts."""
    shipped = four_domains.recorded(paper.SOURCES[:1])
    assert paper.routed_alike(shipped, shipped) == 1
    assert paper.routed_alike(shipped, mc.Trace.load()) is None  # not of the same tokens
    load = four_domains.load

    def rounding_otherwise(*args, **settings):
        model, tokenizer = load(*args, **settings)
        torch.manual_seed(0)
        for name, weight in model.named_parameters():
            if name.endswith("gate.weight"):
                weight.data += 0.1 * weight.std() * torch.randn_like(weight)
        return model, tokenizer

    for module in (four_domains, paper):
        monkeypatch.setattr(module, "load", rounding_otherwise)
    monkeypatch.setattr(mc.Trace, "load", lambda: shipped)
    assert main(["bench", "paper", "--row", "full"]) == 0
    out = capsys.readouterr().out
    said = json.loads(out.splitlines()[-1])
    assert said["rows"][0]["same"]
    assert 0 < said["counted"]["routed_as_in_assets"] < 1 and "This machine routes" in out
    assert said["rows"][0]["engine"] != paper.replayed(shipped, paper.ROWS["full"])
