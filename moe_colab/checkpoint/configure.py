"""Changing how a finished store generates, without making it again: experts per token, chat
template, generation settings. Knows the files that hold them; touches no weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from ..errors import MoEColabError
from ..files import one_line, read_file, read_json
from ..store import Store, Summary, inspect
from ..store.reader import store_folder
from ..store.update import change_files
from .families import TOP_K

CONFIG, GENERATION, TEMPLATE = "config.json", "generation_config.json", "chat_template.jinja"

NUMBERS = (
    "temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff repetition_penalty "
    "length_penalty num_beams max_new_tokens min_new_tokens max_length min_length"
).split()


def configure(
    store: str | os.PathLike[str],
    *,
    top_k: int | None = None,
    chat_template: str | None = None,
    generation: Mapping[str, Any] | None = None,
) -> Summary:
    """Change settings of a finished store, and return its summary; no weight is touched.

    store: its folder. A store that `load` keeps of a checkpoint takes its settings from the
        checkpoint again when that is loaded.
    top_k: how many experts each token is sent to.
    chat_template: the text of the template, in Jinja.
    generation: settings of `model.generate` to change, {name: value}; None takes a setting out.

    Raises MoEColabError, and changes nothing, where a value cannot be used.

        mc.quantize("shipped", "my-store")
        report = mc.configure("my-store", top_k=1, generation={"temperature": 0.5})
        print(report.text())
    """
    folder = store_folder(store)
    manifest, contents = Store(folder).manifest, {}
    if top_k is not None:
        most = min(layer.experts for layer in manifest.layers)
        if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= most:
            raise MoEColabError(f"top_k must be 1 to {most}, not {top_k!r}.")
        contents[CONFIG] = as_json(with_top_k(read_json(folder / CONFIG, "a configuration"), top_k))
    if chat_template is not None:
        check_template(chat_template)
        contents[TEMPLATE] = chat_template.encode()
    if generation is not None:
        contents[GENERATION] = as_json(with_settings(folder, generation))
    if contents:
        change_files(folder, contents)
    return inspect(folder)


def with_top_k(config: dict[str, Any], top_k: int) -> dict[str, Any]:
    """A configuration with other experts per token. Raises MoEColabError where it has no such
    setting."""
    part = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    names = [name for name in TOP_K if part.get(name) is not None]
    if not names:
        raise MoEColabError("the configuration does not say how many experts each token gets.")
    for name in names:
        before = part[name]  # some families have a number for each layer
        part[name] = [top_k] * len(before) if isinstance(before, list) else top_k
    return config


def with_settings(folder: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The store's generation settings with these changes. Raises MoEColabError where they cannot be
    used."""
    path = folder / GENERATION
    settings = read_json(path, "generation settings") if path.exists() else {}
    settings |= changes
    settings = {name: value for name, value in settings.items() if value is not None}
    try:
        unused = GenerationConfig.from_dict(settings, return_unused_kwargs=True)[1]
        GenerationConfig(**settings).validate(strict=True)
        as_json(settings)
    except Exception as error:  # any value may be wrong
        raise MoEColabError(f"these settings cannot be used: {one_line(error)}") from error
    for name in NUMBERS:  # transformers finds these out in the middle of an answer
        value = settings.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise MoEColabError(f"these settings cannot be used: {name} must be a number.")
    unknown = sorted(set(changes) - set(vars(GenerationConfig())) | set(unused))
    if unknown:
        raise MoEColabError(f"transformers has no generation setting {unknown[0]!r}.")
    return settings


def check_template(text: str) -> None:
    """Raises MoEColabError for what is not a chat template."""
    from transformers.utils.chat_template_utils import render_jinja_template

    conversation = [{"role": "user", "content": "Hello"}]
    try:
        (rendered,), _ = render_jinja_template([conversation], chat_template=text)
    except Exception as error:  # a template may raise anything
        raise MoEColabError(f"this chat template cannot be used: {one_line(error)}") from error
    if "Hello" not in rendered:
        raise MoEColabError("this chat template leaves the message out: it needs message.content.")


def as_json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def template_in(path: str | os.PathLike[str]) -> str:
    """The chat template in a file. Raises MoEColabError where it cannot be read."""
    try:
        return read_file(path).decode()
    except UnicodeDecodeError as error:
        raise MoEColabError(f"{path} is not a text: {one_line(error)}.") from error
