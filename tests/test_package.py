"""What holds the project together: who imports whom, what an installed package brings, what the
files say."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, copy_working_tree

PACKAGE = ROOT / "moe_colab"
NO_TORCH_BUT_NUMPY = [
    *("optimal", "caches", "rehearsal", "replays", "timelines", "counted", "looks", "view"),
    *("excerpt", "xrays"),
    *(f"tables.{name}" for name in ("choices", "intervals", "routing", "slots")),
    *("history", "moments", "stepping"),
    *(f"trace.{name}" for name in ("archive", "arrays", "builder", "frames", "route_csv", "trace")),
]
NO_TORCH = [
    *("cache", "counters", "errors", "signs", "governor", "hardware", "homes", "interrupts"),
    *("links", "pool", "scratch"),
    *("places", "sizes", "card", "model_list", "machine", "notebook"),
    *(f"exercises.{name}" for name in ("bits", "judging", "mixtral", "routing", "slots")),
    *("settings", "hub", "shard_plan", "allocation"),
    *("virtual_links", "store.blobs", "store.manifest"),
]


def python(code: str, **settings) -> str:
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, **settings
    )
    assert out.returncode == 0, out.stderr
    return out.stdout


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(' '.join(m.split('.')[0] for m in sys.modules))"
    return set(python(code, cwd=ROOT).split())


def test_importing_moe_colab_brings_in_nothing_heavy():
    unwanted = {"IPython", "ipywidgets", "matplotlib", "pandas"}
    assert not unwanted & loaded_by("import moe_colab; moe_colab.load; moe_colab.ChatSession")
    assert not {"torch", "transformers"} & loaded_by("import moe_colab")


@pytest.mark.parametrize("room", [*NO_TORCH, *NO_TORCH_BUT_NUMPY])
def test_rooms_below_the_line_import_no_torch(room):
    """Judged by their own import statements: the package's folder imports others beside them."""
    path = PACKAGE / (room.replace(".", "/") + ".py")
    modules = {name for name, _ in imports(path)}
    unwanted = {"torch", "transformers", "safetensors"}
    assert not (unwanted if room in NO_TORCH_BUT_NUMPY else {*unwanted, "numpy"}) & modules


def test_figures_need_no_torch():
    found = loaded_by("import moe_colab.plots")
    assert "matplotlib" in found and not {"torch", "pandas", "IPython"} & found
    assert "matplotlib.pyplot" not in python("import moe_colab.plots, sys; print(*sys.modules)")


def test_few_rooms_know_pages_and_figures():
    """Widgets and IPython in those that show something on a page, matplotlib where it is drawn."""
    widgets = "widgets controls panel quantize_widget trace_widgets explorer view"
    for names, rooms in (
        ({"ipywidgets", "IPython"}, set(widgets.split())),
        ({"matplotlib"}, {"plots"}),
    ):
        found = {
            path.relative_to(PACKAGE).parts[0].removesuffix(".py")
            for path in PACKAGE.rglob("*.py")
            if names & {name for name, level in imports(path) if not level}
        }
        assert found == rooms


def test_cache_runs_without_torch():
    assert "torch" not in loaded_by("import moe_colab.cache, moe_colab.pool, moe_colab.links")


def test_a_trace_is_loaded_and_replayed_without_torch():
    code = "import moe_colab as mc; mc.replay(mc.Trace.load(), slots=4); mc.timeline"
    assert not {"torch", "transformers", "pandas"} & loaded_by(code)


ORDER = """
    errors interrupts counters signs hardware places sizes card model_list machine notebook
    plots view
    homes links virtual_links cache settings governor scratch pool optimal trace caches rehearsal
    replays timelines tables counted looks history moments excerpt xrays exercises store lowbit
    kernels recipe slots lowbit_modules cuda placement families
    speculation engine attachment offload recording reading hearing stepping dense architecture
    hub shard_plan shards checkpoint matrices hqq_scales parts packing devices loading quantization
    shelf sample forecast
    turn streamer answer chat markup controls panel widgets quantize_widget trace_widgets quality
    explorer comparison allocation sensitivity
    terminal bench arguments __main__
""".split()  # a room may import only rooms that stand before it


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.relative_to(PACKAGE).as_posix()
)
def test_arrows_point_down(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    below = ORDER[: ORDER.index(room) + 1]
    for name, level in imports(path):
        if level:
            depth = len(path.relative_to(PACKAGE).parts) - level
            target = room if depth > 0 else name.split(".")[0]
            assert target in (*below, "__version__"), f"{path.name} imports {target}"


def imports(path) -> set[tuple[str, int]]:
    """(module or name, level) of every import in a file, wherever it stands."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {(alias.name.split(".")[0], 0) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level and not node.module:
                out |= {(alias.name, node.level) for alias in node.names}
            else:
                name = node.module if node.level else node.module.split(".")[0]
                out.add((name, node.level))
    return out


def test_only_the_search_for_scales_knows_hqq():
    """Which is needed to quantize, never to run."""
    rooms = [path.stem for path in PACKAGE.rglob("*.py") if ("hqq", 0) in imports(path)]
    assert rooms == ["hqq_scales"]


def test_the_readmes_map_names_every_room():
    readme = (ROOT / "README.md").read_text()
    rooms = {p.name if p.is_file() else f"{p.name}/" for p in PACKAGE.iterdir()}
    rooms = {r for r in rooms if not r.startswith("__") or r == "__main__.py"}
    assert not {room for room in rooms if room not in readme}


def test_every_folder_of_code_is_installed():
    import tomllib

    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in PACKAGE.rglob("__init__.py")}
    assert {".".join(folder.parts) for folder in folders} <= set(named)


def test_an_installed_package_brings_the_small_model(tmp_path):
    """A wheel's content, used in an empty folder: the checkout is nowhere near."""
    copy_working_tree(tmp_path / "source")
    subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pip",
                "install",
                "-q",
                "--disable-pip-version-check",
                "--no-deps",
            ),
            *("--target", str(tmp_path / "site"), str(tmp_path / "source")),
        ],
        check=True,
        timeout=300,
    )
    (tmp_path / "empty").mkdir()
    shutil.rmtree(tmp_path / "source")
    code = """
import moe_colab as mc
model, tokenizer = mc.load(slots=3, progress=False)
out = model.generate(**tokenizer("Hello", return_tensors="pt"), max_new_tokens=4)
import sys
files = [m.__file__ for name, m in sys.modules.items() if name.split(".")[0] == "moe_colab"]
measured = mc.benchmark("small_model")["parameters"] > 1e6
print(*(file for file in files if file), out.shape[1] > 1 and measured, sep="|")
"""
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    *files, spoke = (
        python(code, cwd=tmp_path / "empty", env=env).strip().splitlines()[-1].split("|")
    )
    assert len(files) > 20 and spoke == "True"
    assert not [file for file in files if not file.startswith(str(tmp_path / "site"))]


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_are_saved_without_widget_state_or_errors(path):
    notebook = json.loads(path.read_text())
    assert "widgets" not in notebook["metadata"]
    outputs = [out for cell in notebook["cells"] for out in cell.get("outputs", [])]
    assert not [out for out in outputs if out["output_type"] == "error"]


def test_links_in_the_readme_lead_somewhere():
    import re

    for page in (ROOT / "README.md", ROOT / "assets" / "tiny-moe" / "README.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} names {target}"
