"""How a notebook shows a MoEColabError: cells run by a real kernel."""

from __future__ import annotations

import re

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

pytestmark = [pytest.mark.colab, pytest.mark.slow]
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
MISTAKE = "import moe_colab as mc\nmc.inspect('nowhere')"
CHAIN = "try:\n    1 / 0\nexcept Exception as error:\n    raise mc.MoEColabError('x.') from error"


def shown(*cells: str) -> list[str]:
    """The errors that these cells show, one for each cell, as text without colours."""
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    client = NotebookClient(
        notebook, allow_errors=True, resources={"metadata": {"path": str(ROOT)}}, timeout=120
    )
    client.execute()
    outputs = [cell["outputs"] for cell in notebook["cells"]]
    assert [[one["output_type"] for one in cell] for cell in outputs] == [["error"]] * len(cells)
    return [COLOURS.sub("", "\n".join(cell[0]["traceback"])) for cell in outputs]


def test_a_notebook_shows_the_sentence_and_on_request_the_traceback():
    first, traceback, verbose, second, chain = shown(MISTAKE, "%tb", "%tb Verbose", CHAIN, "%tb")
    sentence = "MoEColabError: nowhere is not a folder: name a store."
    assert first.splitlines() == [sentence, "(%tb shows where it was raised)"]
    for text in (traceback, verbose):
        assert "Traceback (most recent call last)" in text and "in store_folder" in text
        assert text.strip().endswith(sentence)
    values = re.compile(r"store = 'nowhere'|= undefined")  # IPython 7 knows none of Python 3.13
    assert values.search(verbose) and not values.search(traceback)
    assert second.startswith("MoEColabError: x.\n") and "ZeroDivisionError" not in second
    assert "ZeroDivisionError: division by zero" in chain and "direct cause" in chain


def test_other_errors_are_shown_as_always():
    (text,) = shown("1 / 0")
    assert "Traceback (most recent call last)" in text
