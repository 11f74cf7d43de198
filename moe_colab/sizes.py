"""How many bytes a model's parts take, told from the headers of its safetensors files.

Knows the header's format, the names that checkpoints give to experts, and the hub's way of sending
a part of a file. Reads no weights and builds no model: that takes torch, and these numbers are
wanted before. `checkpoint.py` knows exactly which tensor feeds which expert; that both agree is
tested for every family that is promised.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from .errors import MoEColabError
from .hardware import SPARES
from .places import environment

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
HUB_TIMEOUT = 5.0  # seconds
NUMBER = re.compile(r"\.(\d+)\.")

Tensor = tuple[str, tuple[int, ...], int]
"""Name, shape and bytes."""


@dataclass(frozen=True)
class Sizes:
    """A checkpoint in bytes: `download` all of it, `experts` those of the layers that are run,
    `dense` everything else that is run, `slot` one expert in every layer, `largest` the largest
    expert. `layers` MoE layers have `experts_per_layer` experts each."""

    download: int
    experts: int
    dense: int
    slot: int
    largest: int
    layers: int
    experts_per_layer: int

    def store(self) -> int:
        """What is left of it in a store."""
        return self.experts + self.dense

    def least_memory(self) -> int:
        """With one slot in every layer, and the spares."""
        return self.dense + self.slot + SPARES * self.largest

    def slots_within(self, nbytes: int) -> int:
        """Slots a layer that `nbytes` hold beside everything else; 0 where not even one fits."""
        room = nbytes - self.dense - SPARES * self.largest
        return max(0, min(self.experts_per_layer, room // self.slot))


def measure(tensors: Iterable[Tensor], config: dict[str, Any]) -> Sizes:
    """Raises MoEColabError for a model without routed experts."""
    text = {**config, **(config.get("text_config") or {})}
    count = next((text[key] for key in EXPERT_COUNTS if isinstance(text.get(key), int)), 0)
    run = text.get("num_hidden_layers") or text.get("num_layers")
    total = dense = 0
    layers: Counter[int] = Counter()
    for name, shape, nbytes in tensors:
        total += nbytes
        found = NUMBER.search(name)
        if count and found and is_expert(name, shape, count):
            layer = int(found[1])
            if run is None or layer < run:  # beyond: a layer for guessing ahead, which is not run
                layers[layer] += nbytes
        else:
            dense += nbytes
    if not layers:
        raise MoEColabError("it has no routed experts that moe_colab can offload.")
    one = [nbytes // count for nbytes in layers.values()]
    return Sizes(total, sum(layers.values()), dense, sum(one), max(one), len(layers), count)


def is_expert(name: str, shape: tuple[int, ...], experts: int) -> bool:
    """True for a routed expert's tensor and for one that all experts of a layer lie in. (A shared
    expert is called `shared_experts`; a convolution's second axis is 1.)"""
    fused = len(shape) == 3 and shape[0] == experts and shape[1] > 1
    return ".experts." in name or fused


# ---------------------------------------------------------------------- on this machine
def folder_sizes(folder: Path) -> Sizes:
    """Of a checkpoint folder. Raises MoEColabError where it is none."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = [t for file in weight_files(folder) for t in header(folder / file)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise MoEColabError(f"{folder} is not a whole checkpoint: {error}.") from error
    return measure(tensors, config)


def weight_files(folder: Path) -> list[str]:
    if not (folder / INDEX).is_file():
        return [SINGLE]
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return sorted(set(index["weight_map"].values()))


def header(path: Path) -> list[Tensor]:
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > os.fstat(file.fileno()).st_size:
            raise ValueError(f"{path.name} is not a safetensors file")
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    return [
        (name, tuple(entry["shape"]), entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in entries.items()
    ]


# ---------------------------------------------------------------------- on the hub
def downloaded(repo_id: str) -> Path | None:
    """The folder of an earlier download of this model, if all of its weights are there."""
    config = try_to_load_from_cache(repo_id, "config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    try:
        whole = all((folder / file).is_file() for file in weight_files(folder))
    except (ValueError, KeyError, TypeError, AttributeError):  # an index cut short
        return None
    return folder if whole else None


def hub_access(token: str | None = None) -> HfApi:
    """With this token, or with the user's own, if there is one. On Colab huggingface_hub would
    otherwise look among the secrets, whether that is needed or not, in whichever thread it runs."""
    own = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    has_own = any(map(os.environ.get, own)) or Path(constants.HF_TOKEN_PATH).is_file()
    anonymous = token is None and environment() == "colab" and not has_own
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=False if anonymous else token)


def hub_sizes(repo_id: str) -> Sizes:
    """Of a model on the hub: fetches its configuration, its index and the headers, no weights.
    Raises what huggingface_hub raises, and MoEColabError."""
    hub = hub_access()
    # First what is asked once and no more: the downloads try again and again, and say so.
    commit = hub.model_info(repo_id, timeout=HUB_TIMEOUT).sha
    config = json.loads(
        Path(hub.hf_hub_download(repo_id, "config.json", revision=commit)).read_text("utf-8")
    )
    files = hub.get_safetensors_metadata(repo_id, revision=commit).files_metadata.values()
    tensors = [
        (name, tuple(entry.shape), entry.data_offsets[1] - entry.data_offsets[0])
        for file in files
        for name, entry in file.tensors.items()
    ]
    return measure(tensors, config)


@contextlib.contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """The hub's bars."""
    hide = not shown and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()
