"""`mc.ChatSession`: a conversation with history, streaming, stop, retry, context limit and export.

Knows a model and its tokenizer; knows no widgets and no terminal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import MoEColabError
from ..files import write_file
from .answer import Answer
from .turn import Turn

ANSWER_TOKENS = 512  # at most, unless the caller or the model sets a limit

BUSY = "an answer is under way on this model: stop it, or wait for it."


class ChatSession:
    """A conversation, one answer at a time. `turns`: the questions and answers so far. `turn`: the
    latest of them, None while an answer is under way."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        system: str | None = None,
    ):
        self.model, self.system = model, system
        self.change_tokenizer(tokenizer)
        self.turns: list[Turn] = []
        self.turn: Turn | None = None
        self.answer: Answer | None = None

    def change_tokenizer(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Use this tokenizer from now on. Raises MoEColabError for None."""
        if tokenizer is None:
            raise MoEColabError("this model has no tokenizer in its folder, and a chat needs one.")
        self.tokenizer = tokenizer

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat templates expect it, without the system prompt."""
        return as_messages(self.turns)

    @property
    def busy(self) -> bool:
        return self.answer is not None and not self.answer.done

    # ------------------------------------------------------------------ answers
    def ask(self, text: str, seed: int | None = None, **generation: Any) -> Iterator[str]:
        """Start an answer as `start` does, and iterate over its pieces of text; afterwards `turn`
        has its numbers. A caller that stops iterating stops the answer."""
        answer = self.start(text, seed, **generation)

        def pieces() -> Iterator[str]:
            try:
                yield from answer
            finally:
                answer.end()

        return pieces()

    def start(self, text: str, seed: int | None = None, **generation: Any) -> Answer:
        """Start to answer `text` and return at once. seed: None for a random one, which
        `turn.seed` then holds. Other keywords go to `model.generate` and override the model's own.

        If the conversation no longer fits into the model's context, its oldest turns are left out;
        `Answer.left_out` says how many. Raises MoEColabError while another answer is under way on
        this model, in any session, and if `text` alone does not fit."""
        return self._start(self.turns, text, seed, generation)

    def retry(self, seed: int | None = None, **generation: Any) -> Answer:
        """Ask the latest question again; the new answer replaces the old one. Raises MoEColabError
        if there is no question yet, and as `start` does."""
        if self.busy:
            raise MoEColabError(BUSY)
        if not self.turns:
            raise MoEColabError("there is nothing to try again yet: ask something first.")
        return self._start(self.turns[:-1], self.turns[-1].question, seed, generation)

    def stop(self) -> None:
        """End the answer under way after its current token."""
        if self.answer is not None:
            self.answer.stop()

    def reset(self) -> None:
        """Forget the conversation. Raises MoEColabError while an answer is under way."""
        if self.busy:
            raise MoEColabError("an answer is under way: stop it before the chat is cleared.")
        self.turns, self.turn = [], None

    # ------------------------------------------------------------------ export
    def as_dict(self) -> dict[str, Any]:
        offload = self.model.offload
        return {
            "model": offload.name,
            "model_type": offload.model_type,
            "slots": offload.slots,
            "policy": offload.policy,
            "system": self.system,
            "turns": [turn.as_dict() for turn in self.turns],
        }

    def as_markdown(self) -> str:
        facts = self.as_dict()
        parts = [
            f"# Chat with {facts['model']}",
            f"{facts['model_type']}, slots {facts['slots']}, policy {facts['policy']}",
        ]
        if self.system:
            parts.append(f"**System:** {self.system}")
        for turn in self.turns:
            parts += [f"**You:** {turn.question}", f"**Model:** {turn.text}", f"*{turn.line()}*"]
        return "\n\n".join(parts) + "\n"

    def export(self, path: str | Path) -> Path:
        """Write the conversation to `path`, as .json or .md by its ending, and return the path.
        Raises MoEColabError for another ending, or if the file cannot be written."""
        path = Path(path).expanduser()
        if path.suffix not in (".json", ".md"):
            raise MoEColabError(f"{str(path)!r} must end with .json or .md: choose one of these.")
        if path.suffix == ".json":
            text = json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n"
        else:
            text = self.as_markdown()
        return write_file(path, text.encode("utf-8", "replace"))

    # ------------------------------------------------------------------ inside
    def _start(
        self, history: list[Turn], text: str, seed: int | None, generation: dict[str, Any]
    ) -> Answer:
        lock = self.model.offload.answering
        if not lock.acquire(blocking=False):
            raise MoEColabError(BUSY)
        try:
            left_out, inputs, room = self._fit(history, text, generation.get("max_new_tokens"))

            def keep(answer: Answer) -> None:  # in the answer's thread, before it is done
                try:
                    self.turn = answer.turn()
                    if answer.error is None:
                        self.turns = [*history, self.turn]
                finally:
                    lock.release()

            self.turn = None
            self.answer = Answer(
                self.model,
                self.tokenizer,
                {name: tensor.to(self.model.device) for name, tensor in inputs.items()},
                question=text,
                seed=seed,
                left_out=left_out,
                generation={**generation, "max_new_tokens": room},
                on_end=keep,
            )
        except BaseException:
            lock.release()
            raise
        return self.answer

    def _fit(
        self, history: list[Turn], text: str, wanted: int | None
    ) -> tuple[int, dict[str, torch.Tensor], int]:
        """(turns left out, encoded prompt, most tokens of the answer). At least `wanted` tokens, or
        half of the context, stay free for the answer."""
        if wanted is not None and wanted < 1:
            raise MoEColabError(f"max_new_tokens must be at least 1, not {wanted}.")
        wanted = wanted or self.model.generation_config.max_new_tokens or ANSWER_TOKENS
        context = context_tokens(self.model, self.tokenizer)
        if self.tokenizer.chat_template is None:  # a base model continues the text
            history = []
        # Turns that were left out once stay out: else every question would encode them again.
        for left_out in range(history[-1].left_out if history else 0, len(history) + 1):
            inputs = self._encode(history[left_out:], text)
            length = inputs["input_ids"].shape[1]
            if context is None or length + min(wanted, context // 2) <= context:
                inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
                return left_out, inputs, min(wanted, context - length) if context else wanted
        raise MoEColabError(
            f"this message has {length:,} tokens with the chat template, and at most "
            f"{context - min(wanted, context // 2):,} fit beside an answer: shorten it."
        )

    def _encode(self, history: list[Turn], text: str) -> BatchEncoding:
        if self.tokenizer.chat_template is None:
            return self.tokenizer(text, return_tensors="pt")
        messages = [*as_messages(history), {"role": "user", "content": text}]
        if not self.system:
            return self._template(messages)
        try:
            return self._template([{"role": "system", "content": self.system}, *messages])
        except TemplateError:  # some templates have no system role: put it before the first message
            first = {"role": "user", "content": f"{self.system}\n\n{messages[0]['content']}"}
            return self._template([first, *messages[1:]])

    def _template(self, messages: list[dict[str, str]]) -> BatchEncoding:
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )


def as_messages(turns: list[Turn]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": content}
        for turn in turns
        for role, content in (("user", turn.question), ("assistant", turn.text))
    ]


def context_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The model's context length in tokens; None if neither config nor tokenizer has one."""
    limits = [
        getattr(model.config.get_text_config(), "max_position_embeddings", None),
        tokenizer.model_max_length,
    ]
    known = [limit for limit in limits if limit and limit < 1 << 40]
    return min(known) if known else None


def sampling(
    temperature: float | None = None, top_p: float | None = None, max_new_tokens: int | None = None
) -> dict[str, Any]:
    """Keywords for `ask`; None leaves the model's own setting. Temperature 0 is greedy."""
    if temperature == 0:
        settings = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    else:
        given = {"temperature": temperature, "top_p": top_p}
        settings = {name: value for name, value in given.items() if value is not None}
        settings |= {"do_sample": True} if settings else {}
    return settings | ({"max_new_tokens": max_new_tokens} if max_new_tokens else {})
