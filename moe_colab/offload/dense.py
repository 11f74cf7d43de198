"""Dense part of a model, everything but its routed experts, loaded by transformers itself.

Knows transformers' quantizer registry: moe_colab is registered as a quantization method, which
transformers calls after it has built the model (without memory) and before it loads the weights.
There the experts' parameters are removed, so that they are never in memory together, and low-bit
modules replace others. Transformers itself then refuses save_pretrained, training and casts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..checkpoint.architecture import building, load_config
from ..checkpoint.families import experts_modules, parameter_names
from ..errors import MoEColabError
from ..files import one_line
from ..quantization.kernels.dispatch import AUTO
from ..store import Store
from ..store.blobs import EMBEDDINGS
from . import experts, lowbit_modules
from .adapters import refuse_expert_adapters
from .match import check_match, layers_of


@register_quantization_config(experts.NAME)
class OffloadConfig(QuantizationConfigMixin):
    """Names moe_colab as the quantization method, and the dense modules that are `low_bit`."""

    def __init__(self, low_bit: Sequence[str] = (), **kwargs: Any):
        self.quant_method = experts.NAME
        self.low_bit = list(low_bit)


@register_quantizer(experts.NAME)
class OffloadQuantizer(HfQuantizer):
    """Removes the experts' parameters from a model before its weights are loaded."""

    requires_calibration = False

    def _process_model_before_weight_loading(self, model, **kwargs):
        self.layers = layers_of(model)
        self.pre_quantized = False  # or 5.15 keeps the checkpoint's dtype of renamed weights
        for _, module in experts_modules(model):
            for name in parameter_names(module):
                module.register_parameter(name, None)
            module._is_hf_initialized = True  # there is nothing left to initialize
            module.__class__ = experts.offloaded_class(type(module))
        lowbit_modules.swap(model, self.quantization_config.low_bit)
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

    def is_serializable(self, *args, **kwargs) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def load_dense(
    store: Store,
    dtype: torch.dtype,
    device: torch.device,
    kernels: str = AUTO,
    attention: str | None = None,
) -> transformers.PreTrainedModel:
    """The model without its routed experts, on `device`; its low-bit modules multiply by `kernels`,
    and `attention` is its attn_implementation. Raises MoEColabError where the store lacks a weight,
    or transformers cannot load it."""
    low_bit = store.manifest.low_bit_matrices
    config = load_config(store.folder)
    config.transformers_weights = store.manifest.dense.name
    config.quantization_config = {
        "quant_method": experts.NAME,
        "low_bit": [name for matrix in low_bit for name in matrix.modules],
    }
    if any(matrix.part == EMBEDDINGS for matrix in low_bit):
        untie(config)  # no parameter is left to tie; a tied head shares the blob
    # Where a user has set another default device, transformers would load to that.
    with building("cpu"), quiet_transformers():
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                store.folder,
                config=config,
                dtype=dtype,
                device_map=None if device.type == "cpu" else {"": device},
                attn_implementation=attention,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are named below
            )
        except MoEColabError:
            raise
        except Exception as error:  # a setting that this machine or family does not have
            raise MoEColabError(
                f"transformers cannot load the model in {store.folder}: {one_line(error)}"
            ) from error
    check_match(store, model.hf_quantizer.layers)
    mismatched = (name for name, *_ in info["mismatched_keys"])
    # With a quantizer, some versions of transformers load other shapes and report nothing.
    built = model.hf_quantizer.shapes
    reshaped = (n for n, p in model.named_parameters() if p.shape != built.get(n, p.shape))
    lacking = sorted({*info["missing_keys"], *mismatched, *reshaped})
    if lacking:
        raise MoEColabError(
            f"{store.folder} does not fill the model: {', '.join(lacking[:3])} are missing, or of "
            "another size than config.json says."
        )
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:  # some families compute differently where this is set
            vars(config).pop("_is_quantized", None)
    if device.type == "cpu":
        for tensor in (*model.parameters(), *model.buffers()):
            # Transformers maps the file, which may be overwritten or cut short while the model
            # lives; and where a tensor does not begin at 64 bytes, products may differ.
            tensor.data = tensor.data.clone()
    lowbit_modules.fill(model, store, dtype, device, kernels)
    model.requires_grad_(False)
    refuse_casts(model, device, dtype)
    refuse_expert_adapters(model)
    return model


def untie(config: transformers.PreTrainedConfig) -> None:
    """Set `tie_word_embeddings` to False in the loaded config; its file is unchanged."""
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        if hasattr(part, "tie_word_embeddings"):
            part.tie_word_embeddings = False


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bar and no warning about an unknown quantization method."""
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
    """Make every cast and move (`to`, `bfloat16`, `cuda`, ...) raise MoEColabError, because the
    experts would not change. All of them call `_apply` with the function that changes a tensor."""
    apply = model._apply

    def apply_if_unchanged(change: Callable[..., torch.Tensor], *args: Any, **kwargs: Any):
        probe = change(torch.empty(1, dtype=dtype, device=device))
        if probe.dtype != dtype or probe.device != device:
            raise MoEColabError(
                f"an offloaded model stays {dtype} on {device}: load it again with device=... or "
                "dtype=... instead."
            )
        return apply(change, *args, **kwargs)

    model._apply = apply_if_unchanged
