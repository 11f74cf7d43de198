"""Where we are and where things lie: Kaggle, Colab or elsewhere; the shipped model, what was
measured, packed stores.

Knows folders and the environment only, so that it can be asked before torch is imported.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .errors import MoEColabError


def environment() -> str:
    """ "kaggle", "colab" or "local". Kaggle's image is made from Colab's and carries its marks,
    so it is asked first."""
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return "kaggle"
    return "colab" if os.environ.get("COLAB_RELEASE_TAG") else "local"


def shipped_model() -> Path:
    """The small model that comes with moe_colab."""
    return shipped("tiny_moe", "tiny-moe")


def evaluation_folder() -> Path:
    """The evaluation text that comes with moe_colab."""
    return shipped("evaluation", "evaluation")


def benchmark(name: str) -> dict[str, Any]:
    """What was measured: the content of assets/benchmarks/`name`.json, which comes with moe_colab.
    Raises MoEColabError where there is none of this name."""
    folder = shipped("benchmarks", "benchmarks")
    names = sorted(path.stem for path in folder.glob("*.json"))
    if name not in names:
        raise MoEColabError(f"there is no benchmark {name!r}: choose from {', '.join(names)}.")
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def shipped_trace() -> Path:
    """The trace of the small model that comes with moe_colab."""
    return shipped("traces", "traces") / "four_domains.npz"


def shipped(package: str, asset: str) -> Path:
    """A folder that travels with an installed package, or lies in a checkout's assets."""
    here = Path(__file__).parent
    found = [path for path in (here / package, here.parent / "assets" / asset) if path.is_dir()]
    if not found:
        raise MoEColabError(f"{asset} is missing from this installation: install moe_colab again.")
    return found[0]


def web_asset(name: str) -> str:
    """A style sheet or script that comes with the package."""
    return (Path(__file__).parent / "web" / name).read_text(encoding="utf-8")


def cache_folder() -> Path:
    """Where stores of plain checkpoints are kept: MOE_COLAB_CACHE, or moe_colab in the user's cache
    folder."""
    root = os.environ.get("MOE_COLAB_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moe_colab"


def store_name(checkpoint: str) -> str:
    """How the folder of a checkpoint's store begins, in the cache folder."""
    return checkpoint.replace("/", "--")
