"""README.md and the pages in assets/: links, commands, code and measured numbers."""

from __future__ import annotations

import re
import runpy
import shlex

import pytest
from conftest import ROOT

from moe_colab.__main__ import build_parser

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "assets").glob("*/README.md"))]
BY_PATH = {"argvalues": PAGES, "ids": lambda path: path.relative_to(ROOT).as_posix()}
TABLES = runpy.run_path(str(ROOT / "assets" / "benchmarks" / "tables.py"))


@pytest.mark.parametrize("path", **BY_PATH)
def test_links_in_the_readme_lead_somewhere(path):
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / target).exists(), f"{path.name} names {target}"
    for target in re.findall(r"`((?:tests|moe_colab)/[\w/]+\.py)`", text):
        assert (ROOT / target).is_file(), f"{path.name} names {target}"


@pytest.mark.parametrize("path", **BY_PATH)
def test_every_command_in_the_readme_exists(path):
    """Targets of make, sub-commands of moe_colab, modules and scripts."""
    text = path.read_text()
    targets = re.findall(r"^([\w-]+)(?: [\w-]+)*:(?!=)", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"(?:`|^)make ([\w-]+)", text, re.M)) <= set(targets)
    commands = re.findall(r"python -m moe_colab(?!\.) ([^`\n#]*)", text)
    for line in commands + re.findall(r"`(bench [\w-]+)`", text):
        with pytest.raises(SystemExit) as end:  # a command that does not exist ends with 2
            build_parser().parse_args([*shlex.split(line), "--help"])
        assert end.value.code == 0, line
    for module in re.findall(r"python -m (moe_colab\.[\w.]+)", text):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module
    for script in re.findall(r"python ([\w/.-]+\.py)", text):
        assert (ROOT / script).is_file(), script


def test_the_readme_names_commands_and_targets():
    """Otherwise the test above would see none."""
    text = README.read_text()
    assert all(f"make {target}" in text for target in ("chat", "test", "test-fast", "notebooks"))
    assert "python -m moe_colab bench gpu-check" in text


@pytest.mark.parametrize("path", TABLES["PAGES"], ids=lambda path: path.parent.name)
def test_the_measured_numbers_are_up_to_date(path):
    """Otherwise run `make readme`."""
    text = path.read_text()
    assert TABLES["updated"](text) == text and "<!-- /" in text


def test_a_changed_number_is_seen():
    text = README.read_text()
    wrong = text.replace("5.5 times", "5.6 times")
    assert wrong != text and TABLES["updated"](wrong) == text


def test_the_citation_names_the_paper():
    text = (ROOT / "CITATION.cff").read_text()
    for word in ("Eliseev", "Artyom", "Mazur", "Denis", "2312.17238", "moe_colab", "Apache-2.0"):
        assert word in text
