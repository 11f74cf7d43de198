"""Folders and environment: Kaggle, Colab or elsewhere; the shipped assets; the cache folder for
stores.

Knows paths and environment variables; knows no torch and no models.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import MoEColabError

SHIPPED_MODEL = "tiny-moe"  # the folder of the small model, and so the name in its stores


def environment() -> str:
    """ "kaggle", "colab" or "local"."""
    # First Kaggle: its image is made from Colab's, and has Colab's variables too.
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return "kaggle"
    return "colab" if os.environ.get("COLAB_RELEASE_TAG") else "local"


def shipped_model() -> Path:
    """The checkpoint folder of the small model that comes with moe_colab."""
    return shipped(SHIPPED_MODEL)


def is_shipped_model(name: str) -> bool:
    """Whether `name`, of a model or of the checkpoint that a store was made of, is the small
    model's."""
    return name == SHIPPED_MODEL


def evaluation_folder() -> Path:
    """The folder of the evaluation text that comes with moe_colab."""
    return shipped("evaluation")


def benchmark(name: str) -> dict[str, Any]:
    """The results of a benchmark that come with moe_colab: the content of
    assets/benchmarks/`name`.json. Raises MoEColabError where there is no benchmark of this name."""
    folder = shipped("benchmarks")
    names = sorted(path.stem for path in folder.glob("*.json"))
    if name not in names:
        raise MoEColabError(f"there is no benchmark {name!r}: choose from {', '.join(names)}.")
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def shipped_trace() -> Path:
    """The file of the small model's trace that comes with moe_colab."""
    return shipped("traces") / "four_domains.npz"


def shipped(asset: str) -> Path:
    """One folder of the assets, which are installed in the package, or beside it in a checkout.
    Raises MoEColabError where it is missing."""
    package = Path(__file__).parents[1]
    candidates = (package / "assets" / asset, package.parent / "assets" / asset)
    folder = next((path for path in candidates if path.is_dir()), None)
    if folder is None:
        raise MoEColabError(f"{asset} is missing from this installation: install moe_colab again.")
    return folder


def cache_folder() -> Path:
    """The folder for stores of `mc.load` and `mc.quantized`: MOE_COLAB_CACHE, or moe_colab in the
    user's cache folder."""
    root = os.environ.get("MOE_COLAB_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moe_colab"


def store_name(checkpoint: str) -> str:
    """How the name of a checkpoint's store begins in the cache folder."""
    return checkpoint.replace("/", "--")
