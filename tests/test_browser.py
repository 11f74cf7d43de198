"""The browser harness itself, on notebooks that it writes: what the other browser tests rely on.

The streaming notebook is the pattern that works on Colab's kernel: a thread generates into a queue,
an asyncio task on the kernel's loop drains it into one widget about eight times a second, and the
cell returns at once, so that the kernel hears the Stop button meanwhile."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from browser import ROOT, STACKS, CellFailed, write_notebook
from packaging.requirements import Requirement

STREAM = """
import asyncio, queue, threading, time
import ipywidgets as widgets
from IPython.display import display

pieces, stopping, tasks = queue.Queue(), threading.Event(), []
prompt = widgets.Text(placeholder="say something")
send, stop = widgets.Button(description="Send"), widgets.Button(description="Stop")
reply, heard = widgets.HTML("(empty)"), widgets.HTML("")
for widget, name in [(prompt, "prompt"), (reply, "reply"), (heard, "heard")]:
    widget.add_class(name)

def generate(text):
    for number in range(400):
        if stopping.is_set():
            break
        pieces.put(f" {text}{number}")
        time.sleep(0.02)
    pieces.put(None)

async def drain():
    while True:
        await asyncio.sleep(0.12)
        while not pieces.empty():
            piece = pieces.get()
            if piece is None:
                reply.value += " [end]"
                return
            reply.value += piece

def on_send(_):
    stopping.clear()
    threading.Thread(target=generate, args=(prompt.value,), daemon=True).start()
    tasks.append(asyncio.get_event_loop().create_task(drain()))

def on_stop(_):
    stopping.set()
    heard.value = "stopping after this token"

send.on_click(on_send)
stop.on_click(on_stop)
display(widgets.VBox([prompt, widgets.HBox([send, stop]), heard, reply]))
"""
VERSIONS = """
import json
from importlib.metadata import version
names = "ipykernel ipython ipywidgets jupyter_client torch transformers huggingface_hub accelerate"
print(json.dumps({name: version(name).split("+")[0] for name in names.split()}))
"""


@pytest.fixture
def opened(lab, tmp_path):
    """Open a notebook of these cells."""

    def open_(*cells: str, **settings):
        return lab.open(write_notebook(tmp_path / "demo.ipynb", cells), **settings)

    return open_


def test_stop_is_heard_while_text_streams(opened, tmp_path):
    with opened(STREAM) as notebook:
        notebook.run_all()
        box = notebook.by_class("prompt").locator("input")
        box.fill("tok")
        box.press("Tab")  # leaving the field sends its value
        notebook.button("Send").click()
        notebook.wait_text("reply", "tok5")
        clicked = time.monotonic()
        notebook.button("Stop").click()
        notebook.wait_text("heard", "stopping after this token")
        waited = time.monotonic() - clicked
        text = notebook.wait_text("reply", "[end]", timeout=5)
        assert waited < 2, "an answer of 8 seconds"
        assert "tok399" not in text
        assert notebook.screenshot(tmp_path / "page.png").stat().st_size > 10_000
        assert notebook.screenshot(tmp_path / "reply.png", css="reply").stat().st_size > 100
        notebook.check_quiet()


def test_a_failing_cell_is_noticed(opened):
    with opened("print('fine')", "1/0", "print('never')") as notebook:
        with pytest.raises(CellFailed, match="cell 1 failed: ZeroDivisionError: division by zero"):
            notebook.run_all()
        assert notebook.outputs()[2] == []
        assert notebook.run_cell(2)[0]["text"] == "never\n"
        with pytest.raises(CellFailed, match="cell 1 failed"):
            notebook.run_cell(1)


def test_a_failing_callback_is_noticed(opened):
    cell = "import ipywidgets as w\nb = w.Button(description='Go')\nb.on_click(lambda _: 1 / 0)\nb"
    with opened(cell) as notebook:
        notebook.run_all()
        notebook.check_quiet()
        notebook.button("Go").click()
        notebook.wait_idle()
        assert "ZeroDivisionError" in "".join(notebook.stray())
        with pytest.raises(AssertionError, match="ZeroDivisionError"):
            notebook.check_quiet()


OUTSIDE = {
    "an image": """HTML('<img src="http://example.com/x">')""",
    "a script": """HTML('<script src="https://example.com/x"></script>')""",
    "a frame": """HTML('<iframe src="https://example.com/x"></iframe>')""",
    "a style": """HTML('<style>@import url("https://example.com/x");</style>')""",
    "fetch": """Javascript('fetch("https://example.com/x").catch(() => {})')""",
    "a number": """HTML('<img src="http://192.0.2.1/x">')""",
    "a socket": """Javascript('new WebSocket("wss://example.com/x")')""",
}


def test_requests_to_other_hosts_are_refused_and_recorded(opened):
    cells = [f"from IPython.display import HTML, Javascript\n{html}" for html in OUTSIDE.values()]
    with opened("print('nothing')", *cells) as notebook:
        notebook.run_cell(0)
        notebook.check_quiet()
        for index, what in enumerate(OUTSIDE, 1):
            before = len(notebook.outside)
            notebook.run_cell(index)
            notebook.page.wait_for_timeout(300)
            found = notebook.outside[before:]
            assert {address.split("/")[-1] for address in found} == {"x"}, what
        image = notebook.page.locator(".jp-OutputArea img").first
        assert image.evaluate("image => image.naturalWidth") == 0
        with pytest.raises(AssertionError, match=r"other hosts: http://example\.com/x"):
            notebook.check_quiet()


def test_errors_of_the_page_are_collected(opened):
    cell = "from IPython.display import Javascript\nJavascript('{}')"
    code = ['console.error("said")', 'setTimeout(() => { throw new Error("thrown") })']
    with opened(*(cell.format(line) for line in code)) as notebook:
        notebook.run_all()
        notebook.page.wait_for_timeout(300)
        errors = "\n".join(notebook.console_errors)
        assert "said" in errors
        assert "thrown" in errors


class Hello(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")


FETCH = """
import urllib.request
print(urllib.request.urlopen("{address}", timeout=20).read())
"""
LOOK = """
import json, os
print(json.dumps({**os.environ, "folder": os.getcwd()}))
"""


def test_a_kernel_reaches_this_machine_and_no_other(opened):
    with HTTPServer(("127.0.0.1", 0), Hello) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        places = [f"http://127.0.0.1:{server.server_port}", "http://example.com"]
        with opened(*(FETCH.format(address=address) for address in places)) as notebook:
            notebook.run_cell(0)
            assert notebook.text(0) == "b'hello'\n"
            with pytest.raises(CellFailed, match="Connection refused"):
                notebook.run_cell(1)


@pytest.mark.parametrize("given", [{}, {"HF_HUB_OFFLINE": "0", "GREETING": "hello"}])
def test_a_kernel_runs_in_the_notebooks_folder_with_what_it_is_given(opened, tmp_path, given):
    with opened(LOOK, kernel_env=given) as notebook:
        before = (tmp_path / "demo.ipynb").read_bytes()
        notebook.run_all()
        seen = json.loads(notebook.text(0))
    assert [path.name for path in tmp_path.iterdir()] == ["demo.ipynb"]
    assert (tmp_path / "demo.ipynb").read_bytes() == before
    assert seen["folder"] == str(tmp_path)
    wanted = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "GREETING": None, **given}
    assert {name: seen.get(name) for name in wanted} == wanted


def test_restart_begins_anew(opened):
    cell = "print(globals().get('count', 0))\ncount = globals().get('count', 0) + 1"
    with opened(cell) as notebook:
        seen = []
        for run in (notebook.run_all, notebook.run_all, notebook.restart_and_run_all):
            run()
            seen.append(notebook.text(0))
    assert seen == ["0\n", "1\n", "0\n"]


def test_the_theme_changes_the_page(opened):
    shade = "() => getComputedStyle(document.body).getPropertyValue('--jp-layout-color0').trim()"
    with opened("1", theme="dark") as notebook:
        dark = notebook.page.evaluate(shade)
        notebook.set_theme("light")
        light = notebook.page.evaluate(shade)
        notebook.set_theme("dark")
        assert notebook.page.evaluate(shade) == dark != light
    with opened("1") as notebook:  # light, whatever was chosen before
        assert notebook.page.evaluate(shade) == light
        notebook.check_quiet()


def test_the_kernel_has_the_pinned_versions(lab, opened):
    file = {"modern": "constraints.txt", "colab": "constraints-colab.txt"}[lab.stack]
    (library,) = (STACKS[lab.stack].parent / "lib").glob("python3.*")
    python = {"python_version": library.name.removeprefix("python")}
    lines = [line for line in (ROOT / file).read_text().splitlines() if "==" in line]
    pins = {
        pin.name: str(pin.specifier).removeprefix("==")
        for pin in map(Requirement, lines)
        if pin.marker is None or pin.marker.evaluate(python)
    }
    with opened(VERSIONS) as notebook:
        notebook.run_all()
        seen = json.loads(notebook.text(0))
    assert seen == {name: pins.get(name, seen[name]) for name in seen}
    if lab.stack == "colab":
        assert set(seen) <= set(pins)
        kernel = {name: seen[name] for name in ("ipykernel", "ipython", "ipywidgets")}
        assert kernel == {"ipykernel": "6.17.1", "ipython": "7.34.0", "ipywidgets": "7.7.1"}
        assert seen["jupyter_client"] == "7.4.9"
