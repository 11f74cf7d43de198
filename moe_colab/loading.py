"""A source becomes an ordinary transformers model whose experts are offloaded.

Knows transformers' quantizer registry: registered as a quantization method, moe_colab is asked for
its word between building the model (without memory) and loading its weights. The experts'
parameters are taken out there, so that they are never in memory together; save_pretrained, training
and casts are refused by transformers itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from . import engine
from .cache import PolicySpec
from .errors import MoEColabError
from .families import experts_modules, parameter_names
from .hardware import parse_bytes
from .offload import Offload
from .packing import cached_store
from .store import Store, is_store
from .store.tensors import TORCH_DTYPES

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tokenizer_config.json",
)
COMPUTE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load(
    source: str | os.PathLike[str] | None = None,
    *,
    slots: int | Sequence[int] | str = "auto",
    policy: PolicySpec = "lru",
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    vram: int | str = "auto",
    ram: int | str = "auto",
    resident: Mapping[int, Sequence[int]] | None = None,
    whole_layer: bool = False,
    progress: bool = True,
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase | None]:
    """Load a Mixture-of-Experts model with its experts offloaded; (model, tokenizer), tokenizer
    None if there is none.

    source: None for the small model that comes with moe_colab, a store, or a checkpoint folder
    (packed into a store in the cache folder the first time). slots: experts of each layer that the
    device holds at once, a number or one per layer; "auto" fills `vram`, or is half the experts on
    a CPU. policy: who leaves when the slots are full: "lru", "lfu", "fifo", "random", "none", or a
    class (see moe_colab.cache.Policy). device: "auto", "cpu", "cuda", "cuda:1". dtype: "auto" is
    the checkpoint's own, with float16 for bfloat16 on a GPU that has none. vram: bytes (or "15GB")
    that "auto" slots may fill with everything else of the model. ram: bytes of host memory to keep
    experts in; "auto" takes what is free on a CUDA machine and nothing on a CPU, where the page
    cache serves. resident: experts by layer that stay on the device for good, beside the slots.
    whole_layer: move every expert of a layer each time, the paper's naive baseline (section 4.3).

    `model` is an ordinary transformers model in eval mode; `model.offload` is the handle to
    settings and statistics. `num_parameters` and `get_memory_footprint` count the dense part only.
    Raises MoEColabError.
    """
    device = pick_device(device)
    wanted = pick_dtype(dtype)
    folder = find_source(source)
    if not is_store(folder):
        folder = cached_store(folder, usable_dtype(folder, wanted, device), progress)
    store = Store(folder)
    own = TORCH_DTYPES[store.manifest.dtype]
    if wanted not in (None, own):
        raise MoEColabError(
            f"{folder} holds {own} experts, and dtype={dtype!r} was asked for: leave dtype out, "
            "or load the original checkpoint with that dtype."
        )
    check_device_dtype(device, own)
    model = load_dense(store, own, device)
    model.offload = Offload(
        model,
        store,
        slots=slots,
        policy=policy,
        device=device,
        dtype=own,
        vram=None if vram == "auto" else parse_bytes(vram),
        ram=None if ram == "auto" else parse_bytes(ram),
        resident=resident,
        whole_layer=whole_layer,
    )
    return model, load_tokenizer(folder)


# ---------------------------------------------------------------------- the source
def shipped_model() -> Path:
    """The small model that comes with moe_colab, in an installed package or in a checkout."""
    here = Path(__file__).parent
    places = (here / "tiny_moe", here.parent / "assets" / "tiny-moe")
    found = next((place for place in places if (place / "config.json").is_file()), None)
    if found is None:
        raise MoEColabError(
            "the small model is missing from this installation: install moe_colab again."
        )
    return found


def find_source(source: str | os.PathLike[str] | None) -> Path:
    """The folder that `source` names. Raises MoEColabError where it is none, or an empty one."""
    if source is None:
        return shipped_model()
    folder = Path(source).expanduser()
    if not os.path.exists(folder):  # False also for what no file can be called
        raise MoEColabError(
            f"{source} does not exist: name a store or a checkpoint folder on this machine "
            "(huggingface_hub.snapshot_download brings a model of the hub into one)."
        )
    if not folder.is_dir():
        raise MoEColabError(f"{source} is a file: name the folder that it lies in.")
    if not any(folder.iterdir()):
        raise MoEColabError(f"{source} is an empty folder: name a store or a checkpoint folder.")
    return folder


# ---------------------------------------------------------------------- device and dtype
def pick_device(device: str | torch.device) -> torch.device:
    if str(device) == "auto":
        return (
            torch.device("cuda", torch.cuda.current_device())
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise MoEColabError(f"{device!r} is no device: use auto, cpu or cuda.") from error
    if device.type not in ("cpu", "cuda"):
        raise MoEColabError(f"moe_colab runs on cpu and cuda, not on {device.type}.")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise MoEColabError(
                "this machine has no CUDA GPU that torch can use: leave device out, or use "
                "device='cpu'."
            )
        index = torch.cuda.current_device() if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise MoEColabError(
                f"there is no {device}: this machine has {torch.cuda.device_count()} GPUs."
            )
        device = torch.device("cuda", index)
    return device


def pick_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """A dtype to compute in, None for "auto"."""
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        return None
    if name not in COMPUTE_DTYPES:
        raise MoEColabError(
            f"moe_colab cannot compute in {dtype}: use auto, {', '.join(COMPUTE_DTYPES)}."
        )
    return COMPUTE_DTYPES[name]


def has_bfloat16(device: torch.device) -> bool:
    """By compute capability: torch's own answer is also True where bfloat16 is only emulated, as on
    a T4."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def check_device_dtype(device: torch.device, dtype: torch.dtype) -> None:
    if dtype is torch.bfloat16 and not has_bfloat16(device):
        raise MoEColabError(
            f"{torch.cuda.get_device_name(device)} cannot compute in bfloat16: use dtype='float16'."
        )


def usable_dtype(
    folder: Path, wanted: torch.dtype | None, device: torch.device
) -> torch.dtype | None:
    """What a checkpoint is packed in; None is its own dtype."""
    if wanted is not None:
        check_device_dtype(device, wanted)
    elif not has_bfloat16(device):
        from .checkpoint import Checkpoint

        return torch.float16 if Checkpoint(folder).dtype() is torch.bfloat16 else None
    return wanted


# ---------------------------------------------------------------------- transformers
@register_quantization_config(engine.NAME)
class OffloadConfig(QuantizationConfigMixin):
    """Tells transformers that the experts are ours; carries nothing else."""

    def __init__(self, **kwargs: Any):
        self.quant_method = engine.NAME


@register_quantizer(engine.NAME)
class OffloadQuantizer(HfQuantizer):
    """Takes the experts' parameters out of a model before its weights are loaded."""

    requires_calibration = False

    def _process_model_before_weight_loading(self, model, **kwargs):
        self.pre_quantized = False  # or 5.15 leaves renamed weights in the checkpoint's dtype
        for _, module in experts_modules(model):
            for name in parameter_names(module):
                module.register_parameter(name, None)
            module._is_hf_initialized = True  # there is nothing left to initialize
            module.config._experts_implementation = engine.NAME
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

    def is_serializable(self, *args, **kwargs) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def load_dense(
    store: Store, dtype: torch.dtype, device: torch.device
) -> transformers.PreTrainedModel:
    """The model with everything but its routed experts."""
    config = AutoConfig.from_pretrained(store.folder, local_files_only=True)
    config.transformers_weights = store.manifest.dense.name
    config.quantization_config = {"quant_method": engine.NAME}
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
    model.requires_grad_(False)
    for parameter in model.parameters():
        if parameter.data_ptr() % 64:  # a mapped view: products on it may differ in the last bit
            parameter.data = parameter.data.clone()
    refuse_casts(model, device, dtype)
    return model


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


def load_tokenizer(folder: Path) -> transformers.PreTrainedTokenizerBase | None:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise MoEColabError(f"the tokenizer in {folder} cannot be loaded: {error}") from error
