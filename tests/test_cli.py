"""The command line, `python -m moe_colab`, in processes of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import moe_colab as mc
from moe_colab.__main__ import TRACEBACK, main
from moe_colab.checkpoint.reader import Checkpoint
from moe_colab.quantization.pack import cached_store

COMMAND = [sys.executable, "-m", "moe_colab"]


def run(*args: str, text: str = "", code: int = 0) -> subprocess.CompletedProcess:
    """The command with these arguments and this input; its exit code must be `code`."""
    command, pipes = [*COMMAND, *args], {"input": text, "capture_output": True, "text": True}
    out = subprocess.run(command, timeout=240, cwd=ROOT, **pipes)
    assert out.returncode == code, out.stderr[-2000:]
    return out


@pytest.fixture(scope="module")
def store() -> Path:
    return cached_store(Checkpoint(ROOT / "assets" / "tiny-moe"), None, progress=False).folder


def test_one_shot_prints_the_answer_and_with_stats_one_line():
    asked = ("chat", "--prompt", "What is the capital of France?", "--seed", "3", "--slots", "2")
    plain, out = run(*asked), run(*asked, "--stats")
    *answer, line = out.stdout.strip().splitlines()
    assert "\n".join(answer).strip() == plain.stdout.strip() != ""
    assert line.startswith("[") and "tokens/s" in line and "MB moved" in line


@pytest.mark.slow
def test_json_is_one_object_on_the_last_line_and_slots_do_not_change_the_text():
    texts = []
    for slots, policy in (("2", "lfu"), ("8", "lru"), ("4,4,4,4,2,2,2,3", "random"), ("3", "none")):
        out = run(
            "chat", "--prompt", "Can you play some music?", "--seed", "5", "--json",
            "--slots", slots, "--policy", policy, "--max-new-tokens", "12",
        )  # fmt: skip
        said = json.loads(out.stdout.splitlines()[-1])
        stats = said["stats"]
        brought = stats["speculative_hits"] + stats["late"]
        assert stats["accesses"] == stats["hits"] + brought + stats["misses"] > 0
        assert (stats["hits"] == 0) == (policy == "none")
        texts.append(said["text"])
    assert len(set(texts)) == 1


def test_a_conversation_from_a_pipe():
    talk = "hello\n/stats\n/what\n/reset\n\nThanks\n/quit\nnever asked\n"
    out = run("chat", "--seed", "1", "--stats", text=talk)
    assert out.stdout.count("[") == 2 and out.stdout.count("tokens/s") == 3
    assert "accesses" in out.stdout and "unknown command /what" in out.stdout
    assert "forgotten" in out.stdout and "never" not in out.stdout


@pytest.mark.slow
def test_retry_save_and_sampling_in_a_conversation(tmp_path):
    talk = f"/retry\nhello\n/retry\n/save {tmp_path}/talk.json\n/save {tmp_path}/talk.txt\nThanks\n"
    out = run("chat", "--temperature", "0", "--system", "You are a cook.", text=talk)
    assert "nothing to try again" in out.stderr and "must end with .json or .md" in out.stderr
    kept = json.loads((tmp_path / "talk.json").read_text())
    assert [turn["question"] for turn in kept["turns"]] == ["hello"]
    assert kept["system"] == "You are a cook."
    answer = kept["turns"][0]["text"]
    assert out.stdout.count(answer) == 2  # greedy: the same again
    assert "tokens/s" not in out.stdout


@pytest.mark.parametrize("option", [("--temperature", "hot"), ("--top-p", "2")])
def test_sampling_out_of_range_is_refused(option):
    out = run("chat", *option, code=2)
    assert "is not a number from 0 to" in out.stderr


def test_without_any_input_it_still_shows_an_answer():
    out = run("chat")
    assert "a toy" in out.stdout and "/help" in out.stdout
    question, answer = out.stdout.strip().splitlines()[-2:]
    assert question == "> What is the capital of France?" and answer


@pytest.mark.parametrize(
    "option", [["--seed", "-1"], ["--slots", "many"], ["--max-new-tokens", "0"]]
)
def test_a_wrong_option_is_named(option):
    out = run("chat", "--prompt", "x", *option, code=2)
    assert "Traceback" not in out.stderr
    assert "is not a whole number from" in out.stderr


@pytest.mark.slow
def test_a_reader_who_leaves_is_no_error():
    process = subprocess.Popen(
        [*COMMAND, "chat", "--prompt", "I need a flight.", "--seed", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["chat", "/no/such/folder"], "/no/such/folder"),
        (["chat", "--slots", "99"], "slots must be"),
        (["chat", "--policy", "best"], "unknown policy 'best'"),
        (["chat", "--device", "cuda", "--prompt", "x"], "GPU"),
        (["chat", "--dtype", "int3"], "int3"),
        (["inspect", "assets"], "not a finished store"),
        (["verify", "nowhere"], "not a folder"),
        (["bench", "gpu-check"], "GPU"),
        (["bench", "gpu-check", "--device", "cpu", "--out", "/no/such/folder/x.json"], "/no/such"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(args, word, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out = run(*args, code=2)
    assert out.stdout == ""
    assert out.stderr.startswith("moe_colab: ") and word in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1


def test_inspect_counts_bytes_and_bits(store):
    facts = json.loads(run("inspect", str(store), "--json").stdout)
    assert facts["layers"] == 8 and facts["experts"] == 64
    assert facts["expert_parameters"] == 9_437_184 and facts["bits_per_weight"] == 16
    assert facts["expert_bytes"] == 9_437_184 * 2
    files = {path.name: path.stat().st_size for path in store.iterdir()}
    assert facts["dense_bytes"] == files["dense.safetensors"]
    assert facts["total_bytes"] == facts["dense_bytes"] + facts["expert_bytes"]
    text = run("inspect", str(store)).stdout
    assert "mixtral" in text and "16.000 bits" in text


def test_verify_reads_every_byte(store):
    report = json.loads(run("verify", str(store), "--json").stdout)
    assert report["nbytes"] == sum(path.stat().st_size for path in store.iterdir())
    assert report["files"] == len(list(store.iterdir()))
    assert report["experts"] == 64


@pytest.mark.slow
def test_gpu_check_runs_on_a_cpu_too(tmp_path):
    out = run(
        "bench", "gpu-check", "--device", "cpu", "--quick", "--out", str(tmp_path / "check.json")
    )
    report = json.loads(out.stdout.splitlines()[-1])
    assert report == json.loads((tmp_path / "check.json").read_text())
    assert report["wrong"] == [] and report["checked"] == 2 * 5 * 8
    assert min(report["link_bytes_per_second"].values()) > 1e6
    assert report["machine"]["packages"]["torch"]


@pytest.mark.slow
def test_gpu_check_needs_a_checkpoint(store):
    out = run("bench", "gpu-check", str(store), "--device", "cpu", code=2)
    assert "is a store" in out.stderr


def test_gpu_check_tells_a_wrong_token(monkeypatch, capsys):
    from moe_colab.bench import gpu_check

    said = gpu_check.tokens
    calls = []

    def lie(model, ids):
        calls.append(model)
        return said(model, ids) + (len(calls) == 3)

    monkeypatch.setattr(gpu_check, "tokens", lie)
    monkeypatch.setattr(gpu_check, "POLICIES", ["lru"])
    monkeypatch.setattr(gpu_check, "NEW_TOKENS", 4)
    assert gpu_check.run(None, "cpu", None, quick=True) == 1
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["wrong"]) == 1


def test_the_version_is_told():
    assert mc.__version__ in run("--version").stdout


def test_a_trace_is_replayed(tmp_path):
    out = run("replay", "--slots", "4", "--link", "100MB/s", "--compute", "0.001", "--json")
    said, trace = json.loads(out.stdout), mc.Trace.load()
    counts = mc.replay(trace, slots=4)
    assert said["loads"] == counts.loads == said["timeline"]["stats"]["loads"]
    assert said["timeline"]["decode"]["tokens"] == counts.forwards - 12
    out = run("replay", "--slots", "4", "--speculate", "2", "--link", "500MB/s", "--json")
    guessed = mc.replay(trace, slots=4, speculate=2, link=5e8)
    assert json.loads(out.stdout)["speculative_hits"] == guessed.speculative_hits > 0
    trace.only("code").save(tmp_path / "code.npz")
    out = run("replay", f"{tmp_path}/code.npz", "--budget", "30", "--policy", "optimal")
    assert mc.replay(trace.only("code"), "optimal", budget=30).line() in out.stdout
    for wrong, message in (([], "--budget 32"), (["--slots", "auto"], "number of slots")):
        out = run("replay", *wrong, code=2)
        assert message in out.stderr


def test_an_unexpected_error_is_one_sentence_unless_its_traceback_is_wanted(monkeypatch, capsys):
    def broken(**options):
        raise KeyError("a\nb")

    monkeypatch.setattr("moe_colab.__main__.run_inspect", broken)
    assert main(["inspect", "x"]) == 1
    told = capsys.readouterr().err
    assert "KeyError" in told and told.count("\n") == 1
    monkeypatch.setenv(TRACEBACK, "1")
    with pytest.raises(KeyError):
        main(["inspect", "x"])
