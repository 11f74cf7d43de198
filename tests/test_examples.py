"""The examples of README.md and of the docstrings run as they stand, in an empty folder, and print
something."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest
from conftest import ROOT

import moe_colab as mc
from moe_colab.__main__ import build_parser

FILES = sorted((ROOT / "moe_colab").rglob("*.py"))
README = (ROOT / "README.md").read_text()
WITH_NETWORK = ("git clone ", "DISABLE_CUDA=1 pip install ", "make ")  # these install packages
MINUTES = {"evaluation/sensitivity.py"}  # examples that take that long


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def examples() -> Iterator[tuple[str, str]]:
    """(file, code) of the examples in docstrings: the indented lines that use `mc.`."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for code in indented(ast.get_docstring(node) or ""):
                    if "mc." in code:
                        yield path.relative_to(ROOT / "moe_colab").as_posix(), code


def indented(text: str) -> list[str]:
    """The blocks after an empty line, each line of which is indented by 4 spaces or more."""
    found = re.findall(r"(?:^|\n\n)((?: {4}.*\n?)+)", text)
    return [inspect.cleandoc("\n" + block) for block in found]


EXAMPLES = [
    pytest.param(name, code, id=name, marks=[pytest.mark.full] if name in MINUTES else [])
    for name, code in examples()
]


@pytest.fixture
def runs(tmp_path, monkeypatch, capsys):
    """Runs code in an empty folder; what it prints."""

    def runs(code: str, **names) -> str:
        monkeypatch.chdir(tmp_path)
        exec(code, names)
        return capsys.readouterr().out

    yield runs
    mc.close_all()


# ---------------------------------------------------------------------- README
@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_python_of_the_readme(runs, number, tmp_path):
    code = blocks("python")[number]
    *lines, last = runs(code).splitlines()
    if "mc.record" in code:
        assert "60 steps (1 of prompts)" in lines[0]
        rates = re.findall(r"hit rate ([\d.]+)% \(decode ([\d.]+)%\)", "\n".join(lines))
        assert len(rates) == 3
        assert all(0 < float(number) < 100 for pair in rates for number in pair)
        assert (tmp_path / last).read_text().startswith("<!doctype html>")
    else:
        assert lines and 0 < float(last) <= 1  # an answer, and a hit rate


@pytest.mark.slow
def test_the_shell_commands_of_the_readme(tmp_path):
    """Those that need no network; `make chat` is a command of moe_colab."""
    lines = [line.partition("#")[0].strip() for line in "".join(blocks("bash")).splitlines()]
    mine = [line for line in lines if line and not line.startswith(WITH_NETWORK)]
    assert "-m moe_colab chat $(ARGS)" in (ROOT / "Makefile").read_text()
    given = re.findall(r"`make chat ARGS='(.*?)'`", README)
    mine += [f"python -m moe_colab chat {arguments}" for arguments in given]
    assert len(mine) >= 2
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for line in mine:
        name, *arguments = shlex.split(line)
        assert name == "python", line
        command = [sys.executable, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
        assert done.returncode == 0 and len(done.stdout.split()) > 3, done.stderr
    assert not list(tmp_path.iterdir())


def test_every_example_of_the_readme_says_how_long_it_takes():
    """In the sentence before it, or beside the command."""
    for code in blocks("python"):
        sentence = README.partition(f"\n\n```python\n{code}")[0].rpartition("\n\n")[2]
        assert re.search(r"in\sabout\s\d+\sseconds", sentence), sentence
    for line in re.findall(r"^make (?:chat|test-fast) .*", README, re.M):
        assert re.search(r"\d+ (seconds|minutes)", line), line


# ---------------------------------------------------------------------- docstrings
def test_there_are_examples_and_a_block_is_found_whole():
    assert len(EXAMPLES) >= 5
    text = "One.\n\n    a = 1\n        b\n\nTwo.\n  no\n\n    mc.c"
    assert indented(text) == ["a = 1\n    b", "mc.c"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), EXAMPLES)
def test_an_example_in_a_docstring(runs, name, code):
    """With `mc` imported, and nothing else."""
    assert runs(code, mc=mc).split()


def test_the_usage_lines_in_docstrings_are_those_of_the_parser(capsys):
    """`python -m moe_colab ...` in the docstring of a module: its options are all there are."""
    docs = (ast.get_docstring(ast.parse(path.read_text())) for path in FILES)
    lines = re.findall(
        r"^    python -m moe_colab (.*(?:\n +\[.*)*)", "\n".join(filter(None, docs)), re.M
    )
    assert len(lines) >= 5
    for line in lines:
        with pytest.raises(SystemExit) as end:
            build_parser().parse_args([*line.partition("[")[0].split(), "--help"])
        assert end.value.code == 0
        options = set(re.findall(r"--[\w-]+", capsys.readouterr().out)) - {"--help"}
        assert options == set(re.findall(r"--[\w-]+", line)), line
