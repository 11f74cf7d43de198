"""The box: an environment as on Colab, an empty folder, the notebook and nothing else. In a browser
from the first cell to the first answers.

What the box is made of: the pinned package set without moe_colab and without one package that it
needs; the package in a git repository; a folder of wheels for a package index; a hub on 127.0.0.1
with a gated model; and a google.colab (tests/colab_box) that has one secret, and whose kernel loses
what widgets say in the background, so that only what the page asks for is seen.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from browser import STACKS
from conftest import ROOT, TINY_MOE, commit_working_tree
from fake_hub import FakeHub

NOTEBOOK = ROOT / "notebooks" / "01_chat.ipynb"
QUANTIZE = ROOT / "notebooks" / "03_quantize.ipynb"
GATED = "ibm-granite/granite-3.1-1b-a400m-instruct"  # as the notebook's form offers them
OPEN = "allenai/OLMoE-1B-7B-0924-Instruct"
COLAB = [pytest.param("colab", marks=[pytest.mark.browser, pytest.mark.xdist_group("colab")])]
LEFT_OUT = ("markdown_it_py", "mdurl")  # moe_colab needs the one, and that the other
TO_QUANTIZE = ("hqq", "einops", "termcolor")  # as on Colab, where hqq is not installed
TOKENS = 400  # an answer of some seconds: Stop must come in time
QUESTION = "What is the weather in London tomorrow?"
# The page's own part of google.colab; a callback that fails is an error of the page.
INVOKE = """
window.google = {colab: {kernel: {invokeFunction: async (name, args, kwargs) => {
    const texts = [name, JSON.stringify(args), JSON.stringify(kwargs)].map(text =>
        JSON.stringify(text));
    const code = `__import__('google.colab.output').colab.output.invoke(${texts})`;
    const kernel = window.current().sessionContext.session.kernel;
    const reply = await kernel.requestExecute({code, silent: true, store_history: false}).done;
    if (reply.content.status !== 'ok') console.error(`${name} failed: ${reply.content.evalue}`);
}}}};
"""
# Every text that the conversation shows, one after the other.
WATCH = """() => {
    const log = document.querySelector('.moe-log');
    window.texts = [];
    new MutationObserver(() => {
        if (log.innerText !== window.texts.at(-1)) window.texts.push(log.innerText);
    }).observe(log, {childList: true, subtree: true, characterData: true});
}"""


class Box:
    """The parts, all of them in one folder. `notes`: what the box's own google.colab and the
    sockets of its Pythons wrote down."""

    def __init__(self, folder: Path, notebook: Path = NOTEBOOK):
        self.site = make_environment(folder / "env")
        self.python = folder / "env" / "bin" / "python"
        self.notes_file = folder / "notes"
        self.notes_file.touch()
        for name in (*LEFT_OUT, *TO_QUANTIZE):
            make_wheel(name, folder / "wheels")
        self.work = folder / "work"
        self.work.mkdir()
        self.notebook = Path(shutil.copy(notebook, self.work))
        profile = folder / "ipython" / "profile_default"
        profile.mkdir(parents=True)
        kernel = "c.IPKernelApp.kernel_class = 'google.colab._kernel.Kernel'\n"
        (profile / "ipython_kernel_config.py").write_text(kernel)
        self.env = {
            "IPYTHONDIR": str(folder / "ipython"),
            "COLAB_RELEASE_TAG": "a-test",
            "MOE_COLAB_SOURCE": f"git+file://{commit_working_tree(folder / 'repository')}",
            "MOE_COLAB_CACHE": str(folder / "stores"),
            "HF_HOME": str(folder / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HOME": str(folder),
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "tests" / "colab_box"),
            "BOX_NOTES": str(self.notes_file),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(folder / "wheels"),
            "PIP_NO_BUILD_ISOLATION": "off",
        }

    def notes(self) -> Counter[str]:
        return Counter(self.notes_file.read_text().splitlines())

    def installed(self) -> set[str]:
        """What pip put into it: all else are links."""
        return {path.name for path in self.site.iterdir() if not path.is_symlink()}


def pinned_site() -> Path:
    return next((STACKS["colab"].parent / "lib").glob("python*/site-packages"))


def make_environment(folder: Path) -> Path:
    """A virtual environment with links to all that the pinned one has, save what must be
    installed; its folder of packages."""
    python = STACKS["colab"] / "python"
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    gone = re.compile(
        r"__editable__|__pycache__$|(moe_colab|markdown_it|mdurl|hqq|einops|termcolor)(_py)?(-|$)"
    )
    for path in pinned_site().iterdir():
        if not gone.match(path.name):
            (site / path.name).symlink_to(path)
    return site


def make_wheel(name: str, folder: Path) -> None:
    """The wheel that an installed package came from, as far as it is needed."""
    folder.mkdir(exist_ok=True)
    (info,) = pinned_site().glob(f"{name}-*.dist-info")
    with (info / "RECORD").open() as record:
        listed = [row[0] for row in csv.reader(record)]
    files = [file for file in listed if not file.startswith("..") and not file.endswith(".pyc")]
    wheel = folder / f"{info.name.removesuffix('.dist-info')}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in files:
            archive.write(pinned_site() / file, file)


@pytest.fixture
def hub(tmp_path):
    """The small model under two names of the form, one of them gated; its answers are long."""
    talks = tmp_path / "model"
    shutil.copytree(TINY_MOE, talks)
    limits = json.loads((talks / "generation_config.json").read_text())
    limits |= {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS}
    (talks / "generation_config.json").write_text(json.dumps(limits))
    hub = FakeHub()
    hub.models = {GATED: talks, OPEN: talks}
    hub.gated.add(GATED)
    with hub.serving() as address:
        hub.address = address
        yield hub


@pytest.mark.parametrize("lab", COLAB, indirect=True)
def test_from_an_empty_folder_to_the_first_answer(lab, tmp_path, hub):
    box = Box(tmp_path)
    env = {**box.env, "HF_ENDPOINT": hub.address, "BOX_TOKEN": hub.token}
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if "outputs" in cell]
    cell = {cell["id"]: number for number, cell in enumerate(cells)}
    assert not any(name.startswith("moe_colab") for name in os.listdir(box.site))

    with lab.open(box.notebook, kernel_env=env, python=box.python, script=INVOKE) as notebook:
        notebook.run_cell(cell["setup"])
        said = notebook.text(cell["setup"])
        assert {"moe_colab", "markdown_it", "mdurl", *TO_QUANTIZE} <= box.installed()
        assert "installing markdown-it-py, hqq …" in said
        assert re.search(r"^colab · Python .* · moe_colab \d.* · ipywidgets 7\.7\.1$", said, re.M)
        names = ("einops", "hqq", "markdown-it-py", "mdurl", "moe-colab", "termcolor")
        installed = ", ".join(rf"{name} \S+" for name in names)
        assert re.search(rf"^installed: {installed}$", said, re.M)
        assert re.search(r"^\d+ packages that were here before are unchanged$", said, re.M)
        card = notebook.by_class("moecard").inner_text()
        assert "What this machine can run · colab" in card and OPEN in card
        assert "gated: accept its licence" in card
        assert secrets(box) == []

        notebook.run_cell(cell["needs"])  # imports moe_colab
        notebook.edit(cell["choose"], '"shipped"  #', f'"{GATED}"  #')
        notebook.run_cell(cell["choose"])
        hub.sent.clear()  # the card reads headers
        notebook.run_cell(cell["load"])
        assert secrets(box) == ["secret HF_TOKEN in MainThread"]
        assert hub.sent["model.safetensors"] == (TINY_MOE / "model.safetensors").stat().st_size
        notebook.run_cell(cell["chat"])
        notebook.wait_text("moe-log", "No messages yet")
        assert invocations(box) == 0

        texts = ask(notebook)
        wait_ended(notebook, "ready")
        answers = {text.split("▍")[0] for text in texts() if "▍" in text}
        assert len(answers) >= 5, "it did not stream"
        assert invocations(box) >= 5
        assert re.search(
            rf"{TOKENS} tokens, first after", notebook.by_class("moe-log").inner_text()
        )

        texts = ask(notebook)
        notebook.page.wait_for_function("() => window.texts.length > 1")
        notebook.button("Stop").click()
        notebook.wait_text("moe-statusline", "stop")
        wait_ended(notebook, "stopped")
        assert "(stopped)" in notebook.by_class("moe-log").inner_text()

        for name in ("counted", "layers", "compare"):
            notebook.run_cell(cell[name])
        notebook.check_quiet()
    assert [path.name for path in box.work.iterdir()] == [NOTEBOOK.name]
    hosts = {note for note in box.notes() if note.startswith("host ")}
    assert hosts == {"host 127.0.0.1"}
    assert len(secrets(box)) == 1


@pytest.mark.parametrize("lab", COLAB, indirect=True)
def test_the_notebook_that_quantizes_gets_what_it_needs(lab, tmp_path):
    """hqq is not on Colab; the first figure is there in the second cell."""
    box = Box(tmp_path, QUANTIZE)
    cells = [cell for cell in json.loads(QUANTIZE.read_text())["cells"] if "outputs" in cell]
    cell = {cell["id"]: number for number, cell in enumerate(cells)}
    env = {**box.env, "HF_HUB_OFFLINE": "1"}
    with lab.open(box.notebook, kernel_env=env, python=box.python, script=INVOKE) as notebook:
        notebook.run_cell(cell["setup"])
        said = notebook.text(cell["setup"])
        assert {"moe_colab", "markdown_it", *TO_QUANTIZE} <= box.installed()
        assert re.search(r"^\d+ packages that were here before are unchanged$", said, re.M)
        notebook.run_cell(cell["matrix"])
        notebook.wait_text("moe-quantize", "2.58 bits per weight")
        buttons = notebook.page.locator(".moe-quantize .widget-toggle-buttons").first
        buttons.locator("button", has_text="4").click()
        notebook.wait_text("moe-quantize", "4.58 bits per weight")
        notebook.run_cell(cell["bytes"] - 1)
        notebook.run_cell(cell["bytes"])
        (output,) = notebook.outputs()[cell["bytes"]]
        assert "image/png" in output["data"]
    assert [path.name for path in box.work.iterdir()] == [QUANTIZE.name]


def ask(notebook):
    """Ask the question; a function that says what the conversation showed since then."""
    notebook.page.evaluate(WATCH)
    notebook.by_class("moe-line").locator("input").click()
    notebook.page.keyboard.type(QUESTION)
    notebook.page.keyboard.press("Enter")
    notebook.page.wait_for_selector(".moe-chat.moe-busy")
    return lambda: notebook.page.evaluate("() => window.texts")


def wait_ended(notebook, status: str) -> None:
    notebook.page.wait_for_selector(".moe-chat:not(.moe-busy)", timeout=60_000)
    notebook.wait_text("moe-statusline", status)


def secrets(box: Box) -> list[str]:
    return [note for note in box.notes().elements() if note.startswith("secret ")]


def invocations(box: Box) -> int:
    return sum(n for note, n in box.notes().items() if note.startswith("invoked moe_colab."))
