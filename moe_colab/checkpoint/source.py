"""Sources of models: a checkpoint folder, the small model in assets/, or the hub. Knows names and
folders; reads no weights."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import MoEColabError
from ..files import read_errors
from ..machine.folders import shipped_model
from ..planner.sources import SHIPPED, is_repo_id, named
from ..store import is_store
from .hub import fetch
from .reader import Checkpoint
from .shards import HubShards


def open_checkpoint(
    source: str | os.PathLike[str] | None, revision: str | None, progress: bool
) -> Checkpoint:
    """The checkpoint that `source` names. The weights of a model on the hub are downloaded later,
    when they are needed. Raises MoEColabError for a store."""
    source, revision = named(source, revision)
    if is_on_hub(source):
        snapshot = fetch(source, revision, progress)
        shards = HubShards(snapshot, progress)
        return Checkpoint(snapshot.folder, snapshot.repo_id, snapshot.revision, shards)
    folder = find_source(source)
    if is_store(folder):
        raise MoEColabError(
            f"{folder} is a store already: name the checkpoint from which it was made."
        )
    return Checkpoint(folder)


def is_on_hub(source: object) -> bool:
    """Whether `source` is the name of a model of the hub, and not a path on this machine."""
    return is_repo_id(source) and not os.path.exists(source)


def find_source(source: str | os.PathLike[str] | None) -> Path:
    """The folder that `source` names. Raises MoEColabError where it is not a folder, or is
    empty."""
    if source in (None, SHIPPED):
        return shipped_model()
    try:
        folder = Path(source).expanduser()
    except (TypeError, RuntimeError) as error:
        raise MoEColabError(f"{source!r} is not the name of a folder: {error}.") from error
    if source == "" or not os.path.exists(folder):  # False also for impossible names
        raise MoEColabError(
            f"{source or repr(source)} does not exist: name a store or a checkpoint folder on this "
            "machine, or a model of the hub as org/name."
        )
    if not os.path.isdir(folder):
        raise MoEColabError(f"{source} is a file: name its folder.")
    with read_errors(folder):
        empty = not os.listdir(folder)
    if empty:
        raise MoEColabError(f"{source} is an empty folder: name a store or a checkpoint folder.")
    return folder
