"""`mc.ChatSession`: a conversation with history, streaming, stop, retry, context limit and export.

Knows a model and its tokenizer; knows no widgets and no terminal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import MoEColabError
from ..files import write_file
from ..offload.text_ids import check_ids
from ..units import parse_bytes
from .answer import Answer
from .kept import Kept
from .settings import answer_tokens, plan
from .template import end_ids, prompt_ids
from .turn import Turn

BUSY = "an answer is under way on this model: stop it, or wait for it."


class ChatSession:
    """A conversation, one answer at a time. `turns`: the questions and answers so far. `turn`: the
    latest of them, None while an answer is under way.

    keep: the keys and values of the conversation stay in memory for the next question, which then
        reads its new tokens alone; this is the most that they may take, in bytes or as "500MB", 0
        for nothing. The answers are the same, but for two tokens whose logits are equal to
        rounding. Models with a state that cannot be cut (Mamba, linear attention) read everything
        again.

    Raises MoEColabError for a model without a tokenizer."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        system: str | None = None,
        *,
        keep: int | str = "1GB",
    ):
        self.model, self.system = model, system
        self._kept = Kept(parse_bytes(keep))
        self._found_ends: tuple[str, list[int]] | None = None
        model.offload.emptied_by_close.add(self._kept)
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
        `turn.seed` then holds. Other keywords go to `model.generate` and override the model's own;
        the model's and the tokenizer's ends of a turn end the answer. With beams the answer comes
        at its end.

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

    def close(self) -> None:
        """End the answer under way and free the keys and values; the turns stay."""
        if self.answer is not None and self.answer.begun:
            self.answer.end()
        self._kept.clear()

    @property
    def kept_bytes(self) -> int:
        """Bytes of the keys and values that are kept for the next question."""
        return self._kept.nbytes

    def stop(self) -> None:
        """End the answer under way after its current token."""
        if self.answer is not None:
            self.answer.stop()

    def reset(self) -> None:
        """Forget the conversation. Raises MoEColabError while an answer is under way."""
        if self.busy:
            raise MoEColabError("an answer is under way: stop it before the chat is cleared.")
        self.turns, self.turn = [], None
        self._kept.clear()

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
            parts.append(f"**You:** {turn.question}")
            if turn.thinking:
                parts.append(
                    f"<details><summary>Thinking</summary>\n\n{turn.thinking}\n\n</details>"
                )
            parts += [f"**Model:** {turn.text}", f"*{turn.line()}*"]
        return "\n\n".join(parts) + "\n"

    def export(self, path: str | Path) -> Path:
        """Write the conversation to `path`, as .json or .md by its ending, and return the path.
        Raises MoEColabError for another ending, or if the file cannot be written."""
        try:
            path = Path(path).expanduser()
        except RuntimeError as error:  # "~name" of someone who does not exist
            raise MoEColabError(
                f"{str(path)!r} cannot be written: {str(error).rstrip('.')}."
            ) from error
        if path.suffix not in (".json", ".md"):
            raise MoEColabError(f"{str(path)!r} must end with .json or .md: choose one of these.")
        if path.suffix == ".json":
            text = json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n"
        else:
            text = self.as_markdown()
        return write_file(path, text.encode("utf-8", "replace"))

    # ------------------------------------------------------------------ inside
    def _start(
        self, history: list[Turn], text: str, seed: int | None, given: dict[str, Any]
    ) -> Answer:
        lock = self.model.offload.answering
        if not lock.acquire(blocking=False):
            raise MoEColabError(BUSY)
        answer = None
        try:
            left_out, ids, room = self._fit(history, text, answer_tokens(self.model, given))
            check_ids(self.model, ids)
            planned = plan(self.model, self.tokenizer, given, self._ends(), room)

            def keep(answer: Answer) -> None:  # in the answer's thread, before it is done
                try:
                    self.turn = answer.turn()
                    if answer.error is None:
                        self.turns = [*history, self.turn]
                finally:
                    lock.release()

            self.turn = None
            answer = Answer(
                self.model,
                self.tokenizer,
                ids,
                question=text,
                seed=seed,
                left_out=left_out,
                given=given,
                plan=planned,
                kept=self._kept,
                on_end=keep,
            )
            self.answer = answer
            answer.begin()
        finally:
            if answer is None or not answer.begun:
                lock.release()
        return answer

    def _fit(self, history: list[Turn], text: str, wanted: int) -> tuple[int, list[int], int]:
        """(turns left out, ids of the prompt, most tokens of the answer). At least `wanted` tokens,
        or half of the context, stay free for the answer."""
        context = context_tokens(self.model, self.tokenizer)
        if self.tokenizer.chat_template is None:  # a base model continues the text
            history = []
        question = {"role": "user", "content": text}
        # Turns that were left out once stay out: else every question would encode them again.
        for left_out in range(history[-1].left_out if history else 0, len(history) + 1):
            messages = [*as_messages(history[left_out:]), question]
            ids = prompt_ids(self.tokenizer, self.system, messages)
            if context is None or len(ids) + min(wanted, context // 2) <= context:
                return left_out, ids, min(wanted, context - len(ids)) if context else wanted
        raise MoEColabError(
            f"this message has {len(ids):,} tokens with the chat template, and at most "
            f"{context - min(wanted, context // 2):,} fit beside an answer: shorten it."
        )

    def _ends(self) -> list[int]:
        """The ids that end an answer, found once for each chat template."""
        template = repr(self.tokenizer.chat_template)
        if self._found_ends is None or self._found_ends[0] != template:
            self._found_ends = template, end_ids(self.tokenizer)
        return self._found_ends[1]


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
    known = [int(limit) for limit in limits if limit and limit < 1 << 40]
    return min(known) if known else None
