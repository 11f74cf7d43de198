"""Where we are and where things lie: Kaggle, Colab or elsewhere; the shipped model, packed stores.

Knows folders and the environment only, so that it can be asked before torch is imported.
"""

from __future__ import annotations

import os
from pathlib import Path

from .errors import MoEColabError


def environment() -> str:
    """ "kaggle", "colab" or "local". Kaggle's image is made from Colab's and carries its marks,
    so it is asked first."""
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return "kaggle"
    return "colab" if os.environ.get("COLAB_RELEASE_TAG") else "local"


def shipped_model() -> Path:
    """The small model that comes with moe_colab, in an installed package or in a checkout."""
    here = Path(__file__).parent
    places = (here / "tiny_moe", here.parent / "assets" / "tiny-moe")
    found = next((place for place in places if (place / "config.json").is_file()), None)
    if found is None:
        raise MoEColabError(
            "the small model is missing from this installation: install moe_colab again."
        )
    return found


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
