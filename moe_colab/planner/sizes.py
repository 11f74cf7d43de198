"""Sizes of a model's parts in bytes, from the headers of its safetensors files.

Knows headers, the names of experts in checkpoints, and the hub. Reads no weights and builds no
model, because that needs torch. checkpoint/reader.py knows exactly which tensor belongs to which
expert; a test checks that both agree for every supported family.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.utils import (
    SafetensorsFileMetadata,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from ..errors import MoEColabError
from ..files import one_line, read_json
from ..store.blobs import BLOB_ALIGNMENT, DTYPE_BYTES, align
from ..store.manifest import Manifest
from ..store.safetensors import SINGLE, TensorEntry, check_header, read_header, weight_files
from .access import hub_access
from .device_memory import DeviceMemory

EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
HUB_TIMEOUT = 5.0  # seconds
NUMBER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Sizes:
    """Bytes of a checkpoint or a store: `download` is all of it, `experts` the routed experts of
    the layers that are run, `memory` what is needed on a device, `shards` the two largest files,
    which are on the disk at once during a download."""

    download: int
    experts: int
    memory: DeviceMemory
    shards: int = 0

    @property
    def layers(self) -> int:
        """The number of MoE layers."""
        return len(self.memory.blobs)

    @property
    def experts_per_layer(self) -> int:
        """The number of experts in the largest layer."""
        return max(self.memory.experts)

    @property
    def largest(self) -> int:
        """Bytes of the largest expert."""
        return max(self.memory.blobs)

    def store(self) -> int:
        """Bytes of a store of it, without quantizing."""
        return self.experts + self.memory.dense


def measure(files: Iterable[Iterable[TensorEntry]], config: dict[str, Any]) -> Sizes:
    """The sizes of a checkpoint, from the tensors of every file. Raises MoEColabError for a model
    without routed experts."""
    if not isinstance(config, dict):
        raise MoEColabError("its config.json is not a model configuration.")
    inner = config.get("text_config")
    text = {**config, **(inner if isinstance(inner, dict) else {})}
    count = next((text[key] for key in EXPERT_COUNTS if isinstance(text.get(key), int)), 0)
    run = text.get("num_hidden_layers") or text.get("num_layers")
    run = run if isinstance(run, int) else None
    dense, layers, shards = 0, Counter(), []
    for file in files:
        shards.append(0)
        for entry in file:
            shards[-1] += entry.nbytes
            number = NUMBER.search(entry.name)
            if count and number and is_expert(entry.name, entry.shape, count):
                layer = int(number[1])
                if run is None or layer < run:  # later ones (multi-token prediction) are not run
                    layers[layer] += entry.nbytes
            else:
                dense += entry.nbytes
    if not layers:
        raise MoEColabError("it has no routed experts that moe_colab can offload.")
    blobs = tuple(align(layers[number] // count, BLOB_ALIGNMENT) for number in sorted(layers))
    memory = DeviceMemory(blobs, (count,) * len(blobs), dense)
    return Sizes(sum(shards), sum(layers.values()), memory, sum(sorted(shards)[-2:]))


def store_sizes(manifest: Manifest) -> Sizes:
    """The sizes of a finished store; nothing of it is left to download."""
    blobs = tuple(layer.layout.nbytes for layer in manifest.layers)
    experts = tuple(layer.experts for layer in manifest.layers)
    low_bit = (matrix.layout.parameters() for matrix in manifest.low_bit_matrices)
    largest = max(low_bit, default=0)
    working = largest * DTYPE_BYTES[manifest.dtype]
    memory = DeviceMemory(blobs, experts, manifest.dense_bytes(), working=working)
    return Sizes(manifest.total_bytes(), manifest.expert_bytes(), memory)


def is_expert(name: str, shape: tuple[int, ...], experts: int) -> bool:
    """Whether a tensor belongs to a routed expert, or holds all experts of a layer. (The name of a
    shared expert is `shared_experts`; the second axis of a convolution is 1.)"""
    fused = len(shape) == 3 and shape[0] == experts and shape[1] > 1
    return ".experts." in name or fused


# ---------------------------------------------------------------------- on this machine
def folder_sizes(folder: Path) -> Sizes:
    """The sizes of a checkpoint folder. Raises MoEColabError if the checkpoint is not complete."""
    path = folder / "config.json"
    missing = f"{folder} is not a complete checkpoint: it has no config.json."
    config = read_json(path, "a model configuration", missing)
    return measure([read_header(folder / file).values() for file in weight_files(folder)], config)


# ---------------------------------------------------------------------- on the hub
def downloaded(repo_id: str) -> Path | None:
    """The folder of an earlier download of this model; None unless all of its weights are there."""
    config = try_to_load_from_cache(repo_id, "config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    try:
        whole = all((folder / file).is_file() for file in weight_files(folder))
    except MoEColabError:  # the index is damaged
        return None
    return folder if whole else None


def hub_sizes(repo_id: str) -> Sizes:
    """The sizes of a model on the hub. Fetches its configuration, its index and the headers, no
    weights. Raises MoEColabError, and huggingface_hub's errors."""
    hub = hub_access()
    # This call first: it fails at once, while downloads retry and print warnings.
    commit = hub.model_info(repo_id, timeout=HUB_TIMEOUT).sha
    path = hub.hf_hub_download(repo_id, "config.json", revision=commit)
    config = read_json(path, "a model configuration")
    files = hub.get_safetensors_metadata(repo_id, revision=commit).files_metadata.values()
    return measure([hub_entries(file).values() for file in files], config)


def hub_entries(
    header: SafetensorsFileMetadata, path: Path = Path(SINGLE)
) -> dict[str, TensorEntry]:
    """The tensors of a file on the hub, as if it lay at `path`; the bytes of each are counted from
    0. Raises MoEColabError for a header that the library refuses."""
    tensors = {
        name: {"dtype": t.dtype, "shape": t.shape, "data_offsets": t.data_offsets}
        for name, t in header.tensors.items()
    }
    complaint = f"{path.name} on the hub is not a complete safetensors file"
    try:
        end = max((t.data_offsets[1] for t in header.tensors.values()), default=0)
        check_header(json.dumps(tensors).encode(), end, complaint)
    except (TypeError, ValueError, IndexError) as error:
        raise MoEColabError(f"{complaint}: {one_line(error)}.") from error
    return {
        name: TensorEntry(
            path, name, t.dtype, tuple(t.shape), 0, t.data_offsets[1] - t.data_offsets[0]
        )
        for name, t in header.tensors.items()
    }


@contextlib.contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Shows or hides huggingface_hub's progress bars inside a `with` block."""
    hide = not shown and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()
