"""Everything of a model but its routed experts, loaded by transformers itself.

Knows transformers' quantizer registry: registered as a quantization method, moe_colab is asked for
its word between building the model (without memory) and loading its weights. The experts'
parameters are taken out there, so that they are never in memory together, and low-bit modules put
in the place of others; save_pretrained, training and casts are refused by transformers itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..checkpoint.families import experts_modules, parameter_names
from ..errors import MoEColabError
from ..quantization.kernels.dispatch import AUTO
from ..store import Store
from ..store.blobs import EMBEDDINGS
from ..units import human
from . import experts, lowbit_modules
from .placement import free_memory


@register_quantization_config(experts.NAME)
class OffloadConfig(QuantizationConfigMixin):
    """Tells transformers that the experts are ours, and which other modules are `low_bit`."""

    def __init__(self, low_bit: Sequence[str] = (), **kwargs: Any):
        self.quant_method = experts.NAME
        self.low_bit = list(low_bit)


@register_quantizer(experts.NAME)
class OffloadQuantizer(HfQuantizer):
    """Takes the experts' parameters out of a model before its weights are loaded."""

    requires_calibration = False

    def _process_model_before_weight_loading(self, model, **kwargs):
        self.pre_quantized = False  # or 5.15 leaves renamed weights in the checkpoint's dtype
        for _, module in experts_modules(model):
            for name in parameter_names(module):
                module.register_parameter(name, None)
            module._is_hf_initialized = True  # there is nothing left to initialize
            module.config._experts_implementation = experts.NAME
        lowbit_modules.swap(model, self.quantization_config.low_bit)
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

    def is_serializable(self, *args, **kwargs) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def load_dense(
    store: Store, dtype: torch.dtype, device: torch.device, kernels: str = AUTO
) -> transformers.PreTrainedModel:
    """The model with everything but its routed experts; what is low-bit multiplies by `kernels`."""
    need = store.manifest.dense_bytes()
    if device.type == "cuda" and need > free_memory(device):
        raise MoEColabError(
            f"everything but the experts needs {human(need)} on {device}, and "
            f"{human(free_memory(device))} are free."
        )
    low_bit = store.manifest.low_bit.matrices if store.manifest.low_bit else ()
    config = AutoConfig.from_pretrained(store.folder, local_files_only=True)
    config.transformers_weights = store.manifest.dense.name
    config.quantization_config = {
        "quant_method": experts.NAME,
        "low_bit": [name for matrix in low_bit for name in matrix.modules],
    }
    if any(matrix.part == EMBEDDINGS for matrix in low_bit):
        untie(config)  # there is no parameter to tie; a tied head shares its blob
    with quiet_transformers():
        model, info = AutoModelForCausalLM.from_pretrained(
            store.folder,
            config=config,
            dtype=dtype,
            device_map=None if device.type == "cpu" else {"": device},
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
        )
    lost = sorted(
        {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"]), *reshaped(model)}
    )
    if lost:
        raise MoEColabError(
            f"{store.folder} does not fill the model: {', '.join(lost[:3])} are missing, or of "
            "another size than config.json says."
        )
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:  # some families compute in another way when they see this mark
            vars(config).pop("_is_quantized", None)
    lowbit_modules.fill(model, store, dtype, device, kernels)
    model.requires_grad_(False)
    for parameter in model.parameters():
        if parameter.data_ptr() % 64:  # a mapped view: products on it may differ in the last bit
            parameter.data = parameter.data.clone()
    refuse_casts(model, device, dtype)
    return model


def untie(config: transformers.PreTrainedConfig) -> None:
    """In memory only."""
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        if hasattr(part, "tie_word_embeddings"):
            part.tie_word_embeddings = False


def reshaped(model: transformers.PreTrainedModel) -> list[str]:
    """Parameters of another shape than the model was built with: some versions of transformers
    load them without a word where there is a quantizer."""
    shapes = model.hf_quantizer.shapes
    return [name for name, p in model.named_parameters() if p.shape != shapes.get(name, p.shape)]


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bar and no remark about a quantization method that transformers does not know from
    before."""
    log = transformers.logging
    verbosity, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bar:
            log.enable_progress_bar()


def refuse_casts(
    model: transformers.PreTrainedModel, device: torch.device, dtype: torch.dtype
) -> None:
    """Let every cast and move (`to`, `bfloat16`, `cuda`, ...) say at once that the experts would
    not come along. They all go through `_apply`, with the function that changes one tensor."""
    apply = model._apply

    def apply_if_harmless(change: Callable[..., torch.Tensor], *args: Any, **kwargs: Any):
        probe = change(torch.empty(1, dtype=dtype, device=device))
        if probe.dtype != dtype or probe.device != device:
            raise MoEColabError(
                f"an offloaded model stays {dtype} on {device}: load it again with device=... or "
                "dtype=... instead."
            )
        return apply(change, *args, **kwargs)

    model._apply = apply_if_harmless
