"""Settings of `model.generate` for a chat, which has one answer: what is left as it is, what is
replaced, and what is refused in one sentence.

Knows generation settings by name, wherever they are from; knows no conversation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import MoEColabError
from .template import shortened

ANSWER_TOKENS = 512  # at most, unless the caller or the model sets a limit
COLDEST = 1e-5  # a temperature below this is greedy; logits divided by it could overflow
GREEDY = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
FILE = "generation_config.json"

OWN = {  # arguments of generate that a chat gives itself
    *("inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids", "streamer"),
    *("past_key_values", "cache", "cache_params", "trust_remote_code"),
}
RETURNED = (  # settings that change what generate returns; a chat returns text
    *("return_dict_in_generate", "output_scores", "output_logits"),
    *("output_attentions", "output_hidden_states"),
)
ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
GONE = (  # ways to generate that are no longer in transformers
    *("penalty_alpha", "num_beam_groups", "diversity_penalty"),
    *("constraints", "force_words_ids", "dola_layers", "custom_generate"),
)
# Ids that index the scores: on a GPU a wrong one would end the process.
TOKEN_IDS = ("forced_bos_token_id", "forced_eos_token_id")


@dataclass(frozen=True)
class Plan:
    """keywords: for generate. streamed: whether tokens come one after the other. reusable: whether
    keys and values of the conversation can be used again. ends: ids that end the answer."""

    keywords: dict[str, Any]
    streamed: bool
    reusable: bool
    ends: frozenset[int]


def sampling(
    temperature: float | None = None, top_p: float | None = None, max_new_tokens: int | None = None
) -> dict[str, Any]:
    """Keywords for `ask`; None leaves the model's own setting. Temperature 0 is greedy."""
    if temperature == 0:
        settings = dict(GREEDY)
    else:
        given = {"temperature": temperature, "top_p": top_p}
        settings = {name: value for name, value in given.items() if value is not None}
        settings |= {"do_sample": True} if settings else {}
    return settings | ({"max_new_tokens": max_new_tokens} if max_new_tokens else {})


def setting(model: Any, given: Mapping[str, Any], name: str) -> Any:
    """The value of a setting: of the caller, or else of the model."""
    if name in given:
        return given[name]
    own = getattr(given.get("generation_config"), name, None)
    return own if own is not None else getattr(model.generation_config, name, None)


def source(given: Mapping[str, Any], name: str) -> str:
    """Where a setting is from, in words."""
    return "an argument" if name in given or "generation_config" in given else f"in {FILE}"


def answer_tokens(model: Any, given: Mapping[str, Any]) -> int:
    """The most tokens of an answer. Raises MoEColabError for a limit that is none."""
    wanted = setting(model, given, "max_new_tokens")
    if wanted is None:
        return ANSWER_TOKENS
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise MoEColabError(
            f"max_new_tokens must be at least 1, a whole number, not {wanted!r} "
            f"({source(given, 'max_new_tokens')})."
        )
    return wanted


def plan(
    model: Any, tokenizer: Any, given: Mapping[str, Any], ends: Sequence[int], room: int
) -> Plan:
    """How to generate one answer of at most `room` tokens. ends: ids that end a turn, which are
    joined with the model's own. Raises MoEColabError for settings that a chat cannot have."""
    refuse(model, given)

    def get(name: str) -> Any:
        return setting(model, given, name)

    keywords = {"pad_token_id": tokenizer.pad_token_id, **given, "max_new_tokens": room}
    if keywords["pad_token_id"] is None:
        del keywords["pad_token_id"]
    if get("num_return_sequences") not in (None, 1):
        keywords["num_return_sequences"] = 1
    keywords |= {name: False for name in RETURNED if get(name)}
    if is_number(get("temperature")) and 0 <= get("temperature") < COLDEST:
        keywords |= GREEDY
    if get("stop_strings") is not None or get("token_healing"):
        keywords.setdefault("tokenizer", tokenizer)
    own = own_ends(model, given)
    ends = own if "eos_token_id" in given else sorted({*own, *ends})
    if ends:
        keywords["eos_token_id"] = ends
    beams = get("num_beams")
    streamed = not (is_number(beams) and beams > 1)
    plain = not any(get(name) for name in (*ASSISTED, *GONE, "token_healing", "prefill_chunk_size"))
    reusable = streamed and plain and get("use_cache") is not False
    reusable = reusable and get("cache_implementation") in (None, "dynamic", "hybrid")
    if reusable and get("cache_implementation") is not None:
        keywords["cache_implementation"] = None
    return Plan(keywords, streamed, reusable, frozenset(ends))


def refuse(model: Any, given: Mapping[str, Any]) -> None:
    """Raises MoEColabError for settings that a chat cannot have."""
    own = sorted(OWN & given.keys())
    if own:
        raise MoEColabError(f"a chat sets {own[0]} itself: leave it out.")
    if given.get("num_return_sequences") not in (None, 1):
        raise MoEColabError(
            f"a chat has one answer: leave num_return_sequences={given['num_return_sequences']!r} "
            "out, or call model.generate for several."
        )
    vocabulary = model.config.get_text_config().vocab_size
    for name in TOKEN_IDS:
        for token in numbers_in(setting(model, given, name)):
            if not 0 <= token < vocabulary:
                raise MoEColabError(
                    f"{name} ({source(given, name)}) holds {token}, which is no token id of this "
                    f"model: give ids from 0 to {vocabulary - 1}, or leave it out."
                )


def own_ends(model: Any, given: Mapping[str, Any]) -> list[int]:
    """The ids in the model's eos_token_id. Raises MoEColabError where it holds anything else."""
    value = setting(model, given, "eos_token_id")
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    ids = value if isinstance(value, list | tuple) else [] if value is None else [value]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise MoEColabError(
            f"eos_token_id ({source(given, 'eos_token_id')}) must be a token id or a list of them, "
            f"not {shortened_value(value)}."
        )
    return [one for one in ids if one >= 0]


def explained(error: BaseException, model: Any, given: Mapping[str, Any]) -> MoEColabError:
    """What `generate` has raised, as one sentence that names the settings it may come from."""
    if isinstance(error, MoEColabError):
        return error
    text = shortened(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        told = MoEColabError(
            f"there is not enough memory for this answer ({text}): use fewer slots, a shorter "
            "message, or a smaller max_new_tokens."
        )
    elif "trust_remote_code" in text and (gone := named(model, given, GONE)):
        told = MoEColabError(
            f"transformers can no longer generate in this way by itself: leave out {gone}."
        )
    else:
        names = [name for name in known(model, given) if re.search(rf"\b{name}\b", str(error))]
        what = named(model, given, names or known(model, given))
        advice = f"correct or leave out {what}" if what else "load the model again"
        told = MoEColabError(f"generate failed ({type(error).__name__}: {text}): {advice}.")
    told.__cause__ = error
    return told


def known(model: Any, given: Mapping[str, Any]) -> list[str]:
    """The names of all settings that are set."""
    file = vars(model.generation_config)
    unset = ("transformers_version", "pad_token_id", "bos_token_id")
    names = [n for n, value in file.items() if value is not None and n[0] != "_" and n not in unset]
    return [*given, *(name for name in names if name not in given)]


def named(model: Any, given: Mapping[str, Any], names: Sequence[str]) -> str:
    """Settings with their values and where they are from; at most six."""
    values = {name: setting(model, given, name) for name in names}
    return ", ".join(
        f"{name}={shortened_value(value)} ({source(given, name)})"
        for name, value in [one for one in values.items() if one[1] is not None][:6]
    )


def shortened_value(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def numbers_in(value: Any) -> list[int]:
    """The whole numbers in a value, a list, or lists in it."""
    if isinstance(value, list | tuple):
        return [number for one in value for number in numbers_in(one)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []
