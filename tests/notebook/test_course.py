"""The notebooks as a course: first cells, links between them, the glossary, and their length."""

from __future__ import annotations

import json
import re
import runpy

import pytest
from conftest import ROOT

from moe_colab.trace.outcomes import SIGNS

STAMP = runpy.run_path(str(ROOT / "notebooks" / "stamp.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BY_NAME = {"argvalues": NOTEBOOKS, "ids": lambda path: path.stem}
GLOSSARY = ROOT / "notebooks" / "GLOSSARY.md"
GLOSSARY_URL = STAMP["address"]("notebooks/GLOSSARY.md", STAMP["GITHUB"])
FIVE = ("expert", "router", "slot", "hit", "miss")
LONGEST = 35  # cells


def cells_of(path) -> list[str]:
    """The texts of the Markdown cells."""
    cells = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


def anchors() -> set[str]:
    """The anchors that GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", GLOSSARY.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("path", **BY_NAME)
def test_the_first_cell_says_what_one_learns_how_long_it_takes_and_what_it_needs(path):
    first = cells_of(path)[0]
    goals = re.search(r"\*\*At the end you can\*\*\n\n((?:- .+\n)+)", first)
    assert goals and 3 <= len(goals[1].splitlines()) <= 5
    assert re.search(r"\*\*Time:\*\* about \d+ minutes.*the cells run in \d+ seconds", first)
    assert re.search(r"\*\*You need:\*\* .*GPU", first)


@pytest.mark.parametrize("path", **BY_NAME)
def test_links_to_the_previous_and_the_next_notebook(path):
    """As a file, for GitHub and JupyterLab, and as an address on Colab."""
    first, last = cells_of(path)[0], cells_of(path)[-1]
    place = NOTEBOOKS.index(path)
    for other in NOTEBOOKS:
        near = abs(NOTEBOOKS.index(other) - place) == 1
        assert (f"]({other.name})" in first) == near, other.name
        assert (STAMP["address"](f"notebooks/{other.name}") in first) == (near or other == path)
    after = NOTEBOOKS[place + 1 :]
    assert f"]({after[0].name})" in last if after else f"{STAMP['origin']()[0]}/blob/" in last


@pytest.mark.parametrize("path", **BY_NAME)
def test_pictures_are_files_of_the_repository_at_their_public_address(path):
    """Colab opens a notebook without the repository around it."""
    raw = STAMP["RAW"] + STAMP["origin"]()[0].removeprefix(STAMP["GITHUB"]) + "/"
    pictures = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", "\n".join(cells_of(path)))
    assert pictures
    for _, address in pictures:
        branch, file = address.removeprefix(raw).split("/", 1)
        assert address.startswith(raw) and branch == STAMP["origin"]()[1]
        assert (ROOT / file).is_file(), address


@pytest.mark.parametrize("path", **BY_NAME)
def test_five_words_are_explained_before_they_are_used(path):
    """In the first cell, under its question, each with a link."""
    heading, question, explained, *_ = cells_of(path)[0].split("\n\n")[2:]
    assert heading.startswith("# ") and question.startswith("**")
    for word in FIVE:
        assert f"{word}s](" in explained or f"{word}](" in explained, word
        assert f"{GLOSSARY_URL}#{word} " in explained


@pytest.mark.parametrize("path", [*NOTEBOOKS, ROOT / "README.md", GLOSSARY], ids=lambda p: p.name)
def test_every_linked_term_is_in_the_glossary(path):
    text = "\n".join(cells_of(path)) if path.suffix == ".ipynb" else path.read_text()
    linked = re.findall(r"GLOSSARY\.md#([^)\s]+)", text)
    linked += re.findall(r"\]\(#([^)\s]+)", text) if path == GLOSSARY else []
    assert set(linked) <= anchors()
    assert len(linked) >= (5 if path.name != "README.md" else 0)


def test_every_word_of_the_counts_is_in_the_glossary():
    """Each outcome of an access, and what the figures and tables count beside them."""
    counts = {*SIGNS, "access", "load", "eviction", "hit rate", "stall", "policy"}
    assert {re.sub("[_ ]", "-", name) for name in counts} <= anchors()


def test_every_entry_of_the_glossary_is_short_and_explains_its_word():
    entries = re.findall(r"^### (.+)\n\n((?:(?!#).+\n?)+)", GLOSSARY.read_text(), re.M)
    assert len(entries) == len({name for name, _ in entries}) > 40
    for name, text in entries:
        assert 30 < len(text) < 320 and text.strip().endswith("."), name


def test_an_unknown_term_is_noticed():
    with pytest.raises(ValueError, match="no entry 'slod'"):
        STAMP["with_terms"]("a [slot](GLOSSARY.md#slod)")


def test_a_term_is_linked_once_and_again_in_the_same_way():
    once = STAMP["with_terms"]("a [slot](GLOSSARY.md#slot).")
    assert once.startswith(f'a [slot]({GLOSSARY_URL}#slot "Room on the device')
    assert once.endswith('").')
    assert STAMP["with_terms"](once) == once


@pytest.mark.parametrize("path", **BY_NAME)
def test_a_notebook_is_not_too_long(path):
    assert len(json.loads(path.read_text())["cells"]) <= LONGEST


def test_the_readme_lists_the_notebooks_with_their_titles():
    readme = (ROOT / "README.md").read_text()
    for path in NOTEBOOKS:
        title = STAMP["title"](path.name)
        assert re.fullmatch(r"\d\d · .+", title) and title[:2] == path.name[:2]
        assert f"| [`{path.stem}`](notebooks/{path.name}) | {title[5:]} |" in readme
