"""The tokenizer of a model: its own, another one that the user names, or none.

Knows transformers' tokenizers and what goes wrong with them; knows no model and no store.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..checkpoint.hub import fetch_small
from ..checkpoint.source import find_source, is_on_hub
from ..errors import MoEColabError
from ..files import one_line, read_json
from ..planner.sources import named

FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tokenizer_config.json",
)
OTHERS = (
    'give another one with tokenizer=, as "org/name" of the hub, a folder or an object, or '
    "tokenizer=False for the model alone"
)


def choose_tokenizer(
    folder: Path, choice: Any = None, progress: bool = True
) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the model in `folder`, None where it has none or `choice` is False. choice:
    None for the model's own; "org/name" or a folder that has another; or a tokenizer. Raises
    MoEColabError where there is no such tokenizer, or it cannot be loaded."""
    if choice is False:
        return None
    if choice in (None, True):
        return load_tokenizer(folder)
    if not isinstance(choice, (str, os.PathLike)):
        if not callable(choice) or not hasattr(choice, "decode"):
            raise MoEColabError(f"a {type(choice).__name__} is not a tokenizer: {OTHERS}.")
        return choice
    source, revision = named(choice)
    small = fetch_small(source, revision, progress) if is_on_hub(source) else find_source(source)
    tokenizer = load_tokenizer(small)
    if tokenizer is None:
        raise MoEColabError(f"{choice} has no tokenizer: {OTHERS}.")
    return tokenizer


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a folder, None if it has none. Raises MoEColabError for a damaged one, and
    for one that needs its own code or a package that is not installed."""
    if not any(os.path.lexists(folder / name) for name in FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises nothing more specific
        own_code = "it needs code of its own, which is never run"
        why = own_code if _has_own_code(folder) else one_line(error)
        raise MoEColabError(
            f"the tokenizer in {folder} cannot be loaded ({why}): {OTHERS}."
        ) from error


def _has_own_code(folder: Path) -> bool:
    """Whether a configuration in the folder names code for its tokenizer."""
    for name in ("tokenizer_config.json", "config.json"):
        if os.path.isfile(folder / name):
            with contextlib.suppress(MoEColabError):  # reported already, or no JSON
                body = read_json(folder / name, "a configuration")
                own = body.get("auto_map") if isinstance(body, dict) else None
                if isinstance(own, dict) and "AutoTokenizer" in own:
                    return True
    return False
