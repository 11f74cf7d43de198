"""The chat in a terminal: keys, pastes and commands through a real pseudo-terminal."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections import Counter

import pytest
from conftest import ROOT

import moe_colab as mc
from moe_colab.chat import terminal
from moe_colab.chat.commands import COMMANDS, help_text
from moe_colab.chat.suggestions import suggestions

pytestmark = pytest.mark.colab
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|[=>])")
WHERE, BOTTOM = b"\x1b[6n", b"\x1b[24;1R"  # the program asks where the cursor is; the answer
READS, READ_ENDS = b"\x1b[?2004h", b"\x1b[?2004l"  # it begins and ends to read a message
ENTER, UP, LEFT, CTRL_A, CTRL_C, CTRL_D = b"\r", b"\x1b[A", b"\x1b[D", b"\x01", b"\x03", b"\x04"


def paste(text: str) -> bytes:
    """What a terminal sends for a paste: Enter for each line end, between two marks."""
    return b"\x1b[200~" + text.replace("\n", "\r").encode() + b"\x1b[201~"


class Terminal:
    """A program with a terminal of its own, of 24 rows: `send` presses keys, `wait_for` reads the
    screen."""

    def __init__(self, *command: str):
        self.fd, inside = pty.openpty()
        termios.tcsetwinsize(inside, (24, 80))
        self.process = subprocess.Popen(
            [sys.executable, *command],
            preexec_fn=lambda: os.login_tty(inside),
            env={**os.environ, "TERM": "xterm"},
            cwd=ROOT,
        )
        os.close(inside)
        self.raw, self.seen, self.marks = b"", 0, Counter()

    @property
    def text(self) -> str:
        """All that was shown, without what moves the cursor or changes colours."""
        return ESCAPES.sub("", self.raw.decode(errors="replace"))

    def send(self, keys: bytes) -> None:
        while keys:
            self.read(0)  # so that neither side waits for the other to read
            keys = keys[os.write(self.fd, keys[:1000]) :]

    def read(self, seconds: float) -> bool:
        if not select.select([self.fd], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # Linux: the program has ended
            return False
        self.raw += data
        for _ in range(data.count(WHERE)):
            os.write(self.fd, BOTTOM)
        return bool(data)

    def wait_for(self, wanted: str, seconds: float = 60) -> None:
        """Read until `wanted` is shown, after the last one that was waited for."""
        end = time.monotonic() + seconds
        while (at := self.text.find(wanted, self.seen)) < 0:
            assert self.read(end - time.monotonic()), f"no {wanted!r} in {self.text[self.seen :]!r}"
        self.seen = at + len(wanted)

    def wait_for_mark(self, mark: bytes, seconds: float = 60) -> None:
        """Read until the program has sent this mark once more: READS or READ_ENDS."""
        end, self.marks[mark] = time.monotonic() + seconds, self.marks[mark] + 1
        while self.raw.count(mark) < self.marks[mark]:
            assert self.read(end - time.monotonic()), f"no {mark!r} in {self.raw!r}"

    def end(self) -> int:
        """Wait for the end of the program; its exit code."""
        while self.read(60):
            pass
        return self.process.wait(60)


@pytest.fixture
def start():
    """Starts programs in terminals, and kills those that are left at the end."""
    begun = []

    def start(*command: str) -> Terminal:
        begun.append(Terminal(*command))
        return begun[-1]

    yield start
    for one in begun:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        os.close(one.fd)


# ---------------------------------------------------------------------- one message
READ = """
import hashlib
from moe_colab.chat.prompt import questions
for text in questions():
    print("GOT", len(text), hashlib.md5(text.encode()).hexdigest(), flush=True)
print("END")
"""


def got(text: str) -> str:
    return f"GOT {len(text)} {hashlib.md5(text.encode()).hexdigest()}"


@pytest.fixture
def lines(start) -> Terminal:
    """A program that tells what it reads."""
    screen = start("-c", READ)
    screen.wait_for_mark(READS)
    return screen


def enter(screen: Terminal, keys: bytes, expected: str) -> None:
    screen.send(keys + ENTER)
    screen.wait_for(got(expected))
    screen.wait_for_mark(READS)


LONG = "".join(f"{number}: a line, with ünïcödé.\n" for number in range(400)).strip()


@pytest.mark.parametrize(
    "text",
    ["one\ntwo\n\n    three", LONG, "x" * 10_000, "/quit\nis no command here"],
    ids=["lines", "400 lines", "10,000 characters", "slash"],
)
def test_a_paste_arrives_whole_as_one_message(lines, text):
    assert len(LONG) > 10_000
    enter(lines, paste(text), text)
    enter(lines, b"and then?", "and then?")
    lines.send(CTRL_D)
    lines.wait_for("END")
    assert lines.end() == 0


def test_arrow_keys_edit_and_bring_back_messages(lines):
    enter(lines, b"capitel" + LEFT + b"\x7fa" + CTRL_A + b"a ", "a capital")
    enter(lines, "größe".encode(), "größe")
    enter(lines, UP, "größe")
    enter(lines, UP + UP + b" city", "a capital city")
    enter(lines, b"/re\t", "/re")  # /retry or /reset
    enter(lines, b"/st\t", "/stats")


def test_ctrl_c_drops_a_message_and_ctrl_d_leaves(lines):
    lines.send(b"half a mess" + CTRL_C)
    lines.wait_for("(Ctrl-D leaves)")
    lines.wait_for_mark(READS)
    enter(lines, b"whole", "whole")
    lines.send(CTRL_D)
    lines.wait_for("END")
    assert lines.end() == 0 and "half" not in re.sub("half a mess.*", "", lines.text)


# ---------------------------------------------------------------------- the whole chat
@pytest.mark.slow
def test_a_conversation_in_a_terminal(start, tmp_path):
    screen = start("-m", "moe_colab", "chat", "--max-new-tokens", "8")
    screen.wait_for("tiny-moe is a toy")
    screen.wait_for("What is the capital of France?")
    screen.wait_for_mark(READS)
    screen.send(paste("Tell me a story\nabout a dragon\nand a fox.") + ENTER)
    screen.wait_for_mark(READS)
    screen.send(paste("A long message. " * 700) + ENTER)
    screen.wait_for("shorten it")
    for keys, answer in (
        (b"/help", "kept in memory only"),
        (b"/tell", "unknown command /tell"),
        (b"/stats", "bytes loaded"),
        (f"/save {tmp_path}/talk.json".encode(), "(saved as"),
    ):
        screen.wait_for_mark(READS)
        screen.send(keys + ENTER)
        screen.wait_for(answer)
    screen.wait_for_mark(READS)
    screen.send(b"/quit" + ENTER)
    assert screen.end() == 0 and "Traceback" not in screen.text
    assert screen.text.count("tokens/s") == 1  # in /stats
    turns = json.loads((tmp_path / "talk.json").read_text())["turns"]
    assert [turn["question"] for turn in turns] == ["Tell me a story\nabout a dragon\nand a fox."]


ENDLESS = """
import moe_colab as mc
from moe_colab.chat.terminal import converse
model, tokenizer = mc.load(slots=2, progress=False)
model.generation_config.min_new_tokens = 1500
model.generation_config.max_new_tokens = 1500
converse(mc.ChatSession(model, tokenizer), {"seed": 1}, stats=True, as_json=False)
"""


@pytest.mark.slow
def test_ctrl_c_ends_the_answer_and_not_the_program(start):
    screen = start("-c", ENDLESS)
    for question in (b"Tell me everything.", b"More."):
        screen.wait_for_mark(READS)
        screen.send(question + ENTER)
        screen.wait_for_mark(READ_ENDS)
        time.sleep(1)
        screen.send(CTRL_C)
        screen.wait_for("(stopped)")
        screen.wait_for("tokens/s")
    screen.wait_for_mark(READS)
    screen.send(CTRL_D)
    assert screen.end() == 0 and "Traceback" not in screen.text


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_stops_a_long_answer(capsys, presses):
    """A second press meets the wait for the end of the token."""
    model, tokenizer = mc.load(slots=2, progress=False)
    chat = mc.ChatSession(model, tokenizer)
    model.generation_config.min_new_tokens = 1500
    forwards = itertools.count(1)

    def press(*_) -> None:
        if next(forwards) == 5:
            for _ in range(presses):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.4)

    model.register_forward_pre_hook(press)
    answer = chat.start("Tell me everything.", seed=1, max_new_tokens=1500)
    terminal.stream(chat, answer, stats=presses == 1)
    said = capsys.readouterr().out
    assert "(stopped)" in said and ("MB moved" in said) == (presses == 1)
    assert 0 < chat.turn.tokens < 1500 and chat.turn.stopped
    assert "moe_colab-answer" not in [t.name for t in threading.enumerate() if t.is_alive()]
    model.offload.close()


def test_ctrl_c_while_a_template_runs_ends_the_question_and_not_the_chat(capsys, monkeypatch):
    model, tokenizer = mc.load(slots=2, progress=False)
    encode = type(tokenizer).apply_chat_template
    calls = itertools.count(1)

    def interrupted(self, *args, **kwargs):
        if next(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        return encode(self, *args, **kwargs)

    monkeypatch.setattr(type(tokenizer), "apply_chat_template", interrupted)
    monkeypatch.setattr(terminal, "questions", lambda: iter(["Hi", "And in Paris?", "/quit"]))
    with model.offload:
        chat = mc.ChatSession(model, tokenizer)
        terminal.converse(chat, {"seed": 1, "max_new_tokens": 4}, stats=False, as_json=False)
    assert "(stopped)" in capsys.readouterr().out
    assert [turn.question for turn in chat.turns] == ["And in Paris?"]


@pytest.mark.slow
def test_bytes_that_are_no_text_are_no_traceback():
    typed = b"Hello \xff\xfe\n/save \x00.md\n/save ~nobody-here/a.md\nAgain\n"
    command = [sys.executable, "-m", "moe_colab", "chat", "--max-new-tokens", "2"]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, input=typed, capture_output=True, cwd=ROOT, env=env)
    told = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == 0 and "Traceback" not in told
    assert "cannot be the name of a file" in told and "cannot be written" in told


# ---------------------------------------------------------------------- what is said
def test_every_command_is_explained_and_does_something(capsys, tmp_path):
    assert all(f"  {name} " in help_text() for name in COMMANDS)
    model, tokenizer = mc.load(slots=2, progress=False)
    with model.offload:
        chat = mc.ChatSession(model, tokenizer)
        list(chat.ask("Hi", max_new_tokens=2))
        for name in [name for name in COMMANDS if name != "/quit"]:
            rest = f"{tmp_path}/talk.md" if name == "/save" else ""
            terminal.run_command(chat, name, rest, {"max_new_tokens": 2}, stats=False)
            said = capsys.readouterr().out
            assert said.strip() and "unknown" not in said, name
        terminal.run_command(chat, "/halp", "", {}, stats=False)
        assert "unknown command /halp" in capsys.readouterr().out


def test_turns_that_were_left_out_are_named(capsys, monkeypatch):
    model, tokenizer = mc.load(slots=2, progress=False)
    with model.offload:
        chat = mc.ChatSession(model, tokenizer)
        monkeypatch.setattr(tokenizer, "model_max_length", 60)
        for number in range(6):
            answer = chat.start(f"{number} tell me more, and more", max_new_tokens=8)
            terminal.stream(chat, answer, stats=False)
    assert chat.turn.left_out > 0
    assert "(the context is full: the " in capsys.readouterr().out


def test_the_greeting_fits_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    model, tokenizer = mc.load(slots=2, progress=False)
    with model.offload:
        suggested = suggestions(mc.ChatSession(model, tokenizer))
    text = terminal.greeting(suggested)
    assert max(map(len, text.splitlines())) <= 50
    assert " ".join(suggested.about.split()) in " ".join(text.split())
    assert all(question in text for question in suggested.questions) and "/help" in text
