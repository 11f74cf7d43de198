"""A view: what it carries reaches its script whole, whatever it is; nobody else is asked."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from browser import plain_page

import moe_colab as mc
from moe_colab.notebook.views import view
from moe_colab.notebook.views.view import View, packed
from moe_colab.plots import Picture

pytestmark = pytest.mark.colab
HOSTILE = [
    "</script><script>window.harmed = 1</script>",
    "<!--<script>",
    "\"'`${1}\\",
    "\u2028\u2029\x00\x07",
    "👩‍👩‍👧 עברית العربية",
    "x" * 10_000,
    "&lt;&amp;",
]
ARRAYS = {
    name: np.array([[0, 1, 2], [3, 4, 255 if name[0] == "u" else -5]], name)
    for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "float32")
}


def given(view: str) -> str:
    """The JSON as a browser finds it: up to the first thing that could end the element."""
    return re.search(r'<script type="application/json">(.*?)</script', view, re.S)[1]


@pytest.fixture
def plain(monkeypatch):
    """A view whose script does nothing but read its data."""
    own = {"plain.css": "", "plain.js": "function plain(root) { window.read = unpack(root); }"}
    asset = view.web_asset
    monkeypatch.setattr(view, "web_asset", lambda name: own[name] if name in own else asset(name))
    return View("plain", 'a "title" & <b>', {"texts": HOSTILE, **ARRAYS}, lambda: Picture(1))


def test_texts_and_arrays_arrive_as_they_were(plain):
    assert json.loads(given(plain.html))["texts"] == HOSTILE
    assert "\u2028" not in plain.html
    assert "&quot;title&quot; &amp; &lt;b&gt;" in plain.html


def test_a_lone_surrogate_does_not_break_the_page():
    assert json.loads(packed({"text": "a\ud83db"})) == {"text": "a?b"}


@pytest.mark.parametrize("value", [np.zeros(2), np.zeros(2, np.int64), np.zeros(2, "f2"), {1}])
def test_what_javascript_cannot_hold_is_refused(value):
    with pytest.raises(TypeError, match="hold"):
        packed({"value": value})


def test_big_endian_arrays_are_turned():
    told = json.loads(packed({"a": np.array([1, 2], ">u2")}))["a"]
    assert told == {"dtype": "uint16", "shape": [2], "base64": "AQACAA=="}


@pytest.mark.browser
def test_the_script_reads_what_was_given_and_nothing_runs(plain, chromium):
    """Twice on one page, each with its own."""
    with plain_page(chromium, plain.document.replace("</body>", plain.html + "</body>")) as watched:
        read = watched.page.evaluate("() => window.read")
        assert read["texts"] == HOSTILE
        for name, array in ARRAYS.items():
            assert read[name]["shape"] == [2, 3]
            values = watched.page.evaluate(f"() => Array.from(window.read.{name}.values)")
            assert values == array.ravel().tolist()
        assert watched.page.evaluate("() => window.harmed") is None
        assert watched.page.locator(".moe-view").count() == 2
        watched.check_quiet()


def test_every_fragment_has_a_name_of_its_own(plain):
    names = {re.match(r'<div id="([\w-]+)"', plain.html)[1] for _ in range(5)}
    assert len(names) == 5
    assert plain.html.count(re.match(r'<div id="([\w-]+)"', plain.html)[1]) == 0  # a new one


def test_saved_as_page_and_picture(plain, tmp_path):
    page = plain.save(tmp_path / "view.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "default-src 'none'" in page
    assert plain.save(tmp_path / "view.png").read_bytes() == plain.picture.png()
    for path in (tmp_path / "view.svg", tmp_path / "nowhere" / "view.html"):
        with pytest.raises(mc.MoEColabError, match=r"must end in|cannot be written"):
            plain.save(path)
