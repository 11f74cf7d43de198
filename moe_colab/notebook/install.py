"""What a notebook's setup cell does: it installs missing packages, reports that no other package
changed, and shows what this machine can run.

Knows pip and the versions of installed packages. Imports only the standard library until every
missing package is installed, and never torch: packages that were installed before stay as they are,
so that no session has to be restarted.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MoEColabError
from ..machine.folders import environment
from ..machine.threads import let_threads_sleep
from ..version import __version__

if TYPE_CHECKING:
    from ..planner.preflight import Preflight

REPORTED = ("torch", "transformers", "ipywidgets")
NO_NETWORK = {
    "kaggle": "switch the internet on (Settings › Internet; it asks once for your phone number)",
    "colab": "run this cell again in a minute",
    "local": "check that this machine is connected to the internet",
}
PIP = (
    *("-m", "pip", "install", "--quiet", "--no-input"),
    *("--disable-pip-version-check", "--root-user-action=ignore"),
)


def setup(before: Iterable[tuple[str, str]] | None = None, _extras: Any = ()) -> Preflight | None:
    """Install what moe_colab needs and this session lacks, print what changed, and return the
    preflight card, or None where the card cannot be made. Lets torch's threads sleep while they
    wait, unless torch is imported already.

    before: (name, version) of every package that was installed before the setup cell ran, in the
    order of sys.path; None: what is installed now. _extras: ignored; setup cells of earlier
    versions pass it. Raises MoEColabError for a missing package that cannot or should not be
    installed.
    """
    let_threads_sleep()
    old = versions() if before is None else by_name(before)
    remarks = install_missing(requirements())
    print("\n".join([*report(old, versions()), *remarks]))
    try:
        from ..planner.preflight import preflight

        return preflight()
    except Exception as error:  # the notebook runs without the card too
        print(f"(no preflight card: {type(error).__name__}: {error})")
        return None


def versions() -> dict[str, str]:
    """The version of every installed package, by its normalised name."""
    importlib.invalidate_caches()
    return by_name(
        (package.metadata["Name"], package.version) for package in metadata.distributions()
    )


def by_name(packages: Iterable[tuple[str, str]]) -> dict[str, str]:
    """{normalised name: version}. Of a package that is installed twice, the first one counts: it is
    the one that Python imports."""
    version_of: dict[str, str] = {}
    for name, version in packages:
        if name:  # half-removed packages have no name
            version_of.setdefault(normal(name), version)
    return version_of


def report(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Lines of text: the environment, the main versions, and what changed from before to after."""
    main = " · ".join(f"{name} {after.get(name, 'is not installed')}" for name in REPORTED)
    python = ".".join(map(str, sys.version_info[:3]))
    lines = [f"{environment()} · Python {python} · moe_colab {__version__} · {main}"]
    new = [f"{name} {after[name]}" for name in sorted(after.keys() - before.keys())]
    if new:
        lines.append(f"installed: {', '.join(new)}")
    changed = [
        f"{name} ({version} before, {after.get(name, 'gone')} now)"
        for name, version in sorted(before.items())
        if after.get(name) != version
    ]
    same = len(before) - len(changed)
    lines.append(
        f"{same} packages that were here before are unchanged"
        + (f"; changed: {', '.join(changed)}" if changed else "")
    )
    return lines


# ---------------------------------------------------------------------- what is missing
def requirements() -> list[str]:
    """The requirements of moe_colab: in a checkout its requirements.txt, elsewhere the metadata of
    the installed package."""
    file = Path(__file__).parents[2] / "requirements.txt"
    if file.is_file() and file.with_name("pyproject.toml").is_file():
        lines = map(str.strip, file.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line and not line.startswith("#")]
    return needs_of("moe_colab")  # nothing for a mere folder on sys.path


def needs_of(name: str, extras: Iterable[str] = ()) -> list[str]:
    """What an installed package requires in this environment, with these extras of it."""
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []
    needed = [one for one in map(parse, lines) if applies(one, extras)]
    for one in needed:
        one.marker = None  # it was decided here; pip knows no extras of `name`
    return list(map(str, needed))


def install_missing(needed: Iterable[str], by: str = "moe_colab") -> list[str]:
    """Install the missing ones of `needed`, which `by` requires; one sentence for each package that
    is installed in a version that does not match: that package stays as it is.

    pip's resolver chooses the versions, with every installed package held at its own version. Where
    that has no solution, or where pip would install a package again that can be imported but is not
    installed, the missing packages are installed without dependencies, and then the dependencies in
    the same way. So one conflict does not stop the other packages.
    """
    requirements = [one for one in map(parse, needed) if applies(one)]
    remarks = [remark for one in requirements if (remark := mismatch(one, by))]
    missing = [one for one in requirements if not is_here(one.name, one.extras)]
    if not missing:
        return remarks
    names = ", ".join(one.name for one in missing)
    if environment() == "local" and any(normal(one.name) == "torch" for one in missing):
        raise MoEColabError(
            "torch is not installed, and the right build depends on your machine: install it with "
            "the command that https://pytorch.org/get-started/locally shows for your machine, then "
            "run this cell again."
        )
    print(f"installing {names} …", flush=True)
    known = all(one in missing or is_installed(one.name) for one in requirements)
    if known and pip_install(missing, frozen=True).returncode == 0:
        return remarks
    absent = [one for one in missing if not is_here(one.name)]  # the others lack only an extra
    done = pip_install(absent, frozen=False) if absent else None
    failed = ", ".join(one.name for one in absent if not is_here(one.name))
    if done and (done.returncode != 0 or failed):
        lines = (done.stderr.strip() or "no reason given").splitlines()
        reason = next((line for line in lines if line.lower().startswith("error: ")), lines[-1])
        raise MoEColabError(
            f"pip could not install {failed or names} ({reason[:200]}): {advice(done.stderr)}, or "
            "install it yourself, then run this cell again."
        )
    for one in missing:
        remarks += install_missing(needs_of(one.name, one.extras), normal(one.name))
    return remarks


def is_here(name: str, extras: Iterable[str] = ()) -> bool:
    """Whether a package is installed with what these extras need, or can be imported without being
    installed, as in some distributions."""
    if is_installed(name):
        needed = map(parse, needs_of(name, extras) if extras else ())
        return all(is_here(one.name, one.extras) for one in needed)
    spec = util.find_spec(normal(name).replace("-", "_"))
    return spec is not None and spec.origin is not None  # not just a folder of that name


def is_installed(name: str) -> bool:
    return any(metadata.distributions(name=name))


def mismatch(requirement, by: str) -> str | None:
    """What to say about a package that is installed in a version which `by` does not accept."""
    name, accepted = requirement.name, requirement.specifier
    if not is_installed(name) or accepted.contains(metadata.version(name), prereleases=True):
        return None
    return (
        f"{name} {metadata.version(name)} is here, and {by} asks for {accepted}: it was left as it "
        f'is; if something fails, run `%pip install "{name}{accepted}"` and restart the session'
    )


def pip_install(missing: Iterable, frozen: bool) -> subprocess.CompletedProcess[str]:
    """Run pip: frozen: with dependencies, every installed package held at its version; else without
    dependencies."""
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "constraints.txt"
        pins.write_text("\n".join(filter(is_valid, map("==".join, versions().items()))), "utf-8")
        how = ("--constraint", str(pins)) if frozen else ("--no-deps",)
        done = subprocess.run(
            [sys.executable, *PIP, *how, *map(str, missing)],
            env={**os.environ, "DISABLE_CUDA": "1"},  # else hqq compiles CUDA code
            capture_output=True,
            text=True,
        )
    importlib.invalidate_caches()
    return done


def advice(stderr: str) -> str:
    """What to do about an error of pip."""
    if "externally-managed-environment" in stderr:
        return "this Python belongs to the system: start the notebook from a virtual environment"
    if "No module named pip" in stderr:
        return f"run `{sys.executable} -m ensurepip`"
    return NO_NETWORK[environment()]


# ---------------------------------------------------------------------- requirements
def parse(line: str):
    """A packaging Requirement, by pip's own copy of packaging where that is not installed."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        from pip._vendor.packaging.requirements import Requirement
    return Requirement(line)


def is_valid(line: str) -> bool:
    """False for versions of old packages that pip does not read."""
    try:
        return bool(parse(line))
    except ValueError:
        return False


def applies(requirement, extras: Iterable[str] = ()) -> bool:
    """False where a requirement is for another system, another Python or another extra."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def normal(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()
