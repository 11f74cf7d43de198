"""A conversation: history, streaming, stop, retry, what fits into the context, export. Knows a
model and its tokenizer; knows no widgets and no terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import MoEColabError
from .answer import Answer
from .turn import Turn

ANSWER_TOKENS = 512  # where neither the caller nor the model says how long an answer may be

BUSY = "an answer is under way on this model: stop it, or wait for it."


class ChatSession:
    """History and one answer at a time. `turns` are the questions and answers so far, `turn` how
    the latest answer went, None while one is under way."""

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
        """For the next question. Raises MoEColabError without one."""
        if tokenizer is None:
            raise MoEColabError("this model has no tokenizer: a chat needs one in its folder.")
        self.tokenizer = tokenizer

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat templates take it, the system prompt apart."""
        return as_messages(self.turns)

    @property
    def busy(self) -> bool:
        return self.answer is not None and not self.answer.done

    # ------------------------------------------------------------------ talk
    def ask(self, text: str, seed: int | None = None, **generation: Any) -> Iterator[str]:
        """Begin to answer `text`, as `start` does, and return the answer's pieces; `turn` then says
        how it went. A caller that stops asking stops the answer."""
        answer = self.start(text, seed, **generation)

        def pieces() -> Iterator[str]:
            try:
                yield from answer
            finally:
                answer.end()

        return pieces()

    def start(self, text: str, seed: int | None = None, **generation: Any) -> Answer:
        """Begin to answer `text` and return at once. Without `seed` every answer is another one;
        `turn.seed` repeats it. Keywords go to `model.generate`, over the model's own settings.

        Where the conversation no longer fits into the model's context, its oldest turns are left
        out, whole; `Answer.left_out` says how many. Raises MoEColabError while another answer is
        under way on this model, in this session or any other, and where `text` alone does not
        fit."""
        return self._start(self.turns, text, seed, generation)

    def retry(self, seed: int | None = None, **generation: Any) -> Answer:
        """Ask the latest question once more; the new answer takes the place of the old one. Raises
        MoEColabError where there is none, and as `start` does."""
        if self.busy:
            raise MoEColabError(BUSY)
        if not self.turns:
            raise MoEColabError("there is nothing to try again yet: ask something first.")
        return self._start(self.turns[:-1], self.turns[-1].question, seed, generation)

    def stop(self) -> None:
        """End the answer under way after the token it is at."""
        if self.answer is not None:
            self.answer.stop()

    def reset(self) -> None:
        """Forget the conversation. Raises MoEColabError while an answer is under way."""
        if self.busy:
            raise MoEColabError("an answer is under way: stop it before the chat is cleared.")
        self.turns, self.turn = [], None

    # ------------------------------------------------------------------ keep
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
        """Write the conversation to `path`, as JSON or Markdown by its ending. Raises MoEColabError
        for another ending and where it cannot be written."""
        path = Path(path).expanduser()
        if path.suffix not in (".json", ".md"):
            raise MoEColabError(
                f"{str(path)!r} must end with .json or .md: that says how it is written."
            )
        if path.suffix == ".json":
            text = json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n"
        else:
            text = self.as_markdown()
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise MoEColabError(f"{path} cannot be written: {error.strerror}.") from error
        return path

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
        """(turns left out, the encoded prompt, tokens that the answer may have): at least `wanted`
        of them, or half the context, are kept free for the answer."""
        if wanted is not None and wanted < 1:
            raise MoEColabError(f"an answer of at most {wanted} tokens is none: allow one or more.")
        wanted = wanted or self.model.generation_config.max_new_tokens or ANSWER_TOKENS
        context = context_tokens(self.model, self.tokenizer)
        if self.tokenizer.chat_template is None:  # a base model: it goes on with the text
            history = []
        # What was left out once stays so: or every question would encode all that was ever said.
        for left_out in range(history[-1].left_out if history else 0, len(history) + 1):
            inputs = self._encode(history[left_out:], text)
            length = inputs["input_ids"].shape[1]
            if context is None or length + min(wanted, context // 2) <= context:
                inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
                return left_out, inputs, min(wanted, context - length) if context else wanted
        raise MoEColabError(
            f"this message has {length:,} tokens with what the chat adds, and "
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
        except TemplateError:  # some templates know no system role: it opens the first message
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
    """Tokens that the model can see at once; None where neither config nor tokenizer says."""
    limits = [
        getattr(model.config.get_text_config(), "max_position_embeddings", None),
        tokenizer.model_max_length,
    ]
    known = [limit for limit in limits if limit and limit < 1 << 40]
    return min(known) if known else None


def sampling(
    temperature: float | None = None, top_p: float | None = None, max_new_tokens: int | None = None
) -> dict[str, Any]:
    """Keywords for `ask`; what is None stays as the model's own. Temperature 0 is greedy."""
    if temperature == 0:
        chosen: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    else:
        chosen = {"temperature": temperature, "top_p": top_p}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        chosen |= {"do_sample": True} if chosen else {}
    return chosen | ({"max_new_tokens": max_new_tokens} if max_new_tokens else {})
