"""An original checkpoint folder, read one expert or one dense tensor at a time.

Knows transformers' own mapping from a checkpoint's names and layouts to the model's parameters, so
that any family and any way of storing experts (one by one, fused, transposed) is read by the same
lines. Writes nothing.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import defaultdict
from pathlib import Path

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from .architecture import load_config, one_line, skeleton
from .errors import MoEColabError
from .families import expert_shapes, experts_modules
from .sizes import INDEX, SINGLE
from .store.tensors import DTYPE_NAMES, TensorEntry, read_header, read_tensor

OTHER_WEIGHTS = ("pytorch_model*.bin", "*.gguf", "*.pth", "*.h5", "consolidated*.pt")
SIDE_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")


class Checkpoint:
    """A folder with config.json and safetensors weights, in one file or in shards."""

    def __init__(self, folder: Path, name: str | None = None, revision: str | None = None):
        """name, revision: where it came from, if from elsewhere than this folder."""
        self.folder, self.name, self.revision = folder, name or folder.resolve().name, revision
        self.config = load_config(folder)
        self.model = skeleton(self.config)
        self.layers = experts_modules(self.model)
        self.shapes = [expert_shapes(name, module) for name, module in self.layers]
        self.entries = self._entries()
        self._map_names()

    # ------------------------------------------------------------------ what is there
    def fingerprint(self) -> str:
        """Changes when any weight file or the configuration does; reads headers' places and times,
        not the weights."""
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        for path in sorted({entry.path for entry in self.entries.values()}):
            stat = path.stat()
            digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def dtype(self) -> torch.dtype:
        """What the checkpoint computes in: its configuration's word, or else its experts' dtype."""
        said = getattr(self.config.get_text_config(), "dtype", None) or getattr(
            self.config, "dtype", None
        )
        if not isinstance(said, torch.dtype):
            keys = next(iter(self.sources.values()))
            said = self.entries[next(iter(keys.values()))[0]].torch_dtype()
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

    def dense_entries(self) -> list[TensorEntry]:
        """Everything but the routed experts, under the checkpoint's own names."""
        return [self.entries[key] for key in self.dense]

    def _converted(self, target: str, expert: int, experts: int) -> torch.Tensor:
        sources, converter = self.sources[target], self.converters[target]
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
    def _entries(self) -> dict[str, TensorEntry]:
        if (self.folder / INDEX).is_file():
            try:
                index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
                files = {str(file) for file in index["weight_map"].values()}
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise MoEColabError(
                    f"{self.folder / INDEX} is not an index of shards: {error}."
                ) from error
        elif (self.folder / SINGLE).is_file():
            files = {SINGLE}
        else:
            other = [path.name for pattern in OTHER_WEIGHTS for path in self.folder.glob(pattern)]
            found = f"only {other[0]}" if other else "none"
            raise MoEColabError(
                f"{self.folder} needs its weights as {SINGLE} or in shards with {INDEX}; it has "
                f"{found}."
            )
        entries = {}
        for file in sorted(files):
            entries.update(read_header(self.folder / file))
        return entries

    def _map_names(self) -> None:
        """sources[parameter]: {pattern: checkpoint names, by expert}; dense: all names that feed no
        expert."""
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
        self.sources: dict[str, dict[str | None, list[str]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self.converters: dict[str, WeightConverter | None] = {}
        self.dense: list[str] = []
        for key in sorted(self.entries, key=dot_natural_key):
            name, pattern = rename_source_key(
                key, renamings, converters, self.model.base_model_prefix, state
            )
            if name not in state and key in state:
                name, pattern = key, None
            if name in wanted:
                self.sources[name][pattern].append(key)
                self.converters[name] = by_pattern.get(pattern)
            elif name in state or ".experts." not in key:  # experts of layers that are not run
                self.dense.append(key)
        missing = sorted(wanted.keys() - self.sources.keys())
        if missing:
            raise MoEColabError(
                f"{self.folder} lacks the weights of {missing[0]}: it is not a whole checkpoint."
            )
        for target, experts in wanted.items():
            for keys in self.sources[target].values():
                if len(keys) not in (1, experts):  # one by one, or fused
                    raise MoEColabError(
                        f"{self.folder} has {len(keys)} tensors for the {experts} experts of "
                        f"{target}: it is not a whole checkpoint."
                    )
