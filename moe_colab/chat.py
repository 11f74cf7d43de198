"""A conversation: history, streaming, stop. Knows a model and its tokenizer; knows no widgets and
no terminal."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    TextIteratorStreamer,
    set_seed,
)

from .errors import MoEColabError


@dataclass(frozen=True)
class Turn:
    """How one answer went. `seconds` from the question to the last token, `first_token_seconds` to
    the first; `hit_rate`, `loads` and `bytes_loaded` are those of this answer alone."""

    text: str
    prompt_tokens: int
    tokens: int
    seconds: float
    first_token_seconds: float
    hit_rate: float
    loads: int
    bytes_loaded: int
    stopped: bool

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first: the prompt's time is not theirs."""
        rest = self.seconds - self.first_token_seconds
        return (self.tokens - 1) / rest if self.tokens > 1 and rest > 0 else 0.0

    def line(self) -> str:
        """The one line shown under an answer."""
        return (
            f"{self.tokens} tokens, {self.tokens_per_second:.1f} tokens/s, hit rate "
            f"{self.hit_rate:.0%}, {self.loads} loads, {self.bytes_loaded / 1e6:.1f} MB moved"
        )


class ChatSession:
    """History and one answer at a time. `messages` are the turns so far, as chat templates take
    them."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        system: str | None = None,
    ):
        if tokenizer is None:
            raise MoEColabError("this model has no tokenizer: a chat needs one in its folder.")
        self.model, self.tokenizer, self.system = model, tokenizer, system
        self.messages: list[dict[str, str]] = []
        self.turn: Turn | None = None
        self._stop = threading.Event()
        self._busy = threading.Lock()

    def ask(self, text: str, seed: int | None = None, **generation: Any) -> Iterator[str]:
        """Yield the answer to `text` piece by piece; `turn` then says how it went. Keywords go to
        `model.generate` over the model's own generation settings. A caller that stops asking stops
        the answer. Raises MoEColabError while another answer is under way."""
        if not self._busy.acquire(blocking=False):
            raise MoEColabError("an answer is under way: stop it, or wait for its end.")
        try:
            self._stop.clear()
            self.turn = None
            yield from self._answer(text, seed, generation)
        finally:
            self._busy.release()

    def stop(self) -> None:
        """End the answer under way after the token it is at."""
        self._stop.set()

    def reset(self) -> None:
        """Forget the conversation."""
        self.messages.clear()
        self.turn = None

    def _answer(self, text: str, seed: int | None, generation: dict[str, Any]) -> Iterator[str]:
        asked = [*self.messages, {"role": "user", "content": text}]
        inputs = self._encode(asked).to(self.model.device)
        if seed is not None:
            set_seed(seed)
        before, start = self.model.offload.stats(), time.perf_counter()
        worker = Generation(self.model, self.tokenizer, inputs, self._stop, generation)
        pieces: list[str] = []
        try:
            for piece in worker:
                pieces.append(piece)
                yield piece
        finally:
            stopped = worker.end()
            now, end = self.model.offload.stats(), time.perf_counter()
            accesses = now.accesses - before.accesses
            hits = now.hits + now.speculative_hits - before.hits - before.speculative_hits
            self.turn = Turn(
                text="".join(pieces).strip(),
                prompt_tokens=inputs["input_ids"].shape[1],
                tokens=worker.count,
                seconds=end - start,
                first_token_seconds=(worker.first_token or end) - start,
                hit_rate=hits / accesses if accesses else 0.0,
                loads=now.loads - before.loads,
                bytes_loaded=now.bytes_loaded - before.bytes_loaded,
                stopped=stopped,
            )
            if worker.error is None:
                self.messages = [*asked, {"role": "assistant", "content": self.turn.text}]

    def _encode(self, messages: list[dict[str, str]]):
        if self.tokenizer.chat_template is None:  # a base model: it goes on with the text
            return self.tokenizer(messages[-1]["content"], return_tensors="pt")
        if self.system:
            messages = [{"role": "system", "content": self.system}, *messages]
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )


class Generation(StoppingCriteria):
    """`model.generate` in a thread of its own; iterate over it for the text."""

    def __init__(self, model, tokenizer, inputs, stop: threading.Event, settings: dict[str, Any]):
        self.stop, self.count, self.first_token = stop, 0, None
        self.error: BaseException | None = None
        self.streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        settings = {"pad_token_id": tokenizer.pad_token_id, **settings}
        self.thread = threading.Thread(
            target=self._run,
            args=(model, inputs, settings),
            name="moe_colab-generation",
            daemon=True,
        )
        self.thread.start()

    def __iter__(self) -> Iterator[str]:
        for piece in self.streamer:
            if piece:
                yield piece
        self.thread.join()
        if self.error is not None:
            raise self.error

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        """Called by `generate` after every token: input_ids [rows, length] -> bool [rows]."""
        self.first_token = self.first_token or time.perf_counter()
        self.count += 1
        return torch.full((input_ids.shape[0],), self.stop.is_set(), device=input_ids.device)

    def end(self) -> bool:
        """Wait until the thread is through, ending it if it is not; True if it was ended early."""
        early = self.thread.is_alive()
        while self.thread.is_alive():
            self.stop.set()
            with contextlib.suppress(KeyboardInterrupt):  # pressed again: it is stopping already
                self.thread.join()
        return early or self.stop.is_set()

    def _run(self, model, inputs, settings: dict[str, Any]) -> None:
        try:
            model.generate(**inputs, streamer=self.streamer, stopping_criteria=[self], **settings)
        except BaseException as error:  # raised again where the text is read
            self.error = error
        finally:
            self.streamer.end()
