"""An original checkpoint, read one expert or one dense tensor at a time.

Knows transformers' own mapping from a checkpoint's names and layouts to the model's parameters, so
that any family and any way of storing experts (one by one, fused, transposed) is read by the same
lines. Writes nothing; where the files of its weights come from, `shards.py` knows.
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
from ..planner.sizes import SIDE_FILES
from ..store.safetensors import TensorEntry
from .architecture import load_config, one_line, skeleton
from .families import expert_shapes, experts_modules
from .shards import FolderShards, Shards, refuse_quantized
from .tensors import DTYPE_NAMES, read_tensor, torch_dtype


@dataclass(frozen=True)
class Names:
    """Which of a checkpoint's tensors feed what. sources[parameter]: {pattern: checkpoint names, by
    expert}; converters[parameter]: what turns them into it, None where they are it; dense: all
    names that feed no expert; unchanged[parameter]: those of them that are it."""

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
        """name, revision: where it came from, if from elsewhere than this folder; shards: its
        weights, if they are not in the folder."""
        self.folder, self.name, self.revision = folder, name or folder.resolve().name, revision
        self.config = load_config(folder)
        self.model = skeleton(self.config)
        self.layers = experts_modules(self.model)
        self.shapes = [expert_shapes(name, module) for name, module in self.layers]
        self.shards = shards or FolderShards(folder)
        if shards is None:
            _ = self.names  # what is not whole is refused now; a hub would be asked for headers

    # ------------------------------------------------------------------ what is there
    def fingerprint(self) -> str:
        """Changes when any weight file or the configuration does; reads no weights."""
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        digest.update(self.shards.fingerprint().encode())
        return digest.hexdigest()

    @cached_property
    def entries(self) -> dict[str, TensorEntry]:
        """Every tensor by the checkpoint's own name."""
        entries = self.shards.entries()
        refuse_quantized(entries)
        return entries

    def dtype(self) -> torch.dtype:
        """What the checkpoint computes in: its configuration's word, or else its experts' dtype."""
        said = getattr(self.config.get_text_config(), "dtype", None) or getattr(
            self.config, "dtype", None
        )
        if not isinstance(said, torch.dtype):
            keys = next(iter(self.names.sources.values()))
            said = torch_dtype(self.entries[next(iter(keys.values()))[0]])
        if not said.is_floating_point or said not in DTYPE_NAMES:
            raise MoEColabError(
                f"{self.folder} is kept in {said}, which moe_colab cannot compute in: use the "
                "original weights."
            )
        return said

    def side_files(self) -> list[Path]:
        """Configuration, tokenizer and generation files."""
        paths = {
            path for pattern in SIDE_FILES for path in self.folder.glob(pattern) if path.is_file()
        }
        return sorted(
            path
            for path in paths
            if not path.name.endswith(".index.json") and path.name != "moe_colab.json"
        )

    # ------------------------------------------------------------------ reading
    def expert(self, layer: int, expert: int) -> dict[str, torch.Tensor]:
        """One expert's parameters by name, in the checkpoint's dtype and the model's layout."""
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
        """The names of the files that `expert` reads."""
        module, experts = self.layers[layer]
        sources = [self.names.sources[f"{module}.{name}"] for name in self.shapes[layer]]
        keys = [
            keys[expert] if len(keys) == experts.num_experts else keys[0]
            for source in sources
            for keys in source.values()
        ]
        return frozenset(self.entries[key].path.name for key in keys)

    def dense_entries(self) -> list[TensorEntry]:
        """Everything but the routed experts, under the checkpoint's own names."""
        return [self.entries[key] for key in self.names.dense]

    def _converted(self, target: str, expert: int, experts: int) -> torch.Tensor:
        sources, converter = self.names.sources[target], self.names.converters[target]
        if converter is None:  # already in the model's layout, all experts in one tensor
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
        except Exception as error:  # it meets what is missing in many ways
            raise MoEColabError(
                f"{target} cannot be put together from the tensors of {self.folder}: it is not a "
                f"whole checkpoint ({one_line(error)})."
            ) from error
        return (result[0] if isinstance(result, list) else result)[0]

    # ------------------------------------------------------------------ names
    @cached_property
    def names(self) -> Names:
        """Raises MoEColabError where it is not a whole checkpoint."""
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
            elif name in state or ".experts." not in key:  # experts of layers that are not run
                names.dense.append(key)
                if pattern is None:
                    names.unchanged[name].append(key)
        missing = sorted(wanted.keys() - names.sources.keys())
        if missing:
            raise MoEColabError(
                f"{self.folder} lacks the weights of {missing[0]}: it is not a whole checkpoint."
            )
        for target, experts in wanted.items():
            for keys in names.sources[target].values():
                if len(keys) not in (1, experts):  # one by one, or fused
                    raise MoEColabError(
                        f"{self.folder} has {len(keys)} tensors for the {experts} experts of "
                        f"{target}: it is not a whole checkpoint."
                    )
        return names
