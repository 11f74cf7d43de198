"""The reader of original checkpoints: one expert or one dense tensor at a time.

Knows transformers' mapping from a checkpoint's names and layouts to the model's parameters, so the
same code reads any family and any way to store experts (one by one, fused, transposed). Writes
nothing; shards.py knows where the files are.
"""

from __future__ import annotations

import copy
import hashlib
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from ..errors import MoEColabError
from ..files import one_line, read_file
from ..planner.sources import folder_name
from ..store.safetensors import TensorEntry
from .architecture import load_config, skeleton
from .families import expert_shapes, experts_modules
from .shards import FolderShards, Shards, refuse_quantized
from .tensors import DTYPE_NAMES, read_tensor, torch_dtype


@dataclass(frozen=True)
class Names:
    """Which tensors of a checkpoint become which parameters. sources[parameter]: {pattern: names in
    the checkpoint, by expert}; converters[parameter]: what converts these tensors, None where they
    stay as they are; dense: all names outside the experts; unchanged[parameter]: those of `dense`
    that stay as they are."""

    sources: dict[str, dict[str | None, list[str]]]
    converters: dict[str, WeightConverter | None]
    dense: list[str]
    unchanged: dict[str, list[str]]


class Checkpoint:
    """A folder with config.json, and safetensors weights in one file or in shards."""

    def __init__(
        self,
        folder: Path,
        name: str | None = None,
        revision: str | None = None,
        shards: Shards | None = None,
    ):
        """name, revision: of the model on the hub, if the folder is a download; shards: the
        weights, if they are not in the folder. Raises MoEColabError where it is not a
        complete checkpoint that moe_colab can read."""
        self.folder, self.name, self.revision = folder, name or folder_name(folder), revision
        self.config = load_config(folder)
        self.model = skeleton(self.config)
        self.layers = experts_modules(self.model)
        self.shapes = [expert_shapes(name, module) for name, module in self.layers]
        self.shards = shards or FolderShards(folder)
        if shards is None:
            _ = self.names  # checks now that it is complete; from a hub that would need headers

    # ------------------------------------------------------------------ contents
    def fingerprint(self) -> str:
        """A digest that changes when the configuration or any weight file does. Reads a few pages
        of the weights."""
        digest = hashlib.sha256(read_file(self.folder / "config.json"))
        digest.update(self.shards.fingerprint().encode())
        return digest.hexdigest()

    @cached_property
    def entries(self) -> dict[str, TensorEntry]:
        """Every tensor by its name in the checkpoint."""
        entries = self.shards.entries()
        refuse_quantized(entries)
        return entries

    def dtype(self) -> torch.dtype:
        """The dtype to compute in: that of the configuration, or else of the experts. Raises
        MoEColabError for a dtype that is not a float."""
        dtype = getattr(self.config.get_text_config(), "dtype", None)
        dtype = dtype or getattr(self.config, "dtype", None)
        if not isinstance(dtype, torch.dtype):
            keys = next(iter(self.names.sources.values()))
            dtype = torch_dtype(self.entries[next(iter(keys.values()))[0]])
        if not dtype.is_floating_point or dtype not in DTYPE_NAMES:
            raise MoEColabError(
                f"{self.folder} is kept in {dtype}, which moe_colab cannot compute in: use the "
                "original weights."
            )
        return dtype

    # ------------------------------------------------------------------ reading
    def expert(self, layer: int, expert: int) -> dict[str, torch.Tensor]:
        """The parameters of one expert by name, in the checkpoint's dtype and the model's layout.
        Raises MoEColabError where a tensor has another shape than the model needs."""
        module, experts = self.layers[layer]
        out = {}
        for parameter, shape in self.shapes[layer].items():
            target = f"{module}.{parameter}"
            tensor = self._converted(target, expert, experts.num_experts)
            if not tensor.is_floating_point():
                raise MoEColabError(
                    f"{target} is kept in {tensor.dtype}, as codes that moe_colab cannot read: use "
                    "the original weights."
                )
            if tuple(tensor.shape) != shape:
                raise MoEColabError(
                    f"{target} of expert {expert} is {tuple(tensor.shape)}; the model needs "
                    f"{shape}."
                )
            out[parameter] = tensor
        return out

    def expert_files(self, layer: int, expert: int) -> frozenset[str]:
        """The names of the files that `expert()` reads."""
        module, experts = self.layers[layer]
        sources = [self.names.sources[f"{module}.{name}"] for name in self.shapes[layer]]
        keys = [
            keys[expert] if len(keys) == experts.num_experts else keys[0]
            for source in sources
            for keys in source.values()
        ]
        return frozenset(self.entries[key].path.name for key in keys)

    def dense_entries(self) -> list[TensorEntry]:
        """All tensors outside the routed experts."""
        return [self.entries[key] for key in self.names.dense]

    def _converted(self, target: str, expert: int, experts: int) -> torch.Tensor:
        """One expert's part of the parameter `target`, converted by transformers."""
        sources, converter = self.names.sources[target], self.names.converters[target]
        if converter is None:  # the tensor has all experts, in the model's layout
            ((key,),) = sources.values()
            return read_tensor(self.entries[key], row=expert)
        job = copy.deepcopy(converter)
        for pattern, keys in sources.items():
            if len(keys) == experts:
                part = read_tensor(self.entries[keys[expert]])
            else:  # fused, but in another layout
                part = read_tensor(self.entries[keys[0]], row=expert)[None]
            job.add_tensor(target, keys[0], pattern, lambda part=part: part)
        try:
            result = job.convert(target, model=self.model, config=self.model.config)[target]
        except Exception as error:  # whatever transformers raises where a tensor is missing
            raise MoEColabError(
                f"{target} cannot be put together from the tensors of {self.folder}: it is not a "
                f"complete checkpoint ({one_line(error)})."
            ) from error
        return (result[0] if isinstance(result, list) else result)[0]

    # ------------------------------------------------------------------ names
    @cached_property
    def names(self) -> Names:
        """Which tensors become which parameters. Raises MoEColabError where it is not a
        complete checkpoint."""
        mapping = get_model_conversion_mapping(self.model)
        renamings = [transform for transform in mapping if isinstance(transform, WeightRenaming)]
        converters = [transform for transform in mapping if isinstance(transform, WeightConverter)]
        by_pattern = {
            pattern: converter for converter in converters for pattern in converter.source_patterns
        }
        state = self.model.state_dict()
        wanted = {
            f"{module}.{name}": experts.num_experts
            for (module, experts), shapes in zip(self.layers, self.shapes, strict=True)
            for name in shapes
        }
        names = Names(defaultdict(lambda: defaultdict(list)), {}, [], defaultdict(list))
        for key in sorted(self.entries, key=dot_natural_key):
            name, pattern = rename_source_key(
                key, renamings, converters, self.model.base_model_prefix, state
            )
            if name not in state and key in state:
                name, pattern = key, None
            if name in wanted:
                names.sources[name][pattern].append(key)
                names.converters[name] = by_pattern.get(pattern)
            elif name in state:  # transformers leaves out the others too: pictures, draft layers
                names.dense.append(key)
                if pattern is None:
                    names.unchanged[name].append(key)
        missing = sorted(wanted.keys() - names.sources.keys())
        if missing:
            raise MoEColabError(
                f"{self.folder} lacks the weights of {missing[0]}: it is not a complete checkpoint."
            )
        for target, experts in wanted.items():
            for keys in names.sources[target].values():
                if len(keys) not in (1, experts):  # one by one, or fused
                    raise MoEColabError(
                        f"{self.folder} has {len(keys)} tensors for the {experts} experts of "
                        f"{target}: it is not a complete checkpoint."
                    )
        return names
