"""What a notebook's setup cell does: install what is missing, prove that nothing else moved, look
at the machine.

Knows pip and the versions of installed packages. Imports nothing but the standard library until all
that is missing is there, and never torch: what was installed before stays as it is, so that no
session has to be started anew.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MoEColabError
from ..machine.folders import environment
from ..version import __version__

if TYPE_CHECKING:
    from ..planner.preflight import Preflight

SHOWN = ("torch", "transformers", "ipywidgets")
NO_NETWORK = {
    "kaggle": "switch the internet on (Settings › Internet; it asks once for your phone number)",
    "colab": "run this cell again in a minute",
    "local": "look whether this machine is connected",
}
PIP = (
    *("-m", "pip", "install", "--quiet", "--no-deps", "--no-input"),
    *("--disable-pip-version-check", "--root-user-action=ignore"),
)


def setup(
    before: Iterable[tuple[str, str]] | None = None, extras: Sequence[str] = ()
) -> Preflight | None:
    """Make this session ready for moe_colab and say how it stands; the preflight card, None where
    it cannot be made.

    before: (name, version) of every package as it was before the setup cell did anything, in the
    order of the path; None for now. extras: what the notebook needs besides, by the names that
    pyproject.toml gives to it, such as "quantize". Installs only what is missing: without
    dependencies, and then those that are missing too. Raises MoEColabError where something is
    missing that it cannot or should not install.
    """
    old = versions() if before is None else by_name(before)
    remarks = install_missing(requirements(extras))
    print("\n".join([*report(old, versions()), *remarks]))
    try:
        from ..planner.preflight import preflight

        return preflight()
    except Exception as error:  # the card is a courtesy: a notebook runs without it
        print(f"(no preflight card: {type(error).__name__}: {error})")
        return None


def versions() -> dict[str, str]:
    """The version of every installed package, by its normalised name."""
    importlib.invalidate_caches()
    return by_name(
        (package.metadata["Name"], package.version) for package in metadata.distributions()
    )


def by_name(packages: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Of a package that is there twice, the first is the one that is imported."""
    found: dict[str, str] = {}
    for name, version in packages:
        if name:  # half-removed packages have none
            found.setdefault(normal(name), version)
    return found


def report(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Lines: where we are, the versions that matter, and what moved between the two."""
    shown = " · ".join(f"{name} {after.get(name, 'is not installed')}" for name in SHOWN)
    python = ".".join(map(str, sys.version_info[:3]))
    lines = [f"{environment()} · Python {python} · moe_colab {__version__} · {shown}"]
    new = [f"{name} {after[name]}" for name in sorted(after.keys() - before.keys())]
    if new:
        lines.append(f"installed: {', '.join(new)}")
    moved = [
        f"{name} ({version} before, {after.get(name, 'gone')} now)"
        for name, version in sorted(before.items())
        if after.get(name) != version
    ]
    same = len(before) - len(moved)
    lines.append(
        f"{same} packages that were here before are unchanged"
        + (f"; changed: {', '.join(moved)}" if moved else "")
    )
    return lines


# ---------------------------------------------------------------------- what is needed
def requirements(extras: Sequence[str] = ()) -> list[str]:
    """What moe_colab says it needs, with these extras: in a checkout its requirements.txt and
    pyproject.toml, else the installed package's metadata."""
    checkout = Path(__file__).parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "requirements.txt").is_file():
        lines = (checkout / "requirements.txt").read_text(encoding="utf-8").splitlines()
        lines = [line for line in map(str.strip, lines) if line and not line.startswith("#")]
        project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))[
            "project"
        ]
        return lines + [line for name in extras for line in project["optional-dependencies"][name]]
    try:
        lines = metadata.requires("moe_colab") or []
        return [line.partition(";")[0] for line in lines if applies(line, extras)]
    except metadata.PackageNotFoundError:
        return []  # a folder on the path, brought by someone who knows what it needs


def install_missing(needed: Iterable[str]) -> list[str]:
    """Install what of `needed` is missing, then what those need, and so on; one sentence for each
    package that is here in a version nobody asked for: it is left alone."""
    remarks: list[str] = []
    wanted = [(line, "moe_colab") for line in needed if applies(line)]
    asked = set()
    while wanted:
        missing, extras = {}, []
        for line, by in wanted:
            requirement = parse(line)
            if (str(requirement), by) in asked:
                continue
            asked.add((str(requirement), by))
            name = normal(requirement.name)
            if not is_here(requirement.name):
                missing[name] = requirement
            else:
                remarks += unmet(requirement, by)
                extras += [(name, requirement.extras)] if requirement.extras else []
        if missing:
            pip_install(list(missing.values()))
        wanted = [
            (line, name)
            for name, extras in [*extras, *((name, r.extras) for name, r in missing.items())]
            for line in needs_of(name, extras)
        ]
    return remarks


def is_here(name: str) -> bool:
    """Installed, or importable without being installed, as in some distributions."""
    try:
        metadata.version(name)
        return True
    except metadata.PackageNotFoundError:
        spec = util.find_spec(normal(name).replace("-", "_"))
        return spec is not None and spec.origin is not None  # not just a folder of that name


def unmet(requirement, by: str) -> list[str]:
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return []
    if requirement.specifier.contains(version, prereleases=True):
        return []
    return [
        f"{requirement.name} {version} is here, and {by} asks for {requirement.specifier}: it was "
        f'left as it is; if something fails, run `%pip install "{requirement.name}'
        f'{requirement.specifier}"` and restart the session'
    ]


def needs_of(name: str, extras: Iterable[str]) -> list[str]:
    """What an installed package needs in this environment, with these extras of it."""
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []
    return [line for line in lines if applies(line, extras)]


def applies(line: str, extras: Iterable[str] = ()) -> bool:
    """False where a requirement is for another system, another Python or another extra."""
    marker = parse(line).marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def pip_install(missing: list) -> None:
    names = ", ".join(requirement.name for requirement in missing)
    if environment() == "local" and any(normal(r.name) == "torch" for r in missing):
        raise MoEColabError(
            "torch is not installed, and which build is right depends on your machine: install it "
            "with the command that https://pytorch.org/get-started/locally shows for it, then run "
            "this cell again."
        )
    specs = [f"{r.name}{r.specifier}" if r.url is None else f"{r.name} @ {r.url}" for r in missing]
    # hqq would compile CUDA code while it is installed; DISABLE_CUDA tells it not to.
    env = {**os.environ, "DISABLE_CUDA": "1"}
    print(f"installing {names} …", flush=True)
    done = subprocess.run([sys.executable, *PIP, *specs], env=env, capture_output=True, text=True)
    importlib.invalidate_caches()
    absent = [r.name for r in missing if not is_here(r.name)]
    if done.returncode != 0 or absent:
        lines = (done.stderr.strip() or "no reason given").splitlines()
        said = next((line for line in lines if line.lower().startswith("error: ")), lines[-1])
        raise MoEColabError(
            f"pip could not install {', '.join(absent) or names} ({said[:200]}): "
            f"{advice(done.stderr)}, or install it yourself, then run this cell again."
        )


def advice(said: str) -> str:
    """What to do about pip's words."""
    if "externally-managed-environment" in said:
        return "this Python belongs to the system: start the notebook from a virtual environment"
    if "No module named pip" in said:
        return f"run `{sys.executable} -m ensurepip`"
    return NO_NETWORK[environment()]


def parse(line: str):
    """A requirement, by the library that pip itself carries along where it is not installed."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        from pip._vendor.packaging.requirements import Requirement
    return Requirement(line)


def normal(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()
