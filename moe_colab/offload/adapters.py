"""Adapters of peft on an offloaded model: those of attention, router and head work as on any model,
those of experts are refused by name, because peft would drop them without a word. Knows how peft
and transformers load an adapter."""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Iterable

import transformers

from ..errors import MoEColabError

OF_EXPERTS = re.compile(r"\bexperts\b")  # not shared_experts, which are ordinary linear layers


def refuse_expert_adapters(model: transformers.PreTrainedModel) -> None:
    """Make peft's `PeftModel.from_pretrained(model, ...)` and `model.load_adapter(...)` raise
    MoEColabError for an adapter that changes the routed experts."""

    def before_loading(module, state_dict, prefix, *_) -> None:
        known = {prefix + name for name in module.state_dict()}
        check(name for name in state_dict if name not in known)

    model.register_load_state_dict_pre_hook(before_loading)
    load_adapter, alive = type(model).load_adapter, weakref.ref(model)

    @functools.wraps(load_adapter)
    def load_checked(peft_model_id=None, adapter_name=None, *args, **kwargs):
        info = load_adapter(alive(), peft_model_id, adapter_name, *args, **kwargs)
        try:
            check(info.unexpected_keys)
        except MoEColabError:
            switch_off(alive())
            raise
        return info

    model.load_adapter = load_checked


def switch_off(model: transformers.PreTrainedModel) -> None:
    """Let the model compute without its adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for module in model.modules():  # transformers' own disable_adapters asks for another version
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            module.enable_adapters(enabled=False)


def check(names: Iterable[str]) -> None:
    """Raises MoEColabError where one of these weights, which the model does not have, is for the
    routed experts."""
    for name in sorted(names):
        if OF_EXPERTS.search(name):
            raise MoEColabError(
                f"the adapter changes the routed experts ({name}), which moe_colab does not "
                "support: merge it into the checkpoint (peft's merge_and_unload), and load that."
            )
