"""One answer under way: `model.generate` in a thread of its own, read as a stream or looked at now
and then. Knows a model and its tokenizer; knows no conversation."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, TextStreamer, set_seed

from .errors import MoEColabError
from .pool import CLOSED

RECENT = 16  # tokens over which the rate of an answer under way is taken


@dataclass(frozen=True)
class Turn:
    """A question and how its answer went, or goes. `seconds` from the question to the last token,
    `first_token_seconds` to the first; `hit_rate`, `loads`, `bytes_loaded` and `stall_seconds`
    (layers waiting for bytes) are those of this answer alone. `tokens_after_stop`: tokens that came
    after Stop was heard. `left_out`: earlier turns that no longer fitted into the context."""

    question: str
    text: str
    prompt_tokens: int
    tokens: int
    seconds: float
    first_token_seconds: float
    hit_rate: float
    loads: int
    bytes_loaded: int
    stall_seconds: float
    stopped: bool
    tokens_after_stop: int
    left_out: int
    seed: int | None

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first: the prompt's time is not theirs."""
        rest = self.seconds - self.first_token_seconds
        return (self.tokens - 1) / rest if self.tokens > 1 and rest > 0 else 0.0

    @property
    def bytes_per_token(self) -> float:
        return self.bytes_loaded / self.tokens if self.tokens else 0.0

    @property
    def stall_share(self) -> float:
        return self.stall_seconds / self.seconds if self.seconds else 0.0

    def line(self) -> str:
        """The one line shown under an answer."""
        return (
            f"{self.tokens} tokens, first after {self.first_token_seconds:.2f} s, then "
            f"{self.tokens_per_second:.1f} tokens/s, hit rate {self.hit_rate:.0%}, "
            f"{self.bytes_per_token / 1e6:.2f} MB a token; {self.loads} loads, "
            f"{self.bytes_loaded / 1e6:.1f} MB moved"
        )

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "tokens_per_second": self.tokens_per_second}


class Answer(StoppingCriteria):
    """Iterate over it for the text, piece by piece, or look at `text`, `turn()` and `done` as often
    as you like. `error` is what ended it, if anything did; iterating raises it."""

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any,
        inputs: Mapping[str, torch.Tensor],
        *,
        question: str,
        seed: int | None,
        left_out: int,
        generation: Mapping[str, Any],
        on_end: Callable[[Answer], None],
    ):
        self.question, self.seed, self.left_out = question, seed, left_out
        self.prompt_tokens = inputs["input_ids"].shape[1]
        self.error: BaseException | None = None
        self.done = False
        self.count = 0
        self._offload, self._on_end = model.offload, on_end
        self._pieces: list[str] = []
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._heard = 0  # tokens when Stop was heard
        self._first = self._end = 0.0
        self._times: deque[float] = deque(maxlen=RECENT)
        self._before, self._start = model.offload.stats(), time.perf_counter()
        self._after = None
        settings = {"pad_token_id": tokenizer.pad_token_id, **generation}
        self._thread = threading.Thread(
            target=self._run,
            args=(model, inputs, Streamer(tokenizer, self._add), settings),
            name="moe_colab-answer",
            daemon=True,
        )
        self._thread.start()

    def __iter__(self) -> Iterator[str]:
        seen = 0
        while not self.done or seen < len(self._pieces):
            self._wait(seen)
            fresh = self._pieces[seen:]
            yield from fresh
            seen += len(fresh)
        if self.error is not None:
            raise self.error

    @property
    def text(self) -> str:
        """What was said so far."""
        return "".join(self._pieces)

    @property
    def rate(self) -> float:
        """Tokens a second over the last few."""
        times = list(self._times)
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0

    def turn(self) -> Turn:
        """How it goes now, or how it went."""
        before, now = self._before, self._after or self._offload.stats()
        accesses = now.accesses - before.accesses
        hits = now.hits + now.speculative_hits - before.hits - before.speculative_hits
        end = self._end or time.perf_counter()
        return Turn(
            question=self.question,
            text=self.text.strip(),
            prompt_tokens=self.prompt_tokens,
            tokens=self.count,
            seconds=end - self._start,
            first_token_seconds=(self._first or end) - self._start,
            hit_rate=hits / accesses if accesses else 0.0,
            loads=now.loads - before.loads,
            bytes_loaded=now.bytes_loaded - before.bytes_loaded,
            stall_seconds=now.stall_seconds - before.stall_seconds,
            stopped=self._stop.is_set(),
            tokens_after_stop=self.count - self._heard if self._stop.is_set() else 0,
            left_out=self.left_out,
            seed=self.seed,
        )

    def stop(self) -> None:
        """End after the token it is at; an answer that is done stays as it is."""
        with self._changed:
            if not self.done and not self._stop.is_set():
                self._heard = self.count
                self._stop.set()

    def end(self) -> None:
        """Wait until the thread is through, ending it if it is not."""
        self.stop()
        while not self.done:  # not by join(): Python 3.11 takes an interrupted one for the end
            with contextlib.suppress(KeyboardInterrupt):  # pressed again: it is stopping already
                self._wait(sys.maxsize)
        self._thread.join()

    def _wait(self, seen: int) -> None:
        """Until there are more than `seen` pieces, or no more to come."""
        with self._changed:
            self._changed.wait_for(lambda: self.done or len(self._pieces) > seen)

    # ------------------------------------------------------------------ in the thread
    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        """Called by `generate` after every token: input_ids [rows, length] -> bool [rows]."""
        now = time.perf_counter()
        self._first = self._first or now
        self._times.append(now)
        self.count += 1
        return torch.full((input_ids.shape[0],), self._stop.is_set(), device=input_ids.device)

    def _add(self, piece: str) -> None:
        if piece:
            with self._changed:
                self._pieces.append(piece)
                self._changed.notify_all()

    def _run(self, model, inputs, streamer, settings: dict[str, Any]) -> None:
        try:
            if self.seed is not None:
                set_seed(self.seed)
            model.generate(**inputs, streamer=streamer, stopping_criteria=[self], **settings)
        except BaseException as error:  # raised again where the text is read
            self.error = error
            if self._offload.closed:  # its weights went away in the midst of a forward
                self.error = MoEColabError(CLOSED)
        finally:
            self._after, self._end = self._offload.stats(), time.perf_counter()
            with self._changed:
                self._on_end(self)
                self.done = True
                self._changed.notify_all()


class Streamer(TextStreamer):
    """Hands every finished piece of text to `receive`; the prompt and special tokens are left
    out."""

    def __init__(self, tokenizer: Any, receive: Callable[[str], None]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.receive = receive

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.receive(text)
