"""A conversation as token ids: chat templates, and the tokens that end an answer.

Knows tokenizers and their templates; knows no model and no session. Whatever a template raises
becomes one MoEColabError.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..errors import MoEColabError
from ..offload.text_ids import text_ids
from .thinking import added_tokens, has_channels

Messages = Sequence[dict[str, str]]

# Ends of a turn, for templates that do not show theirs.
ENDS_OF_TURN = {
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<end_of_turn>", "<turn|>"),
    *("<|end_of_turn|>", "<|return|>", "<|call|>", "<|END_OF_TURN_TOKEN|>", "<|end▁of▁sentence|>"),
}
PROBE = "blue zebra"  # an answer that is looked for in what a template writes


def prompt_ids(tokenizer: Any, system: str | None, messages: Messages) -> list[int]:
    """The ids of a conversation, up to where the answer begins. Without a chat template they are
    those of the latest message alone. Raises MoEColabError where the template fails, or drops the
    system prompt wherever it stands."""
    if tokenizer.chat_template is None:  # a base model continues the text
        text = messages[-1]["content"]
        ids = guarded(lambda: text_ids(tokenizer, text, goes_on=True)[0].tolist())
        if not ids:
            raise MoEColabError("there is no token in this message: write a few words.")
        return ids
    if not (system or "").strip():
        return rendered_ids(tokenizer, messages)
    return with_system(tokenizer, system, messages)


def with_system(tokenizer: Any, system: str, messages: Messages) -> list[int]:
    """The ids with the system prompt in its own role, or else before a message of the user's. It
    has arrived where other words in its place change the ids, however the template writes it."""
    failed = None
    latest = len(messages) - 1
    for place in dict.fromkeys((None, 0, latest)):
        try:
            ids = rendered_ids(tokenizer, placed(system, messages, place))
            if rendered_ids(tokenizer, placed(f"Q{system}Q", messages, place)) != ids:
                return ids
        except MoEColabError as error:
            failed = error
    raise failed or MoEColabError(
        "the chat template of this tokenizer drops the system prompt wherever it stands: chat "
        "without one, or correct the template."
    )


def placed(system: str, messages: Messages, place: int | None) -> list[dict[str, str]]:
    """The messages with the system prompt in its own role, or before the text of one of them."""
    if place is None:
        return [{"role": "system", "content": system}, *messages]
    first = {**messages[place], "content": f"{system}\n\n{messages[place]['content']}"}
    return [*messages[:place], first, *messages[place + 1 :]]


def rendered_ids(tokenizer: Any, messages: Messages) -> list[int]:
    """The ids that the chat template writes. Raises MoEColabError where it fails."""
    name = only_name(tokenizer)
    encoded = guarded(
        lambda: tokenizer.apply_chat_template(
            list(messages), chat_template=name, add_generation_prompt=True, return_dict=True
        )
    )
    ids = list(encoded["input_ids"])
    if not ids:
        raise MoEColabError(
            "the chat template of this tokenizer writes nothing for this conversation: correct "
            "chat_template.jinja in its folder, or set tokenizer.chat_template."
        )
    return ids


def only_name(tokenizer: Any) -> str | None:
    """The name of the template where there are several: None for the default one. Raises
    MoEColabError where none of them is."""
    named = tokenizer.chat_template
    if not isinstance(named, dict) or "default" in named:
        return None
    if len(named) == 1:
        return next(iter(named))
    names = ", ".join(sorted(map(str, named))) or "no name"
    raise MoEColabError(
        f"this tokenizer has several chat templates ({names}) and no default one: choose one by "
        "tokenizer.chat_template = tokenizer.chat_template[NAME], or call one of them default in "
        "tokenizer_config.json."
    )


def guarded(encode: Any) -> Any:
    """What `encode` returns; what it raises becomes one MoEColabError."""
    try:
        return encode()
    except MoEColabError:
        raise
    except Exception as error:  # templates run code of their own, and may raise anything
        raise MoEColabError(
            f"the tokenizer or its chat template fails on this conversation "
            f"({type(error).__name__}: {shortened(error)}): write the message in another way, or "
            "correct chat_template.jinja or tokenizer_config.json in the model's folder."
        ) from error


def shortened(error: BaseException, most: int = 300) -> str:
    """The message of an error in one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else f"{text[:most]}..."


def end_ids(tokenizer: Any) -> list[int]:
    """The ids that end an answer: the tokenizer's own EOS, and what the chat template writes after
    an answer, as the special token that ends it or that begins the next turn."""
    added = added_tokens(tokenizer)
    ids = {added[name] for name in ENDS_OF_TURN & added.keys()}
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    if tokenizer.chat_template is not None and not has_channels(tokenizer):
        ids |= end_in_template(tokenizer)
    return sorted(ids)


def end_in_template(tokenizer: Any) -> set[int]:
    """The first special token after an answer, or nothing where the template shows none."""
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": PROBE} for role in roles]
    try:
        name = only_name(tokenizer)
        text = tokenizer.apply_chat_template(messages, chat_template=name, tokenize=False)
        found = [match.end() for match in re.finditer(PROBE, text, re.I)]
        if len(found) < len(roles):
            return set()
        after = tokenizer(text[found[1] :], add_special_tokens=False)["input_ids"]
    except Exception:  # a template that fails here says so when it is used
        return set()
    special = set(tokenizer.all_special_ids)
    return set([token for token in after if token in special][:1])
