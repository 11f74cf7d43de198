"""The architecture of a checkpoint: reads and checks its configuration, builds the model without
memory.

Knows which families can be offloaded, and explains why others cannot. Reads no weights.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
)

from ..errors import MoEColabError
from ..files import read_json
from .families import experts_modules


def load_config(folder: Path) -> PreTrainedConfig:
    """The configuration in a folder. Raises MoEColabError where there is none, where it is of a
    family that transformers does not know, and where the weights are quantized."""
    path = folder / "config.json"
    missing = f"{folder} has no config.json: it is neither a checkpoint nor a store."
    raw = read_json(path, "a model configuration", missing)
    if not isinstance(raw, dict):
        raise MoEColabError(f"{path} is not a model configuration, but a {type(raw).__name__}.")
    family = raw.get("model_type")
    quantization = raw.get("quantization_config")
    if quantization:
        name = isinstance(quantization, dict) and quantization.get("quant_method")
        method = name or "an unnamed method"
        raise MoEColabError(
            f"{folder} is quantized with {method}, which moe_colab cannot read: use the original "
            "weights."
        )
    if family is None:
        raise MoEColabError(f"{path} names no model_type: it is not a transformers model.")
    if not isinstance(family, str) or family not in CONFIG_MAPPING:
        raise MoEColabError(
            f"{folder} is of the family {family!r}, which transformers {transformers.__version__} "
            "does not know."
        )
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # each family raises its own
        raise MoEColabError(
            f"{path} is not a configuration of the family {family!r}: {one_line(error)}"
        ) from error


def skeleton(config: PreTrainedConfig) -> torch.nn.Module:
    """The model with its weights on the meta device, without memory. Raises MoEColabError unless it
    is a causal language model with routed experts."""
    family = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise MoEColabError(
            f"the family {family!r} is not a causal language model, and moe_colab runs only these."
        )
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), experts_implementation="eager"
            )
    except Exception as error:  # numbers that do not match fail anywhere in a family's code
        raise MoEColabError(
            f"transformers cannot build this model of the family {family!r} from its config.json: "
            f"{one_line(error)}"
        ) from error
    if not experts_modules(model):
        raise MoEColabError(
            f"the family {family!r} has no routed experts that moe_colab can offload: it is a "
            "dense model, or stores its experts in an unusual way. Load it with transformers."
        )
    return model


def one_line(error: Exception) -> str:
    """The type and message of an error, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
