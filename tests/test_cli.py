"""The command line, `python -m moe_colab`, in processes of its own."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT

import moe_colab as mc
from moe_colab.chat import terminal
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


def test_one_shot_prints_the_answer_and_one_line():
    out = run("chat", "--prompt", "I need a flight to New York.", "--seed", "3", "--slots", "2")
    *answer, line = out.stdout.strip().splitlines()
    assert "".join(answer).strip()
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
    out = run(
        "chat", "--seed", "1", text="hello\n/stats\n/what\n/reset\n\nThanks\n/quit\nnever asked\n"
    )
    assert out.stdout.count("tokens/s") == 2
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
    assert out.stdout.count("tokens/s") == 3


@pytest.mark.parametrize("option", [("--temperature", "hot"), ("--top-p", "2")])
def test_sampling_out_of_range_is_refused(option):
    out = run("chat", *option, code=2)
    assert "is not a number from 0 to" in out.stderr


def test_without_any_input_it_still_shows_an_answer():
    out = run("chat")
    assert "tokens/s" in out.stdout


@pytest.mark.slow
def test_in_a_terminal_ctrl_c_ends_the_answer_and_not_the_program():
    primary, secondary = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "chat", "--max-new-tokens", "1900", "--slots", "1"],
        stdin=secondary, stdout=secondary, stderr=secondary, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    os.close(secondary)
    screen = Screen(primary)
    screen.wait_for("> ")
    os.write(primary, b"Tell me a very long story about a fox and a crow and a cheese.\n")
    screen.wait_for("cheese.\r\n")
    time.sleep(0.15)
    process.send_signal(signal.SIGINT)
    screen.wait_for("MB moved")  # stopped, or ended just before: then the empty line is dropped
    os.write(primary, b"\n")
    time.sleep(0.5)
    os.write(primary, b"/stats\n")
    screen.wait_for("hit rate")
    os.write(primary, b"/quit\n")
    assert process.wait(60) == 0, screen.text
    assert "Traceback" not in screen.text


def test_ctrl_c_in_a_long_answer(capsys):
    model, tokenizer = mc.load(slots=2, progress=False)
    chat = mc.ChatSession(model, tokenizer)
    model.generation_config.min_new_tokens = 1500
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
    terminal.stream(chat, chat.start("Tell me everything.", seed=1, max_new_tokens=1500))
    said = capsys.readouterr().out
    assert "(stopped)" in said and "MB moved" in said
    assert 0 < chat.turn.tokens < 1500 and chat.turn.stopped
    model.offload.close()


def test_ctrl_c_twice_in_one_answer_is_as_once(capsys):
    """The second press meets the wait for the generation's end."""
    model, tokenizer = mc.load(slots=2, progress=False)
    chat = mc.ChatSession(model, tokenizer)
    model.generation_config.min_new_tokens = 1500
    model.register_forward_pre_hook(lambda *_: time.sleep(0.6))
    for seconds in (1.5, 1.8):
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
    terminal.stream(chat, chat.start("Tell me everything.", seed=1, max_new_tokens=1500))
    assert "MB moved" in capsys.readouterr().out
    assert chat.turn.stopped
    assert "moe_colab-generation" not in [t.name for t in threading.enumerate() if t.is_alive()]
    model.offload.close()


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


class Screen:
    """What a terminal shows."""

    def __init__(self, fd: int):
        self.fd, self.text, self.seen = fd, "", 0

    def wait_for(self, wanted: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while (at := self.text.find(wanted, self.seen)) < 0:
            ready, _, _ = select.select([self.fd], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {wanted!r} in {self.text[self.seen :]!r}"
            self.text += os.read(self.fd, 4096).decode(errors="replace")
        self.seen = at + len(wanted)


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
