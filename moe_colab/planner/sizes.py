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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from ..cache.spares import SPARES
from ..errors import MoEColabError
from ..machine.folders import environment
from ..store.safetensors import weight_files

SIDE_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")  # beside the weights
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
HUB_TIMEOUT = 5.0  # seconds
NUMBER = re.compile(r"\.(\d+)\.")

Tensor = tuple[str, tuple[int, ...], int]
"""Name, shape and bytes."""


@dataclass(frozen=True)
class Sizes:
    """A checkpoint in bytes: `download` all of it, `experts` those of the layers that are run,
    `dense` everything else that is run, `slot` one expert in every layer, `largest` the largest
    expert. `layers` MoE layers have `experts_per_layer` experts each. `shards`: the two largest
    files, which is what lies on the disk at once of a download."""

    download: int
    experts: int
    dense: int
    slot: int
    largest: int
    layers: int
    experts_per_layer: int
    shards: int = 0

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


def measure(files: Iterable[Sequence[Tensor]], config: dict[str, Any]) -> Sizes:
    """Of the tensors of every file. Raises MoEColabError for a model without routed experts."""
    text = {**config, **(config.get("text_config") or {})}
    count = next((text[key] for key in EXPERT_COUNTS if isinstance(text.get(key), int)), 0)
    run = text.get("num_hidden_layers") or text.get("num_layers")
    dense, layers, shards = 0, Counter(), []
    for file in files:
        shards.append(sum(nbytes for _, _, nbytes in file))
        for name, shape, nbytes in file:
            found = NUMBER.search(name)
            if count and found and is_expert(name, shape, count):
                layer = int(found[1])
                if run is None or layer < run:  # beyond: for guessing ahead, which is not run
                    layers[layer] += nbytes
            else:
                dense += nbytes
    if not layers:
        raise MoEColabError("it has no routed experts that moe_colab can offload.")
    one = [nbytes // count for nbytes in layers.values()]
    total, two, moe = sum(shards), sum(sorted(shards)[-2:]), sum(layers.values())
    return Sizes(total, moe, dense, sum(one), max(one), len(layers), count, two)


def store_sizes(manifest: dict[str, Any]) -> Sizes:
    """Of a finished store, from what its moe_colab.json says. Raises ValueError, KeyError or
    TypeError where that is something else."""
    layers = [(layer["experts"], layer["layout"]["nbytes"]) for layer in manifest["layers"]]
    dense, slot = manifest["dense"]["nbytes"], sum(nbytes for _, nbytes in layers)
    moe, largest = sum(count * n for count, n in layers), max(nbytes for _, nbytes in layers)
    return Sizes(dense + moe, moe, dense, slot, largest, len(layers), layers[0][0])


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
        files = [header(folder / file) for file in weight_files(folder)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise MoEColabError(f"{folder} is not a whole checkpoint: {error}.") from error
    return measure(files, config)


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
    except MoEColabError:  # an index cut short
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
        [
            (name, tuple(entry.shape), entry.data_offsets[1] - entry.data_offsets[0])
            for name, entry in file.tensors.items()
        ]
        for file in files
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
