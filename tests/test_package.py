"""The architecture: order of the packages, imports, and what an installed package brings."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, copy_working_tree, python

PACKAGE = ROOT / "moe_colab"
PACKAGES = """
    cache store machine trace analysis planner plots
    checkpoint quantization offload evaluation chat notebook
    bench
""".split()  # a package imports only those that stand before it
WITHOUT_TORCH = PACKAGES[: PACKAGES.index("checkpoint")]
WITHOUT_NUMPY = [
    *("cache", "store", "machine", "planner"),
    *("checkpoint/hub.py", "checkpoint/hub_errors.py", "evaluation/allocation.py"),
    *("notebook/install.py", "notebook/exercises"),
]
ANYWHERE = {"errors", "files", "units", "version"}  # modules that every package may import
FILES = sorted(PACKAGE.rglob("*.py"))
BY_PATH = {"argvalues": FILES, "ids": lambda path: path.relative_to(PACKAGE).as_posix()}


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(' '.join(m.split('.')[0] for m in sys.modules))"
    return set(python(code).split())


def test_importing_moe_colab_brings_in_nothing_heavy():
    unwanted = {"IPython", "ipywidgets", "matplotlib", "pandas"}
    assert not unwanted & loaded_by("import moe_colab; moe_colab.load; moe_colab.ChatSession")
    assert not {"torch", "transformers"} & loaded_by("import moe_colab")


@pytest.mark.parametrize("path", **BY_PATH)
def test_the_lower_packages_import_no_torch(path):
    """By the import statements of each file."""
    place = path.relative_to(PACKAGE)
    heavy = {"torch", "transformers", "accelerate", "hqq"}
    modules = {name.split(".")[0] for name in imports(path)}
    if place.parts[0] in {*WITHOUT_TORCH, "errors.py", "files.py", "units.py", "version.py"}:
        assert not heavy & modules
    if any(place.is_relative_to(name) for name in WITHOUT_NUMPY):
        assert not {*heavy, "numpy"} & modules


def test_the_lower_packages_run_without_torch():
    """All their modules, with what these import, in one process."""
    names = [
        name for name in MODULES if name.split(".")[1:2] and name.split(".")[1] in WITHOUT_TORCH
    ]
    assert len(names) > 50
    assert not {"torch", "transformers", "IPython"} & loaded_by(f"import {', '.join(names)}")


def test_figures_need_no_torch():
    found = loaded_by("import moe_colab.plots")
    assert "matplotlib" in found and not {"torch", "pandas", "IPython"} & found
    assert "matplotlib.pyplot" not in python("import moe_colab.plots, sys; print(*sys.modules)")


def test_few_packages_know_pages_and_figures():
    """ipywidgets and IPython only in notebook, matplotlib only in plots."""
    for names, packages in (
        ({"ipywidgets", "IPython"}, {"notebook"}),
        ({"matplotlib"}, {"plots"}),
    ):
        found = {
            path.relative_to(PACKAGE).parts[0]
            for path in FILES
            if names & {name.split(".")[0] for name in imports(path)}
        }
        assert found == packages
    widgets = [path for path in FILES if "ipywidgets" in imports(path)]
    assert {path.parent.name for path in widgets} == {"widgets"}


def test_cache_runs_without_torch():
    assert "torch" not in loaded_by("import moe_colab.cache.pool, moe_colab.cache.links")


def test_a_trace_is_loaded_and_replayed_without_torch():
    code = "import moe_colab as mc; mc.replay(mc.Trace.load(), slots=4); mc.timeline"
    assert not {"torch", "transformers", "pandas"} & loaded_by(code)


def dotted(path) -> str:
    """The module's name: moe_colab.cache.pool; a package's for its __init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path) -> set[str]:
    """The full names of everything that a file imports, wherever the statement is."""
    package = dotted(path).split(".")[: None if path.name == "__init__.py" else -1]
    out = set()
    nodes = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            out |= (names & set(MODULES)) or {base}
        nodes += ast.iter_child_nodes(node)
    return out


MODULES = {dotted(path): path for path in FILES}


def test_the_folder_shows_the_architecture():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(PACKAGES)
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    assert modules == {"__init__", "__main__", *ANYWHERE}


@pytest.mark.parametrize("path", **BY_PATH)
def test_arrows_point_down(path):
    """Only the command line may import from all packages; nothing imports from it, and only the
    benchmarks use the public names of moe_colab."""
    package = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if package in ("__init__", "__main__"):
        return
    below = PACKAGES[: PACKAGES.index(package) + 1] if package in PACKAGES else []
    for name in imports(path):
        if name.split(".")[0] == "moe_colab":
            if name == "moe_colab" and package == "bench":
                continue
            target = f"{name}.".split(".")[1]
            assert target in {*below, *ANYWHERE}, f"{path.name} imports {name}"


def test_no_module_imports_itself_by_way_of_others():
    graph = {n: imports(path) & set(MODULES) - {n} for n, path in MODULES.items()}
    while leaves := [name for name, needs in graph.items() if not needs & set(graph)]:
        for name in leaves:
            del graph[name]
    assert not graph


def test_only_the_search_for_scales_knows_hqq():
    """hqq is needed to quantize, never to run a model."""
    found = [path for path in FILES if "hqq" in {name.split(".")[0] for name in imports(path)}]
    assert found == [PACKAGE / "quantization" / "hqq.py"]


def test_the_readme_names_every_package():
    readme = (ROOT / "README.md").read_text()
    assert not {package for package in PACKAGES if f"{package}/" not in readme}


def test_every_folder_of_code_is_installed():
    import tomllib

    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in PACKAGE.rglob("__init__.py")}
    assert {".".join(folder.parts) for folder in folders} <= set(named)


@pytest.mark.slow
def test_an_installed_package_brings_the_small_model(tmp_path):
    """The content of a wheel, used in an empty folder, without the checkout."""
    copy_working_tree(tmp_path / "source")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    target = ["--target", str(tmp_path / "site"), str(tmp_path / "source")]
    subprocess.run([*pip, *target], check=True, timeout=300)
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
    assert not list((tmp_path / "site" / "moe_colab" / "assets").rglob("*.py"))
    assert not [file for file in files if not file.startswith(str(tmp_path / "site"))]


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_are_saved_without_widget_state_or_errors(path):
    notebook = json.loads(path.read_text())
    assert "widgets" not in notebook["metadata"]
    outputs = [out for cell in notebook["cells"] for out in cell.get("outputs", [])]
    assert not [out for out in outputs if out["output_type"] == "error"]
