"""What all tests share: a cache folder, no network, small checkpoints, new processes, a browser."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import browser
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
# A shell starts background processes with Ctrl-C ignored; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Test processes share few cores: with more threads they would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parent.parent
TINY_MOE = ROOT / "assets" / "tiny-moe"


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory):
    """A cache folder for all tests, so that the user's stays untouched; subprocesses inherit it."""
    folder = tmp_path_factory.mktemp("moe_colab_cache")
    before = os.environ.get("MOE_COLAB_CACHE")
    os.environ["MOE_COLAB_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["MOE_COLAB_CACHE"]
    else:
        os.environ["MOE_COLAB_CACHE"] = before


@pytest.fixture(scope="module")
def loaded():
    """The small model with 4 slots in each layer, and its tokenizer."""
    import moe_colab as mc

    model, tokenizer = mc.load(slots=4, progress=False)
    with model.offload:
        yield model, tokenizer


@pytest.fixture(scope="session")
def processes():
    """Starts processes from a server that has imported everything already, in milliseconds each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["families", "moe_colab.evaluation.quantize", "hqq.core.quantize"]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        first = context.Process(target=len, args=("",))
        first.start()  # and with it the server
        first.join()
    return context


@pytest.fixture
def run(processes) -> Callable[..., int]:
    """Calls a function in a new process; the exit code."""

    def run(target: Callable, *args) -> int:
        process = processes.Process(target=target, args=args)
        process.start()
        process.join(60)
        return process.exitcode

    return run


def python(code: str, cwd: Path = ROOT, **settings) -> str:
    """What `code` prints in a new Python; it must not fail."""
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=cwd, **settings)
    assert out.returncode == 0, out.stderr
    return out.stdout


def alter(path: Path, position: int, mask: int = 1) -> None:
    """Flip bits of one byte; a second call restores the file."""
    with open(path, "r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ mask]))


@pytest.fixture(scope="session")
def two_layers(tmp_path_factory) -> Path:
    return first_layers(2, tmp_path_factory.mktemp("cut"))


def first_layers(count: int, folder: Path) -> Path:
    """A checkpoint of the first layers of the small model."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(TINY_MOE, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": count}))
    weights = load_file(TINY_MOE / "model.safetensors")
    dropped = [f"model.layers.{number}." for number in range(count, config["num_hidden_layers"])]
    weights = {name: w for name, w in weights.items() if not name.startswith(tuple(dropped))}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def copy_working_tree(folder: Path) -> Path:
    """The project's files as they are now, committed or not."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def commit_working_tree(folder: Path) -> Path:
    """The project's files as they are now, committed in a new git repository."""
    git = ["git", "-C", str(copy_working_tree(folder)), "-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True)
    return folder


@pytest.fixture(scope="session")
def chromium():
    """Playwright's Chromium. Without it the test is skipped; with CI=true it fails."""
    need(browser.missing())
    with browser.chromium() as started:
        yield started


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(stack, marks=[pytest.mark.browser, pytest.mark.xdist_group(stack)])
        for stack in browser.STACKS
    ],
)
def lab(request, cache_folder, chromium):
    """JupyterLab in a browser, on each package set: a `browser.Lab`. Its kernels share
    `cache_folder`."""
    need(browser.missing(request.param))
    with browser.start(request.param, chromium) as started:
        yield started


def need(reason: str | None) -> None:
    """Skip the test where there is a reason; with CI=true, fail."""
    if reason and os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    if reason:
        pytest.skip(reason)


def pytest_collection_modifyitems(items):
    """Put the browser tests last: playwright's asyncio loop occupies the thread while it runs."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)


def pytest_terminal_summary(terminalreporter):
    """Print once why the browser tests were skipped."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = {str(report.longrepr[2]).removeprefix("Skipped: ") for report in reports}
    for reason in sorted(reason for reason in reasons if reason.startswith(browser.NOT_RUN)):
        terminalreporter.write_line(reason, yellow=True)
