"""The architecture of a checkpoint: reads and checks its configuration, builds the model without
memory.

Knows which families can be offloaded, and explains why others cannot. Reads no weights.
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
)

from ..errors import MoEColabError
from ..files import one_line, read_file, read_json
from ..machine.interrupts import deferred_interrupts
from .families import experts_modules

ADAPTER = "adapter_config.json"
MOST_LAYERS = 10_000
OWN_ATTENTION = (None, "eager", "sdpa", "flex_attention")
BUILDING = threading.RLock()  # held while a model is built


def load_config(folder: Path) -> PreTrainedConfig:
    """The configuration in a folder, and a check of how it generates; of a model with several
    parts, such as one that sees pictures, that of the causal language model. Raises MoEColabError
    where there is none, where it is of a family that transformers does not know, and where the
    weights are quantized."""
    path = folder / "config.json"
    refuse_adapter(folder)
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
        config = of_causal_lm(AutoConfig.from_pretrained(folder, local_files_only=True))
        use_own_code(config)
    except Exception as error:  # each family raises its own
        raise MoEColabError(
            f"{path} is not a configuration of the family {family!r}: {one_line(error)}"
        ) from error
    check_generation(folder)
    return config


def use_own_code(config: PreTrainedConfig) -> None:
    """Let the model compute its attention and experts with the code of torch and transformers: a
    configuration may name code on the hub, which transformers would download and run."""
    if config._attn_implementation not in OWN_ATTENTION:
        config._attn_implementation = None  # the default
    config._experts_implementation = "eager"
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            use_own_code(part)


def check_generation(folder: Path) -> None:
    """Raises MoEColabError for a generation_config.json that cannot be read or used. Transformers
    ignores one that is no JSON."""
    path = folder / "generation_config.json"
    if not os.path.isfile(path):
        return
    read_file(path)
    try:
        GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        return
    except Exception as error:  # any value may be wrong
        raise MoEColabError(
            f"{path} does not say how to generate ({one_line(error)}): correct or delete it."
        ) from error


def refuse_adapter(folder: Path) -> None:
    """Raises MoEColabError where a folder has the configuration of a peft adapter, which
    transformers would apply to the weights."""
    if not (folder / ADAPTER).is_file():
        return
    if (folder / "config.json").is_file():
        raise MoEColabError(
            f"{folder} has an adapter ({ADAPTER}) beside the weights: move the adapter's files to "
            "a folder of their own, load the model, and call model.load_adapter(FOLDER)."
        )
    raise MoEColabError(
        f"{folder} is an adapter ({ADAPTER}), not a model: load the model for which it was made, "
        "and call model.load_adapter(FOLDER)."
    )


def of_causal_lm(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration from which AutoModelForCausalLM builds its model: that of the text part
    where the class of the family's causal language model takes only this."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return config
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    text_class = config.sub_configs.get("text_config")
    if text_class is None or getattr(model_class, "config_class", None) is not text_class:
        return config
    text = config.get_text_config()
    if text.dtype is None:
        text.dtype = config.dtype
    return text


@contextlib.contextmanager
def building(device: str) -> Iterator[None]:
    """Transformers may build or load a model on this device, one at a time: it changes torch's
    default dtype and device, and classes of its own, for the whole process. A Ctrl-C waits until
    all is changed back; a second one acts at once."""
    with BUILDING, deferred_interrupts(), torch.device(device):
        yield


def skeleton(config: PreTrainedConfig) -> torch.nn.Module:
    """The model with its weights on the meta device, without memory. Raises MoEColabError unless it
    is a causal language model with routed experts."""
    family = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise MoEColabError(
            f"the family {family!r} is not a causal language model, and moe_colab runs only these."
        )
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers > MOST_LAYERS:  # building them would take for ever
        raise MoEColabError(f"its config.json asks for {layers:,} layers: no model has so many.")
    try:
        with building("meta"):
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
