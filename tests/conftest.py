"""What all tests share: a cache folder of their own, the shipped model, and no network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
# Test processes share few cores: with more threads than cores they would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parent.parent
TINY_MOE = ROOT / "assets" / "tiny-moe"


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory):
    """Stores made by tests never touch the user's cache folder; subprocesses inherit it."""
    folder = tmp_path_factory.mktemp("moe_colab_cache")
    before = os.environ.get("MOE_COLAB_CACHE")
    os.environ["MOE_COLAB_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["MOE_COLAB_CACHE"]
    else:
        os.environ["MOE_COLAB_CACHE"] = before
