"""The setup cell and what it calls: in real throw-away environments, with tiny packages of our own
instead of a package index; the preflight card on machines that are played."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY_MOE, commit_working_tree

from moe_colab import MoEColabError
from moe_colab.machine import memory
from moe_colab.notebook import install
from moe_colab.offload import placement
from moe_colab.planner import preflight as preflight_module
from moe_colab.planner.catalogue import ModelList, describe
from moe_colab.planner.device_memory import DeviceMemory
from moe_colab.planner.preflight import Gpu, Preflight, find_gpu
from moe_colab.planner.sizes import Sizes, folder_sizes

pytestmark = pytest.mark.colab
GIB = 1 << 30
STAMP = runpy.run_path(str(ROOT / "notebooks" / "stamp.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


# ---------------------------------------------------------------------- throw-away environments
def make_wheel(folder: Path, name: str, version: str, needs: tuple[str, ...] = ()) -> None:
    """A package of one line."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    requires = "".join(f"Requires-Dist: {need}\n" for need in needs)
    extras = re.findall(r"extra == '(\w+)'", requires)
    requires += "".join(f"Provides-Extra: {extra}\n" for extra in extras)
    files = {
        f"{name}.py": f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(path, text)


class Session:
    """A new environment that sees the packages of this one, a folder of wheels instead of an index,
    and a checkout of moe_colab with its requirements to choose."""

    def __init__(self, folder: Path):
        self.folder, self.wheels = folder, folder / "wheels"
        self.wheels.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
        self.python = folder / "env" / "bin" / "python"
        self.site = next((folder / "env" / "lib").glob("python*/site-packages"))
        (self.site / "around.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        self.env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PIP_")},
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_NO_BUILD_ISOLATION": "off",
            "HF_HUB_OFFLINE": "1",
            "COLAB_RELEASE_TAG": "a-test",
        }
        self.env.pop("PYTHONPATH", None)
        self.work = folder / "work"
        self.work.mkdir()

    def checkout(self, *requirements: str) -> None:
        """The notebook's folder is that of a checkout from now on."""
        root = self.folder / "checkout"
        shutil.copytree(ROOT / "moe_colab", root / "moe_colab")
        (root / "assets").mkdir()
        (root / "assets" / "tiny-moe").symlink_to(TINY_MOE)
        shutil.copy(ROOT / "pyproject.toml", root)
        (root / "requirements.txt").write_text("# what it needs\n" + "\n".join(requirements))
        self.work = root / "notebooks"
        self.work.mkdir()

    def pip(self, *names: str) -> None:
        command = [self.python, "-m", "pip", "install", "-q", "--no-deps", *names]
        subprocess.run(command, env=self.env, check=True)

    def run(self, code: str = "", cell: str = STAMP["setup_cell"](), **env: str) -> str:
        """What the setup cell prints, and then `code`; its error instead if it fails."""
        code = f"{cell}\n{code}\n"
        done = subprocess.run(
            [self.python, "-c", code],
            **{"cwd": self.work, "env": {**self.env, **env}, "timeout": 240},
            capture_output=True,
            text=True,
        )
        return done.stdout if done.returncode == 0 else done.stderr.strip().splitlines()[-1]

    def packages(self) -> set[str]:
        return {path.name.removesuffix(".dist-info") for path in self.site.glob("*.dist-info")}


@pytest.fixture
def session(tmp_path):
    return Session(tmp_path)


def test_installs_what_is_missing_and_what_that_needs_and_moves_nothing(session):
    make_wheel(session.wheels, "tiny_a", "1.0", ("tiny.b>=2", "tiny_here", "tiny_x; extra == 'x'"))
    make_wheel(session.wheels, "tiny_b", "2.5", ("tiny_a", "tiny_w; sys_platform == 'win32'"))
    make_wheel(session.wheels, "tiny_here", "1.0")
    session.pip("tiny_here")
    make_wheel(session.wheels, "tiny_here", "9.0")
    session.checkout("torch", "tiny-a>=1", "tiny_here")
    said = session.run("print('torch' in sys.modules, importlib.import_module('tiny_b').version)")
    assert session.packages() == {"tiny_a-1.0", "tiny_b-2.5", "tiny_here-1.0"}
    assert "installed: tiny-a 1.0, tiny-b 2.5\n" in said
    assert re.search(r"\d+ packages that were here before are unchanged\n", said)
    assert "colab · Python" in said and f"torch {importlib.metadata.version('torch')}" in said
    assert said.endswith("False 2.5\n")


def test_a_source_package_is_built_without_cuda(session):
    """Such as hqq, whose setup.py compiles CUDA code unless DISABLE_CUDA is 1."""
    make_wheel(session.wheels, "tiny_b", "1.0")
    script = (
        "import os, setuptools\n"
        "open('tiny_sdist.py', 'w').write(f'disabled = {os.environ.get(\"DISABLE_CUDA\")!r}')\n"
        "setuptools.setup(name='tiny_sdist', version='1.0', py_modules=['tiny_sdist'],"
        " install_requires=['tiny_b', 'numpy'])\n"
    )
    with tarfile.open(session.wheels / "tiny_sdist-1.0.tar.gz", "w:gz") as archive:
        for name, text in {
            "setup.py": script,
            "PKG-INFO": "Metadata-Version: 2.1\nName: tiny_sdist\nVersion: 1.0\n",
        }.items():
            member = tarfile.TarInfo(f"tiny_sdist-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    session.checkout("torch", "tiny_sdist>=1")
    said = session.run("print(importlib.import_module('tiny_sdist').disabled)")
    assert "installed: tiny-b 1.0, tiny-sdist 1.0\n" in said
    assert re.search(r"\d+ packages that were here before are unchanged\n", said)
    assert said.endswith("\n1\n")
    assert session.packages() == {"tiny_b-1.0", "tiny_sdist-1.0"}


def test_setup_cells_of_earlier_versions_still_run(session):
    """They name extras, which are plain requirements now."""
    make_wheel(session.wheels, "tiny_a", "1.0")
    session.checkout("tiny_a")
    cell = STAMP["setup_cell"]().replace("setup(before)", 'setup(before, ["quantize"])')
    assert '["quantize"]' in cell and "installed: tiny-a 1.0" in session.run(cell=cell)


def test_versions_are_chosen_that_go_with_what_is_here(session):
    make_wheel(session.wheels, "tiny_here", "1.0")
    session.pip("tiny_here")
    make_wheel(session.wheels, "tiny_here", "2.0")
    make_wheel(session.wheels, "tiny_a", "1.0", ("tiny_here",))
    make_wheel(session.wheels, "tiny_a", "2.0", ("tiny_here>=2",))
    session.checkout("tiny_a")
    assert "unchanged" in session.run()
    assert session.packages() == {"tiny_here-1.0", "tiny_a-1.0"}


def test_what_can_be_imported_is_not_installed_again(session):
    """As of distributions that leave out a package's metadata."""
    (session.site / "tiny_here.py").write_text("")
    make_wheel(session.wheels, "tiny_here", "2.0")
    make_wheel(session.wheels, "tiny_a", "1.0", ("tiny_here>=1", "tiny_b"))
    make_wheel(session.wheels, "tiny_b", "1.0")
    session.checkout("tiny_a", "tiny_here")
    session.run()
    assert session.packages() == {"tiny_a-1.0", "tiny_b-1.0"}


def test_an_installed_package_tells_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(
        install, "__file__", str(tmp_path / "moe_colab" / "notebook" / "install.py")
    )
    lines = ["torch>=2", 'no; extra == "other"', 'no; sys_platform == "win32"']
    monkeypatch.setattr(install.metadata, "requires", {"moe_colab": lines}.get)
    assert install.requirements() == ["torch>=2"]


def test_the_second_run_does_nothing(session):
    make_wheel(session.wheels, "tiny_a", "1.0")
    session.checkout("tiny-a")
    assert "installing tiny-a" in session.run()
    (session.wheels / "tiny_a-1.0-py3-none-any.whl").unlink()
    said = session.run()
    assert "installing" not in said and "installed:" not in said


def test_a_version_that_nobody_asked_for_is_told_and_left_alone(session):
    make_wheel(session.wheels, "tiny_old", "1.0")
    session.pip("tiny_old")
    make_wheel(session.wheels, "tiny_old", "2.0")
    make_wheel(session.wheels, "tiny_a", "1.0", ("tiny_old>=1.5",))
    session.checkout("tiny_old>=2", "tiny_a")
    said = session.run()
    assert "tiny_old 1.0 is here, and moe_colab asks for >=2: it was left as it is" in said
    assert "tiny_old 1.0 is here, and tiny-a asks for >=1.5" in said
    assert session.packages() == {"tiny_old-1.0", "tiny_a-1.0"}


def test_extras_bring_what_they_need(session):
    make_wheel(session.wheels, "tiny_a", "1.0", ("tiny_x; extra == 'x'", "tiny_y; extra == 'y'"))
    make_wheel(session.wheels, "tiny_x", "1.0")
    session.pip("tiny_a")
    session.checkout("tiny_a[x]")
    session.run()
    assert session.packages() == {"tiny_a-1.0", "tiny_x-1.0"}


@pytest.mark.parametrize("wanted", ["tiny_a[x]", "tiny_a[all]>=2"])
def test_extras_bring_what_they_need_beside_a_conflict(session, wanted):
    """pip finds no versions that go together; the package with the extra stays as it is."""
    needs = ("tiny_x; extra == 'x'", "tiny_a[x]; extra == 'all'")
    make_wheel(session.wheels, "tiny_a", "1.0", needs)
    make_wheel(session.wheels, "tiny_old", "1.0")
    session.pip("tiny_a", "tiny_old")
    make_wheel(session.wheels, "tiny_a", "2.0", needs)
    make_wheel(session.wheels, "tiny_x", "1.0")
    make_wheel(session.wheels, "tiny_c", "1.0", ("tiny_old>=2",))
    session.checkout(wanted, "tiny_c")
    session.run()
    assert session.packages() == {"tiny_a-1.0", "tiny_old-1.0", "tiny_c-1.0", "tiny_x-1.0"}


@pytest.mark.parametrize(
    ("where", "advice"), [("KAGGLE_KERNEL_RUN_TYPE", "switch the internet on"), ("", "connected")]
)
def test_what_cannot_be_installed_is_one_sentence(session, where, advice):
    session.checkout("tiny-nowhere")
    said = session.run(**{"COLAB_RELEASE_TAG": "", **({where: "Batch"} if where else {})})
    assert said.startswith("moe_colab.errors.MoEColabError: pip could not install tiny-nowhere")
    assert advice in said


def test_torch_is_never_chosen_for_a_local_machine(session):
    make_wheel(session.wheels, "torch", "9.0")
    make_wheel(session.wheels, "tiny_a", "1.0")
    (session.site / "around.pth").write_text("")
    pip = Path(sysconfig.get_paths()["purelib"])
    for path in [pip / "pip", *pip.glob("pip-*.dist-info")]:
        (session.site / path.name).symlink_to(path)
    session.checkout("tiny_a", "torch>=2.6")
    said = session.run(COLAB_RELEASE_TAG="")
    assert "MoEColabError: torch is not installed" in said and "pytorch.org" in said
    assert not {"torch-9.0", "tiny_a-1.0"} & session.packages()
    # Elsewhere it is installed like anything else; without psutil there is no card, and no failure.
    assert "no preflight card" in session.run()
    assert {"torch-9.0", "tiny_a-1.0"} <= session.packages()


def test_the_cell_installs_the_package_from_where_it_is_told_to(session, tmp_path):
    """From a git repository, as on Colab; the card appears, and the small model came along."""
    repository = commit_working_tree(tmp_path / "repository")
    for line in install.requirements():  # where a test environment has not all of them
        name = re.match(r"[\w-]+", line)[0]
        if not install.is_here(name):
            make_wheel(session.wheels, name.replace("-", "_"), "99")
    said = session.run(
        "import moe_colab.machine.folders as p; print(p.shipped_model(), 'torch' in sys.modules)\n"
        "print(importlib.import_module('moe_colab.notebook.install').requirements()[0])",
        MOE_COLAB_SOURCE=f"git+file://{repository}",
    )
    assert any(name.startswith("moe_colab-") for name in session.packages())
    assert "packages that were here before are unchanged" in said
    assert f"{session.site / 'moe_colab' / 'assets' / 'tiny-moe'} False" in said
    assert said.splitlines()[-1].startswith("torch")


def test_a_package_that_cannot_be_installed_is_one_sentence(session):
    said = session.run(MOE_COLAB_SOURCE="git+file:///nowhere")
    assert said.startswith("RuntimeError: git+file:///nowhere was not installed")


# ---------------------------------------------------------------------- the report
def test_a_mere_folder_of_that_name_is_no_package(session):
    """As after cloning the project into the notebook's folder."""
    session.checkout("torch")
    session.work = session.folder / "content"
    session.work.mkdir()
    (session.folder / "checkout").rename(session.work / "moe_colab")
    said = session.run("print(importlib.import_module('moe_colab').__file__)")
    assert said.endswith("content/moe_colab/moe_colab/__init__.py\n")
    assert not session.packages()


@pytest.mark.parametrize(
    "said, advice",
    [
        ("error: externally-managed-environment\n× This environment", "virtual environment"),
        ("/usr/bin/python: No module named pip", "-m ensurepip"),
        ("ERROR: Could not find a version", "connected"),
    ],
)
def test_what_to_do_follows_from_what_pip_said(said, advice):
    assert advice in install.advice(said)


def test_what_moved_is_named(monkeypatch):
    monkeypatch.setattr(install, "environment", lambda: "colab")
    before = {"numpy": "2.1", "torch": "2.11", "old": "1", "same": "3"}
    lines = install.report(before, {"numpy": "2.4", "torch": "2.11", "same": "3", "new": "5"})
    assert lines[1] == "installed: new 5"
    assert lines[2] == (
        "2 packages that were here before are unchanged; changed: numpy (2.1 before, 2.4 now), "
        "old (1 before, gone now)"
    )
    assert "transformers is not installed" in lines[0]


def test_of_two_versions_the_imported_one_counts():
    pairs = [("A_b.c", "2"), (None, "7"), ("a-b-c", "1")]
    assert install.by_name(pairs) == {"a-b-c": "2"}


def test_a_card_that_cannot_be_made_is_no_failure(monkeypatch, capsys):
    monkeypatch.setattr(install, "requirements", list)
    monkeypatch.setattr(preflight_module, "preflight", lambda: 1 / 0)
    assert install.setup() is None
    said = capsys.readouterr().out
    assert "unchanged" in said and "no preflight card: ZeroDivisionError" in said


def test_setup_returns_the_card(monkeypatch):
    monkeypatch.setattr(install, "requirements", list)
    assert isinstance(install.setup([("psutil", "0.1")]), Preflight)


def test_pip_is_told_not_to_compile_cuda(monkeypatch):
    seen = {}

    def run(command, env, **rest):
        seen.update(command=command, env=env)
        return subprocess.CompletedProcess(command, 1, "", "no")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(MoEColabError):
        install.install_missing(["nothing-like-it"])
    assert seen["env"]["DISABLE_CUDA"] == "1" and "--no-deps" in seen["command"]


# ---------------------------------------------------------------------- the card
OLMOE_LIKE = Sizes(
    *(13_800_000_000, 12_900_000_000),
    DeviceMemory([12_600_000] * 16, [64] * 16, 900_000_000),
    shards=9_800_000_000,
)


def machine(**changes) -> Preflight:
    rows = [
        describe(None, sizes=folder_sizes(TINY_MOE), here=True),
        describe("a/large", sizes=OLMOE_LIKE),
        describe("a/gated", "gated: log in"),
    ]
    facts = {
        "where": "colab",
        "gpu": Gpu("Tesla T4", 15360 << 20, 15095 << 20),
        "torch_has_cuda": True,
        "ram_total": 13 * GIB,
        "ram_free": 11 * GIB,
        "disk_free": 70 * GIB,
        "disk_folder": Path("/somewhere"),
        "cores": 2,
        "models": ModelList(rows),
    }
    return Preflight(**{**facts, **changes})


def fake_driver(folder, monkeypatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_the_gpu_is_what_the_driver_says(tmp_path, monkeypatch):
    fake_driver(tmp_path, monkeypatch, 'echo "$@" >> asked; echo "Tesla T4, 15360, 15095"')
    monkeypatch.chdir(tmp_path)
    assert find_gpu() == Gpu("Tesla T4", 15360 << 20, 15095 << 20)
    assert "--id" not in Path("asked").read_text()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert find_gpu() and "--id=1 " in Path("asked").read_text()
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert find_gpu() is None


@pytest.mark.parametrize(
    "script", ["exit 9", "echo broken", "true", "sleep 5", "echo A, [N/A], [N/A]"]
)
def test_a_driver_in_trouble_is_no_failure(tmp_path, monkeypatch, script):
    fake_driver(tmp_path, monkeypatch, f"exec {script}" if "sleep" in script else script)
    gpu = find_gpu(timeout=0.3)
    assert gpu == (Gpu("A", None, None) if "N/A" in script else None)
    if gpu:
        card = machine(gpu=gpu)
        assert "memory unknown" in card.text()
        assert card.verdict(card.models[1]).fits is None


def test_the_cards_numbers_are_the_machines(tmp_path, monkeypatch):
    fake_driver(tmp_path, monkeypatch, 'echo "Tesla T4, 15360, 15095"')
    monkeypatch.setattr(preflight_module, "torch_has_cuda", lambda: True)
    monkeypatch.setattr(preflight_module, "available_memory", lambda: 5_000_000_000)
    monkeypatch.setattr(preflight_module, "total_memory", lambda: 8_000_000_000)
    monkeypatch.setattr(preflight_module, "free_disk", lambda folder: 30_000_000_000)
    card = preflight_module.preflight()
    for shown in (card.text(), card._repr_html_().replace("&nbsp;", " ")):
        for fact in (
            "Tesla T4",
            "15.8 GB free of 16.1 GB",
            "5.0 GB free",
            "8.0 GB",
            "30.0 GB free",
        ):
            assert fact in shown
    assert repr(card) == card.text()
    assert card.on_gpu and card.verdict(card.models[0]).slots == 8


def test_slots_are_those_that_loading_would_take(monkeypatch):
    """The same arithmetic as placement's, on a GPU with room for some slots only."""
    from moe_colab.checkpoint.reader import Checkpoint
    from moe_colab.quantization.pack import cached_store

    layers = cached_store(Checkpoint(TINY_MOE), progress=False).manifest.layers
    memory = folder_sizes(TINY_MOE).memory
    for nbytes in range(memory.least(), memory.least() + 5 * sum(memory.blobs), 700_000):
        free = nbytes + placement.VRAM_RESERVE
        card = machine(gpu=Gpu("x", free, free))
        monkeypatch.setattr(placement, "free_memory", lambda device: free - memory.dense)  # noqa: B023
        cuda = torch.device("cuda")
        loaded = placement.device_memory(
            layers, [()] * 8, memory.dense, 0, torch.float32, cuda, "plain"
        )
        taken = placement.fitting_slots(loaded, None, 2, cuda)
        assert card.verdict(card.models[0]).slots == taken[0]


@pytest.mark.parametrize(
    ("changes", "fits", "why"),
    [
        ({}, True, "every expert has a slot on the GPU"),
        ({"gpu": Gpu("x", 8 * GIB, 8 * GIB)}, True, "of the experts are in RAM"),
        (
            {"gpu": Gpu("x", 8 * GIB, 8 * GIB), "ram_free": 20 * GIB},
            True,
            "every expert is in RAM",
        ),
        ({"disk_free": 23_599_999_999}, False, "23.6 GB of disk"),
        ({"gpu": Gpu("small", 2 * GIB, 2 * GIB)}, False, "GPU memory"),
        ({"gpu": None}, True, "slots=54 or fewer"),
        ({"gpu": None, "ram_free": GIB}, False, "host memory"),
        ({"gpu": None, "ram_free": 40 * GIB}, True, "experts on disk"),
        ({"torch_has_cuda": False, "ram_free": GIB}, False, "host memory"),
    ],
)
def test_what_fits_and_why_not(changes, fits, why):
    if why.startswith("slots="):
        changes = {**changes, "ram_free": 900_000_000 + (2 + 20 * 16) * 12_600_000}
        why = "slots=20 or fewer"
    card = machine(**changes)
    verdict = card.verdict(card.models[1])
    assert verdict.fits is fits and why in verdict.why
    for shown in (card.text(), card._repr_html_().replace("&nbsp;", " ")):
        assert why in shown and ("does not fit" in shown) == (fits is False)
        assert "gated: log in" in shown


def test_without_a_gpu_it_says_what_that_means():
    for where, advice in (("colab", "Change runtime type"), ("kaggle", "Accelerator")):
        card = machine(gpu=None, where=where)
        for shown in (card.text(), card._repr_html_().replace("&nbsp;", " ")):
            assert "runs on the CPU" in shown and advice in shown
    assert "Change runtime" not in machine(gpu=None, where="local").text()
    built = machine(torch_has_cuda=False)
    assert not built.on_gpu and "built without CUDA" in built.text()
    assert "runs on the CPU" not in machine().text()


def test_the_card_carries_its_own_style_and_asks_nobody():
    html = machine()._repr_html_()
    assert "http" not in html and "<script" not in html and "url(" not in html
    for name in set(re.findall(r'class="([^"]+)"', html)):
        assert name.startswith("moecard") and f".{name}" in html
    assert "✓" in html and "html[theme=dark]" in html and "data-jp-theme-light=false" in html


# ---------------------------------------------------------------------- the container
@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limits_count(tmp_path, monkeypatch, version):
    """The tightest of the groups up the tree; cached file pages count as free."""
    base = tmp_path / "memory" if version == 1 else tmp_path
    (base / "a" / "b").mkdir(parents=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    limit, used = names if version == 1 else ("memory.max", "memory.current")
    (base / "a" / limit).write_text("3000000\n")
    (base / "a" / used).write_text("1000000\n")
    (base / "a" / "memory.stat").write_text("inactive_file 200000\nactive_file 100000\n")
    (base / "a" / "b" / limit).write_text("max\n" if version == 2 else f"{1 << 62}\n")
    (base / "a" / "b" / used).write_text("1000000\n")
    own = tmp_path / "own"
    own.write_text("0::/a/b\n" if version == 2 else "4:cpu:/x\n5:memory:/a/b\n")
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_GROUPS", own)
    assert memory.total_memory() == 3_000_000
    assert memory.available_memory() == 2_300_000
    own.unlink()
    assert memory.total_memory() > 10_000_000


# ---------------------------------------------------------------------- stamped files
def test_stamping_changes_nothing_now():
    """Otherwise run `make notebooks`."""
    for path in NOTEBOOKS:
        text = path.read_text(encoding="utf-8")
        assert STAMP["stamped"](text, path.name) == text, f"{path.name} is not stamped"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert STAMP["ADDRESS"].sub(lambda match: STAMP["address"](match["path"]), readme) == readme


def test_the_setup_cell_is_the_same_everywhere():
    """And folded away, on Colab and in JupyterLab."""
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        notebook = json.loads(path.read_text())
        cells = notebook["cells"]
        (cell,) = [cell for cell in cells if "setup" in cell["metadata"].get("tags", [])]
        assert "".join(cell["source"]) == STAMP["setup_cell"]()
        assert cell["metadata"]["cellView"] == "form"
        assert cell["metadata"]["jupyter"] == {"source_hidden": True}
        assert "".join(cell["source"]).startswith("# @title Setup")
    assert "REPOSITORY" not in STAMP["setup_cell"]() and "BRANCH" not in STAMP["setup_cell"]()


def test_every_badge_leads_to_a_file_of_the_one_repository():
    repository, branch = STAMP["origin"]()
    start = f"{STAMP['COLAB']}{repository.removeprefix('https://github.com/')}/blob/{branch}/"
    badges = []
    for path in [ROOT / "README.md", *NOTEBOOKS]:
        found = re.findall(re.escape(STAMP["COLAB"]) + r"[^)\s\"\\]*", path.read_text())
        assert found, f"{path.name} has no badge"
        if path.suffix == ".ipynb":
            assert found[0] == f"{start}notebooks/{path.name}"
        badges += found
    for badge in badges:
        assert badge.startswith(start) and (ROOT / badge.removeprefix(start)).is_file(), badge
    assert {f"{start}notebooks/{path.name}" for path in NOTEBOOKS} <= set(badges)


def test_a_new_notebook_gets_badge_and_setup_and_a_stamped_one_stays():
    code = {"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "source": ["1 + ü"]}
    raw = json.dumps({"cells": [code], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    once = STAMP["stamped"](raw, "x.ipynb")
    assert STAMP["stamped"](once, "x.ipynb") == once and once.endswith("}\n") and "ü" in once
    badge, setup, own, following = json.loads(once)["cells"]
    assert "/notebooks/x.ipynb" in badge["source"][0] and own == code
    assert following["id"] == "next"
    assert setup["metadata"]["tags"] == ["setup"]
    moved = once.replace("/moe_colab/blob/main/", "/elsewhere/blob/old/branch/")
    assert STAMP["stamped"](moved.replace("pip install", "rm"), "x.ipynb") == once
