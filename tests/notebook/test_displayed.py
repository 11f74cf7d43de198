"""What is shown in notebooks, in any other session: it says how to save it, and that works."""

from __future__ import annotations

import re
import sys
from subprocess import run

import pytest
from conftest import ROOT

import moe_colab as mc
from moe_colab.notebook.views.displayed import Displayed

pytestmark = pytest.mark.colab
BEGINS = {".html": b"<!doctype html>", ".png": b"\x89PNG", ".md": b"# Chat"}


@pytest.fixture(scope="module")
def views():
    """One of each type that displays itself."""
    trace = mc.Trace.load()
    model, tokenizer = mc.load(slots=4, progress=False)
    with model.offload:
        made = {
            "xray": mc.xray(trace, label="prose", tokens=10),
            "stepper": mc.stepper(trace, tokens=2),
            "picture": mc.plots.hit_rates(mc.tables.hit_rates(trace.only("prose"), ["lru"])),
            "chat": mc.ChatWidget(model, tokenizer),
            "explorer": mc.Explorer(model, tokenizer),
            "routing": mc.RoutingWidget(trace),
            "cache": mc.CacheWidget(trace),
            "speculation": mc.SpeculationWidget(trace),
            "quantize": mc.QuantizeWidget(),
        }
        yield made


def types_below(kind: type) -> set[type]:
    return {kind}.union(*map(types_below, kind.__subclasses__()))


def test_there_is_one_of_each_type(views):
    """Of the public ones, and of the views that functions return."""
    wanted = {one for one in types_below(Displayed) if getattr(mc, one.__name__, None) is one}
    assert len(wanted) >= 6 and wanted <= set(map(type, views.values()))


@pytest.mark.parametrize(
    "name", "xray stepper picture chat explorer routing cache speculation quantize".split()
)
def test_what_it_says_saves_it(views, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    view, said = views[name], repr(views[name])
    assert "A notebook shows it" in said and "\n" not in said
    calls = re.findall(r'\.[\w.]+\("[\w.]+"\)', said)
    assert calls
    for call in calls:
        path = eval(f"view{call}", {"view": view})
        content = (tmp_path / path).read_bytes()
        assert content.startswith(BEGINS[path.suffix]) and len(content) > 40, call


def test_the_page_of_a_panel_holds_what_it_shows(views, tmp_path):
    cache = views["cache"]
    page = cache.save(tmp_path / "cache.html").read_text()
    assert page.count("<img ") == 1 and cache.facts.value in page and "hit rate" in page
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "")
    routing = views["routing"].save(tmp_path / "routing.html").read_text()
    assert routing.count("<img ") == 3


def test_other_endings_and_folders_that_are_missing_are_refused(views, tmp_path):
    for name in ("xray", "picture", "cache"):
        with pytest.raises(mc.MoEColabError, match="must end in"):
            views[name].save(tmp_path / "it.docx")
        ending = next(iter(views[name].forms))
        with pytest.raises(mc.MoEColabError, match="cannot be written"):
            views[name].save(tmp_path / "nowhere" / f"it{ending}")


CODE = """import moe_colab as mc
mc.xray(mc.Trace.load(), label="prose", tokens=10)
"""


@pytest.mark.parametrize("shell", [["-i", "-q"], ["-m", "IPython", "--simple-prompt", "--quiet"]])
def test_in_a_terminal_it_is_said_once(shell, tmp_path):
    """In Python, and in IPython, where nothing but text can be displayed."""
    env = {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path), "HOME": str(tmp_path), "TERM": ""}
    done = run([sys.executable, *shell], input=CODE, capture_output=True, text=True, env=env)
    assert done.stdout.count('save it with .save("xray.html") or .save("xray.png")') == 1
    assert "Error" not in done.stdout + done.stderr
