"""Every notebook in JupyterLab in a browser, on both package sets: run, and its cells once more;
the first one run anew, too."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_again_and_again_and_asks_nobody(lab, tmp_path, path):
    shutil.copy(path, tmp_path)  # what it saves is not left beside the original
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    with lab.open(tmp_path / path.name) as notebook:
        notebook.run_all()
        if path == NOTEBOOKS[0]:  # which holds the most, a model and a conversation
            notebook.restart_and_run_all()
        for index in range(len(cells)):
            notebook.run_cell(index)
        notebook.check_quiet()
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
