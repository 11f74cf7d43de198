"""Side files: what stands beside the weights of a checkpoint or a store, and transformers reads.

Knows names and folders; reads no content.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from ..files import read_errors
from .manifest import NAME, Manifest

TEMPLATES = "additional_chat_templates"  # the folder of named chat templates
# The configuration, the tokenizer in all its forms, how to generate; and chat templates.
PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.bpe", "*.vocab", "*.spm")
WEIGHTS = ("*.safetensors", "*.bin")
NOT_TAKEN = ("*.index.json", NAME, "quantization.json")  # of other weights, or of a store


def is_side_file(name: str) -> bool:
    """Whether a file belongs beside the weights, by its path in the checkpoint, with "/"."""
    place, _, name = name.rpartition("/")
    if place:
        return place == TEMPLATES and fnmatchcase(name, "*.jinja")
    return matches(name, PATTERNS) and not matches(name, NOT_TAKEN)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether the name of a file, which is not hidden, fits one of these patterns."""
    return name[0] != "." and any(fnmatchcase(name, pattern) for pattern in patterns)


def side_files(folder: Path) -> dict[str, Path]:
    """The side files of a checkpoint's folder by their path in it, sorted. Raises MoEColabError
    where the folder cannot be read."""
    names = filter(is_side_file, _names(folder))
    return {name: folder / name for name in names if os.path.isfile(folder / name)}


def unlisted_files(folder: Path, manifest: Manifest) -> list[str]:
    """The side files and weights in a store's folder that its manifest does not list."""
    listed = set(manifest.file_names())
    return [
        name
        for name in _names(folder)
        if name not in listed and (is_side_file(name) or matches(name, (*PATTERNS, *WEIGHTS)))
    ]


def _names(folder: Path) -> list[str]:
    """The paths of all files in the folder, and of those in the folder of named templates."""
    with read_errors(folder):
        names = [name for name in os.listdir(folder) if not os.path.isdir(folder / name)]
        if os.path.isdir(folder / TEMPLATES):
            names += [f"{TEMPLATES}/{name}" for name in os.listdir(folder / TEMPLATES)]
    return sorted(names)
