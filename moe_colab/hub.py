"""A model of the hub becomes a folder on this machine.

Knows huggingface_hub and which files a checkpoint is read from. Downloads in two steps: the small
files first, so that a model that cannot be offloaded is refused before any weights move; then the
weights, only those that are needed, going on where an earlier download stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .architecture import load_config, skeleton
from .checkpoint import SIDE_FILES
from .errors import MoEColabError
from .hardware import free_disk, human
from .sizes import INDEX, SINGLE, hub_access, progress_bars

REPO_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
COLAB_SECRET = "HF_TOKEN"


@dataclass(frozen=True)
class Snapshot:
    """One revision of a model in the hub's cache folder; `revision` is its commit."""

    repo_id: str
    revision: str
    folder: Path


def is_repo_id(source: object) -> bool:
    """True for what looks like org/name."""
    return isinstance(source, str) and REPO_ID.fullmatch(source) is not None


def fetch(repo_id: str, revision: str | None = None, progress: bool = True) -> Snapshot:
    """The model's configuration, tokenizer and safetensors weights on this machine. Raises
    MoEColabError where it is not there, not open to this user, not of a kind that can be offloaded,
    or where the disk has no room for it and for the store that is made of it."""
    with hub_errors(repo_id, revision), progress_bars(progress):
        if constants.HF_HUB_OFFLINE:
            return from_cache(repo_id, revision)
        info, hub = with_colab_token(
            lambda hub: hub.model_info(repo_id, revision=revision, files_metadata=True)
        )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings}
        small = [name for name in sizes if "/" not in name and is_small_file(name)]
        # By the name of the revision: offline, it is found by that name again.
        folder = Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=small))
        commit = folder.name
        skeleton(load_config(folder))
        weights = weight_files(repo_id, folder, sizes)
        check_disk(repo_id, commit, {name: sizes[name] for name in weights})
        hub.snapshot_download(repo_id, revision=commit, allow_patterns=[*small, *weights])
        return Snapshot(repo_id, commit, folder)


def from_cache(repo_id: str, revision: str | None) -> Snapshot:
    """What an earlier download left; whether it is whole is seen when it is read."""
    config = try_to_load_from_cache(repo_id, "config.json", revision=revision)
    if not isinstance(config, str):
        raise MoEColabError(
            f"{repo_id} is not on this machine, and the hub must not be asked: leave offline mode "
            "(HF_HUB_OFFLINE) to download it."
        )
    folder = Path(config).parent
    return Snapshot(repo_id, folder.name, folder)


def is_small_file(name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in SIDE_FILES)


def weight_files(repo_id: str, folder: Path, sizes: dict[str, int]) -> list[str]:
    """The files that the weights lie in, and no other form of the same weights."""
    if (folder / INDEX).is_file():
        named = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    else:
        named = {SINGLE}
    missing = sorted(named - sizes.keys())
    if missing:
        raise MoEColabError(
            f"{repo_id} has no {missing[0]}: moe_colab needs its weights as {SINGLE} or in shards "
            f"with {INDEX}."
        )
    return sorted(named)


def check_disk(repo_id: str, revision: str, weights: dict[str, int]) -> None:
    """Room for the files that are not here yet, and for the store, which is as large as all of
    them."""
    here = {
        name
        for name in weights
        if isinstance(try_to_load_from_cache(repo_id, name, revision=revision), str)
    }
    download = sum(size for name, size in weights.items() if name not in here)
    if not download:
        return  # the packing looks itself, and knows what is packed already
    need, free = download + sum(weights.values()), free_disk(Path(constants.HF_HUB_CACHE))
    if need > free:
        raise MoEColabError(
            f"{repo_id} needs {human(need)} of disk ({human(download)} to download, the rest for "
            f"the store made of it), and {human(free)} are free: make room, or set HF_HUB_CACHE "
            "and MOE_COLAB_CACHE to folders on a larger disk."
        )


# ---------------------------------------------------------------------- access
def with_colab_token(call: Callable[[HfApi], Any]) -> tuple[Any, HfApi]:
    """The call's answer and the access that got it: the user's own, or, where the hub says no and
    this is Colab, that of Colab's secret, asked for once and only then (it asks the user)."""
    try:
        return call(hub_access()), hub_access()
    except (GatedRepoError, RepositoryNotFoundError):
        token = colab_token()
        if token is None:
            raise
        return call(hub_access(token)), hub_access(token)


def colab_token() -> str | None:
    try:
        from google.colab import userdata
    except ImportError:
        return None
    try:
        return userdata.get(COLAB_SECRET) or None
    except Exception:  # not granted, not there, or no answer: three errors of Colab's own
        return None


@contextlib.contextmanager
def hub_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """The hub's many errors as one sentence that says what to do."""
    page = f"{os.environ.get('HF_ENDPOINT') or constants.ENDPOINT}/{repo_id}"
    try:
        yield
    except GatedRepoError as error:
        raise MoEColabError(
            f"{repo_id} is gated: accept its terms at {page}, then log in with `hf auth login` or "
            f"set {COLAB_SECRET} (on Colab, as a secret that this notebook may read)."
        ) from error
    except RepositoryNotFoundError as error:
        raise MoEColabError(
            f"{repo_id} is neither a folder on this machine nor a model on the hub that you may "
            "see: check its name, and log in with `hf auth login` if it is private."
        ) from error
    except RevisionNotFoundError as error:
        raise MoEColabError(
            f"{repo_id} has no revision {revision!r}: see {page}/commits."
        ) from error
    except LocalEntryNotFoundError as error:
        raise MoEColabError(
            f"{repo_id} is not whole on this machine, and the hub does not answer: try again when "
            "connected; a download goes on where it stopped."
        ) from error
    except HFValidationError as error:
        raise MoEColabError(f"{repo_id} is no name that the hub allows: {error}") from error
    except (HTTPError, ConnectionError) as error:
        raise MoEColabError(
            f"the hub did not give {repo_id} ({type(error).__name__}): try again later; a download "
            "goes on where it stopped."
        ) from error
    except OSError as error:
        raise MoEColabError(
            f"{repo_id} could not be written to {constants.HF_HUB_CACHE}: "
            f"{error.strerror or error}."
        ) from error
