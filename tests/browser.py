"""Notebooks in a real JupyterLab page: run the cells, use the widgets, read them back.

Knows JupyterLab, Chromium (Debian's, driven by playwright) and the two package sets; knows nothing
of moe_colab. Starting a server and a browser costs seconds, so there is one of each per package set
and test session (the fixture `lab`); every notebook opened there has its own page and kernel.

    def test_it(lab, tmp_path):
        with lab.open(write_notebook(tmp_path / "demo.ipynb", ["print(1)"])) as notebook:
            notebook.run_all()
            assert notebook.text(0) == "1\n"
            notebook.check_quiet()

Nothing reaches the network: the page's requests to other hosts are refused and written down, and
Chromium, server and kernels have a proxy that is not there.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # playwright is missing where these tests are skipped
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Route

ROOT = Path(__file__).parent.parent
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
# Package set: the folder of its python. "modern" is the one that runs the tests.
STACKS = {"modern": Path(sys.executable).parent, "colab": ROOT / ".venv-colab" / "bin"}
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
NOT_RUN = "browser tests did not run"
Output = dict[str, Any]  # of a cell, as nbformat has it

NOWHERE = "http://127.0.0.1:9"  # a proxy that nobody runs
CHROMIUM_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-quic", f"--proxy-server={NOWHERE}", "--proxy-bypass-list=127.0.0.1;localhost"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]
PUBLISHED = re.compile(r"^https://raw\.githubusercontent\.com/[^/]+/[^/]+/[^/]+/(.+)$")
OUTSIDE = re.compile(r"^(https?|wss?)://(?!(127\.0\.0\.1|localhost)([:/]|$))")
SETTINGS = {
    "@jupyterlab/notebook-extension:tracker": {
        "windowingMode": "none",  # JupyterLab drops cells that are off screen from the page
        "autoStartDefaultKernel": True,
    },
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/apputils-extension:sessionDialogs": {"skipKernelRestartDialog": True},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}
# Said by every kernel that has not imported ipywidgets when the page asks for its widgets.
HARMLESS = re.compile(
    r"No such comm target registered: jupyter\.widget\.control|No such comm: [0-9a-f-]{36}"
)

# ipywidgets 7 typesets with the MathJax 2 that Colab's page has; JupyterLab's is a later one.
OLD_MATHJAX = """(() => {
    let mathjax;
    Object.defineProperty(window, 'MathJax', {
        configurable: true,
        get: () => mathjax,
        set: value => { mathjax = value; mathjax.Hub ??= {Queue() {}}; },
    });
})()"""

# What the page remembers for us: what the kernel says outside of a cell's run (callbacks of
# widgets), and how the latest command ended.
PREPARE = """() => {
    window.stray = [];
    window.current = () => window.jupyterapp.shell.currentWidget;
    window.current().sessionContext.iopubMessage.connect((_, message) => {
        if (message.parent_header.msg_type === 'execute_request') return;
        const {content, header} = message;
        if (header.msg_type === 'error') window.stray.push(content.traceback.join('\\n'));
        if (header.msg_type === 'stream') window.stray.push(content.text);
    });
}"""
BEGIN = """([code, args]) => {
    window.ended = null;
    Promise.resolve(new Function('args', code)(args)).then(
        () => { window.ended = 'well'; }, error => { window.ended = `${error}`; });
}"""
KERNEL_IS_IDLE = (
    "() => window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status"
    " === 'idle'"
)
CODE_CELLS = "window.current().content.widgets.filter(cell => cell.model.type === 'code')"


class CellFailed(AssertionError):
    """A cell raised; the message has its number among the code cells, and the traceback."""


def missing(stack: str | None = None) -> str | None:
    """What keeps the browser tests of this package set, or those without JupyterLab, from running,
    in one line; None if nothing does."""
    if importlib.util.find_spec("playwright") is None:
        return f"{NOT_RUN}: no playwright; install it with pip install playwright"
    if not os.access(CHROMIUM, os.X_OK):
        return f"{NOT_RUN}: no Chromium; install it with apt-get install chromium"
    if stack and not (STACKS[stack] / "jupyter-lab").exists():
        return f"{NOT_RUN}: no JupyterLab in {STACKS[stack]}; make test installs it"
    return None


def write_notebook(path: Path, cells: Sequence[str]) -> Path:
    """A notebook of code cells."""
    import nbformat

    v4 = nbformat.v4
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nodes = [v4.new_code_cell(source) for source in cells]
    nbformat.write(v4.new_notebook(cells=nodes, metadata={"kernelspec": kernel}), path)
    return path


class Server:
    """JupyterLab of one package set on a free port, over the whole file system, with configuration,
    settings and runtime files in `home`. The environment is also that of its kernels."""

    def __init__(self, bin_folder: Path, home: Path):
        self.python, self.home = bin_folder / "python", home
        self.token, self.specs = secrets.token_hex(), 0
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        (home / "app").mkdir()
        (home / "app" / "overrides.json").write_text(json.dumps(SETTINGS))
        self.log = home / "log"
        command = [
            *(self.python, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"),
            *(f"--port={port}", "--ServerApp.port_retries=0", "--ServerApp.root_dir=/"),
            "--ContentsManager.allow_hidden=True",
            f"--FileCheckpoints.checkpoint_dir={home / 'checkpoints'}",  # not beside the notebook
            "--LanguageServerManager.autodetect=False",
            "--LabApp.expose_app_in_browser=True",  # gives the page window.jupyterapp
            *(f"--LabApp.app_settings_dir={home / 'app'}", "--LabApp.news_url=None"),
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=home, env=self._environment(), stdout=log, stderr=subprocess.STDOUT
            )

    def wait(self, timeout: float = 60) -> None:
        end = time.monotonic() + timeout
        while self.process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(urllib.error.URLError):  # it does not listen yet
                self.ask("GET", "/api/status")
                return
            time.sleep(0.2)
        raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def ask(self, method: str, path: str, body: dict | None = None) -> Any:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {self.token}", "Content-Type": "application/json"},
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def kernel_spec(self, kernel_env: Mapping[str, str], python: Path | None = None) -> str:
        """The name of a kernel with these variables besides the server's, of this python instead
        of the server's."""
        if not kernel_env and python is None:
            return "python3"
        self.specs += 1
        folder = self.home / "data" / "kernels" / f"python3-{self.specs}"
        folder.mkdir(parents=True)
        spec = {
            "argv": [
                str(python or self.python),
                "-m",
                "ipykernel_launcher",
                "-f",
                "{connection_file}",
            ],
            "display_name": "Python 3",
            "language": "python",
            "env": dict(kernel_env),
        }
        (folder / "kernel.json").write_text(json.dumps(spec))
        return folder.name

    def _environment(self) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON"))}
        for scheme in ("http", "https", "all"):
            env |= dict.fromkeys((f"{scheme}_proxy", f"{scheme}_proxy".upper()), NOWHERE)
        env |= dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1,localhost")
        env["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # or the debugger speaks between the cells
        env |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "JUPYTER_TOKEN": self.token}
        for variable, folder in [
            *(("JUPYTER_CONFIG_DIR", "config"), ("JUPYTER_DATA_DIR", "data")),
            *(("JUPYTER_RUNTIME_DIR", "run"), ("IPYTHONDIR", "ipython")),
        ]:
            env[variable] = str(self.home / folder)
        return env


class Lab:
    """One package set's JupyterLab in one browser. `stack` is the set's name."""

    def __init__(self, stack: str, server: Server, browser: Browser):
        self.stack, self.server, self.browser = stack, server, browser

    @contextlib.contextmanager
    def open(
        self,
        path: str | Path,
        *,
        kernel_env: Mapping[str, str] | None = None,
        python: Path | None = None,
        script: str = "",
        theme: str = "light",
        viewport: tuple[int, int] = (1200, 900),
    ) -> Iterator[Notebook]:
        """Open a notebook where it lies, with a fresh kernel in its folder. It is never saved.
        `kernel_env` is added to the kernel's environment: {"HF_HUB_OFFLINE": "0"} lets it look for
        a hub on 127.0.0.1. `python`: the kernel's own, of another environment than the server's.
        `script`: JavaScript that runs in the page before any of its own."""
        path = Path(path).resolve()
        where = path.as_posix().lstrip("/")
        session = self.server.ask(
            "POST",
            "/api/sessions",  # before the page asks: it takes the session that is there
            {
                "path": where,
                "name": path.name,
                "type": "notebook",
                "kernel": {"name": self.server.kernel_spec(kernel_env or {}, python)},
            },
        )
        try:
            width, height = viewport
            context = self.browser.new_context(
                viewport={"width": width, "height": height}, service_workers="block"
            )
            if self.stack == "colab":
                context.add_init_script(OLD_MATHJAX)
            if script:
                context.add_init_script(script)
            with contextlib.closing(context):
                notebook = Notebook(context.new_page())
                address = f"{self.server.url}/doc/tree/{urllib.parse.quote(where)}"
                notebook.load(f"{address}?reset&token={self.server.token}")
                notebook.set_theme(theme)  # the latest choice is kept by the server
                yield notebook
        finally:
            self.server.ask("DELETE", f"/api/sessions/{session['id']}")


class Watched:
    """A page that is listened to. `console_errors` and `outside` are what went wrong in it so far:
    errors on the console or uncaught, and the addresses on other hosts it asked for, all of them
    refused. `page` is playwright's."""

    def __init__(self, page: Page):
        self.page = page
        self.console_errors: list[str] = []
        self.outside: list[str] = []
        page.set_default_timeout(30_000)
        page.context.route(OUTSIDE, self._refuse)
        page.context.route(PUBLISHED, self._serve_file)
        page.on("websocket", lambda socket: self._note_socket(socket.url))
        page.on("console", self._note_message)
        page.on("pageerror", lambda error: self.console_errors.append(str(error)))

    def wrong(self) -> dict[str, list[str]]:
        return {"requests to other hosts": self.outside, "console errors": self.console_errors}

    def check_quiet(self) -> None:
        """Raises AssertionError if the page asked for another host, or an error is on its
        console."""
        found = {what: items for what, items in self.wrong().items() if items}
        assert not found, "\n".join(f"{what}: {item}" for what in found for item in found[what])

    def _serve_file(self, route: Route) -> None:
        """A file of the repository at its public address: the one of this checkout."""
        file = ROOT / PUBLISHED.match(route.request.url)[1]
        route.fulfill(path=file) if file.is_file() else self._refuse(route)

    def _refuse(self, route: Route) -> None:
        self.outside.append(route.request.url)
        route.abort("blockedbyclient")

    def _note_socket(self, url: str) -> None:  # routes do not see it; Chromium's proxy refuses it
        if OUTSIDE.match(url):
            self.outside.append(url)

    def _note_message(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.console_errors.append(f"{message.text} ({message.location['url']})")


@contextlib.contextmanager
def plain_page(
    browser: Browser, document: str, viewport: tuple[int, int] = (1000, 900), theme: str = "light"
) -> Iterator[Watched]:
    """A page that is no notebook; `theme` is what the system prefers."""
    width, height = viewport
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=theme, service_workers="block"
    )
    with contextlib.closing(context):
        watched = Watched(context.new_page())
        watched.page.set_content(document)
        yield watched


class Notebook(Watched):
    """A notebook open in JupyterLab's single-document view. Only code cells are counted, from
    0."""

    def load(self, address: str) -> None:
        self.page.goto(address, wait_until="domcontentloaded")
        self.page.wait_for_function("() => !!window.jupyterapp", timeout=60_000)
        self.page.evaluate("() => window.jupyterapp.restored")
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        self.page.wait_for_function(KERNEL_IS_IDLE, timeout=60_000)
        self.page.evaluate(PREPARE)

    # ------------------------------------------------------------------ run
    def run_all(self, timeout: float = 120) -> list[list[Output]]:
        """Run every cell, from top to bottom, and return the outputs of each. Raises CellFailed at
        the first that raises."""
        self.command("notebook:clear-all-cell-outputs")
        self.command("notebook:run-all-cells", timeout=timeout)
        return self._checked()

    def restart_and_run_all(self, timeout: float = 120) -> list[list[Output]]:
        """The same in a fresh process."""
        self.command("notebook:clear-all-cell-outputs")
        self.command("notebook:restart-run-all", timeout=timeout)
        return self._checked()

    def run_cell(self, index: int, timeout: float = 120) -> list[Output]:
        """Run one cell and return its outputs. Raises CellFailed if it raises."""
        self.page.evaluate(
            f"""index => {{
                const content = window.current().content;
                content.deselectAll();
                content.activeCellIndex = content.widgets.indexOf({CODE_CELLS}[index]);
            }}""",
            index,
        )
        self.command("notebook:run-cell", timeout=timeout)
        return self._checked(index)[index]

    def command(self, name: str, args: dict | None = None, timeout: float = 30) -> None:
        """Execute one of JupyterLab's commands and wait for its end."""
        code = "return window.jupyterapp.commands.execute(args[0], args[1])"
        self._finish(code, [name, args or {}], timeout)

    def wait_idle(self, timeout: float = 120) -> None:
        """Wait until the kernel has handled all that it was sent so far."""
        code = "return window.current().sessionContext.session.kernel.requestKernelInfo()"
        self._finish(code, None, timeout)
        self.page.wait_for_function(KERNEL_IS_IDLE, timeout=timeout * 1000)

    def edit(self, index: int, old: str, new: str) -> None:
        """Change the source of one cell, as by typing; `old` stands there exactly once."""
        cell = f"{CODE_CELLS}[index].model.sharedModel"
        source = self.page.evaluate(f"index => {cell}.getSource()", index)
        assert source.count(old) == 1, f"{old!r} is not there once: {source}"
        code = f"([index, source]) => {cell}.setSource(source)"
        self.page.evaluate(code, [index, source.replace(old, new)])

    # ------------------------------------------------------------------ read
    def outputs(self) -> list[list[Output]]:
        """The outputs of each cell, as a save would write them."""
        return self.page.evaluate(f"() => {CODE_CELLS}.map(cell => cell.model.toJSON().outputs)")

    def text(self, index: int) -> str:
        """What one cell printed, and the plain text of what it returned."""
        parts = []
        for output in self.outputs()[index]:
            part = output.get("text") or output.get("data", {}).get("text/plain", "")
            parts.append(part if isinstance(part, str) else "".join(part))
        return "".join(parts)

    def wait_text(self, css: str, text: str, timeout: float = 30) -> str:
        """Wait until the widget tagged `css` shows `text`; all that it shows."""
        self.page.wait_for_function(
            "([css, text]) => document.querySelector('.' + css)?.innerText.includes(text)",
            arg=[css, text],
            timeout=timeout * 1000,
        )
        return self.by_class(css).inner_text()

    def stray(self) -> list[str]:
        """What the kernel printed or raised outside of a cell's run: in callbacks of widgets."""
        said = [plain(text) for text in self.page.evaluate("() => window.stray")]
        return [text for text in said if not HARMLESS.fullmatch(text.strip())]

    def wrong(self) -> dict[str, list[str]]:
        return {**super().wrong(), "said outside of a cell": self.stray()}

    # ------------------------------------------------------------------ touch and see
    def by_class(self, css: str) -> Locator:
        """A widget tagged in Python with `add_class(css)`: the stable way to address one."""
        return self.page.locator(f".{css}")

    def button(self, label: str) -> Locator:
        """The button of ipywidgets with exactly this label."""
        exact = re.compile(rf"^\s*{re.escape(label)}\s*$")
        return self.page.locator("button.jupyter-button").filter(has_text=exact)

    def set_theme(self, theme: str) -> None:
        """JupyterLab's "light" or "dark"."""
        name = THEMES[theme]
        if self.page.evaluate("() => document.body.dataset.jpThemeName") != name:
            self.command("apputils:change-theme", {"theme": name})
        self.page.wait_for_selector(f"body[data-jp-theme-name='{name}']", state="attached")

    def screenshot(self, path: str | Path, css: str | None = None) -> Path:
        """A PNG of the page, or of the widget tagged `css`."""
        (self.by_class(css) if css else self.page).screenshot(path=path)
        return Path(path)

    # ------------------------------------------------------------------ inside
    def _finish(self, code: str, args: Any, timeout: float) -> None:
        """Wait for the promise that `code`, a JavaScript function's body, returns."""
        self.page.evaluate(BEGIN, [code, args])
        self.page.wait_for_function("() => window.ended !== null", timeout=timeout * 1000)
        ended = self.page.evaluate("() => window.ended")
        if ended != "well":
            raise RuntimeError(f"{args}: {ended}")

    def _checked(self, only: int | None = None) -> list[list[Output]]:
        cells = self.outputs()
        for index, outputs in enumerate(cells):
            for output in outputs:
                if output["output_type"] == "error" and only in (None, index):
                    trace = plain("\n".join(output["traceback"]))
                    summary = f"{output['ename']}: {output['evalue']}"
                    raise CellFailed(f"cell {index} failed: {summary}\n{trace}")
        return cells


def plain(text: str) -> str:
    """Without the colours of a terminal."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """One browser; there can be no second one in the same thread."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, headless=True, args=CHROMIUM_FLAGS
        )
        with contextlib.closing(browser):
            yield browser


@contextlib.contextmanager
def start(stack: str, browser: Browser) -> Iterator[Lab]:
    """Start JupyterLab of this package set; it ends with the block."""
    with contextlib.ExitStack() as stop:
        home = stop.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        server = Server(STACKS[stack], Path(home))
        stop.callback(server.stop)
        server.wait()
        yield Lab(stack, server, browser)
