"""Side files of a finished store, brought up to date. Knows files; knows no weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..errors import MoEColabError
from ..files import read_file, read_json
from .check import Check
from .files import file_entry, remove, write_whole
from .manifest import NAME, REPORT, FileEntry, Manifest
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


def change_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write these side files of a finished store, or add them; the others stay."""
    manifest = Manifest.load(folder)
    entries = {entry.name: entry for entry in manifest.files}
    for name, content in contents.items():
        entries[name] = write_whole(folder, name, [content])
    changed = replace(manifest, files=tuple(entries.values()))
    write_whole(folder, NAME, [changed.dump().encode()])


def change_report(folder: Path, check: Check) -> None:
    """Keep what a check has found in the report of a quantized store."""
    body = read_json(folder / REPORT, "a report of quantizing")
    body = {**body, "check": check.as_dict()}
    change_files(folder, {REPORT: json.dumps(body, indent=1).encode()})


def _holds(folder: Path, entry: FileEntry) -> bool:
    """Whether the store has this file, with this content."""
    try:
        return file_entry(folder, entry.name) == entry
    except MoEColabError:
        return False
