"""How threads wait: what OpenMP itself reports when torch loads it, in new processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from moe_colab.machine.threads import CHOICES

pytestmark = pytest.mark.colab
SHELL = ["-m", "moe_colab", "chat", "/no/such/folder"]  # imports torch, then refuses the folder
NOTEBOOK = ["-c", "from moe_colab.notebook import setup; setup(); import torch"]


def settings_of_openmp(command: list[str], **given: str) -> dict[str, str]:
    """OpenMP's settings by name, as it prints them while it is loaded."""
    free = {name: value for name, value in os.environ.items() if name not in CHOICES}
    env = {**free, "OMP_DISPLAY_ENV": "verbose", **given}
    out = subprocess.run(
        [sys.executable, *command], env=env, cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    found = dict(re.findall(r"(\w+) = '([^']*)'", out.stderr))
    assert "GOMP_SPINCOUNT" in found, out.stderr  # how often a waiting thread looks, then sleeps
    return found


@pytest.mark.parametrize("command", [SHELL, NOTEBOOK], ids=["shell", "setup cell"])
def test_threads_sleep_where_our_programs_start(command):
    assert int(settings_of_openmp(["-c", "import torch"])["GOMP_SPINCOUNT"]) > 10_000
    assert settings_of_openmp(command)["GOMP_SPINCOUNT"] == "0"


@pytest.mark.parametrize("command", [SHELL, NOTEBOOK], ids=["shell", "setup cell"])
def test_a_users_own_choice_stays(command):
    found = settings_of_openmp(command, OMP_WAIT_POLICY="active", OMP_NUM_THREADS="1")
    assert (found["OMP_WAIT_POLICY"], found["OMP_NUM_THREADS"]) == ("ACTIVE", "1")
    found = settings_of_openmp(command, GOMP_SPINCOUNT="1234", OMP_NUM_THREADS="2")
    assert (found["GOMP_SPINCOUNT"], found["OMP_NUM_THREADS"]) == ("1234", "2")


def test_after_torch_nothing_is_changed():
    code = (
        "import os, torch; from moe_colab.machine.threads import let_threads_sleep\n"
        "print(let_threads_sleep(), 'OMP_WAIT_POLICY' in os.environ)"
    )
    env = {name: value for name, value in os.environ.items() if name not in CHOICES}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.stdout.split() == ["False", "False"], out.stderr
