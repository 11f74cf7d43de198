"""Side files of a finished store, brought up to date. Knows files; knows no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..errors import MoEColabError
from ..files import read_file
from .files import file_entry, remove, write_whole
from .manifest import NAME, FileEntry, Manifest
from .side_files import unlisted_files


def update_files(folder: Path, paths: Mapping[str, Path]) -> bool:
    """Make the side files (configuration, tokenizer) of a finished store equal to `paths`, by their
    names in the store, and delete others; True if that changed any. A kill leaves files that the
    next call corrects."""
    manifest = Manifest.load(folder)
    before, after, changed = {entry.name: entry for entry in manifest.files}, [], False
    for name, path in paths.items():
        entry = replace(file_entry(path.parent, path.name), name=name)
        if not _holds(folder, entry):
            entry, changed = write_whole(folder, name, [read_file(path)]), True
        after.append(entry)
    others = before.keys() | set(unlisted_files(folder, manifest))
    for name in sorted(others - paths.keys()):
        remove(folder, name)
    if tuple(after) != manifest.files:
        changed = True
        write_whole(folder, NAME, [replace(manifest, files=tuple(after)).dump().encode()])
    return changed


def _holds(folder: Path, entry: FileEntry) -> bool:
    """Whether the store has this file, with this content."""
    try:
        return file_entry(folder, entry.name) == entry
    except MoEColabError:
        return False
