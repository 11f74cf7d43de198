"""An answer: `model.generate` in its own thread, read as a stream or polled.

Knows a model and its tokenizer; knows no conversation.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from transformers import StoppingCriteria

from ..errors import CLOSED, MoEColabError
from .streamer import Streamer
from .turn import Turn

RECENT = 16  # tokens over which `rate` is measured


class StoppedEarly(Exception):
    """Raised inside the model when the answer is stopped before its first token."""


class Answer(StoppingCriteria):
    """One answer. Iterate over it for its pieces of text, or read `text`, `turn()` and `done` at
    any time. `error`: the exception that ended the answer, or None; iterating raises it."""

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
        self.question, self.left_out = question, left_out
        # A random seed is kept, so that the answer can be repeated.
        self.seed = int.from_bytes(os.urandom(4), "big") if seed is None else seed
        self.prompt_tokens = inputs["input_ids"].shape[1]
        self.error: BaseException | None = None
        self.done = False
        self.count = 0
        self._offload, self._on_end = model.offload, on_end
        self._pieces: list[str] = []
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._at_stop = 0  # tokens when `stop` was called
        self._first = self._end = 0.0
        self._times: deque[float] = deque(maxlen=RECENT)
        self._before, self._start = model.offload.peek(), time.perf_counter()
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
        """The answer so far."""
        return "".join(self._pieces)

    @property
    def rate(self) -> float:
        """Tokens per second over the last 16 tokens."""
        times = list(self._times)
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0

    def turn(self) -> Turn:
        """The question, the answer so far, and its numbers."""
        before, now = self._before, self._after or self._offload.peek()
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
            tokens_after_stop=self.count - self._at_stop if self._stop.is_set() else 0,
            left_out=self.left_out,
            seed=self.seed,
            speculation=now.speculation,
        )

    def stop(self) -> None:
        """End the answer after its current token. Does nothing when the answer is done."""
        with self._changed:
            if not self.done and not self._stop.is_set():
                self._at_stop = self.count
                self._stop.set()

    def end(self) -> None:
        """Stop the answer and wait until its thread has ended."""
        self.stop()
        while not self.done:  # Python 3.11: join() is wrong after an interrupt
            with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C again: it is stopping already
                self._wait(sys.maxsize)
        self._thread.join()

    def _wait(self, seen: int) -> None:
        """Wait until there are more than `seen` pieces, or the answer is done."""
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
        self._offload.runtime.check_stop = self._check_stop
        devices = [model.device] if model.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):  # leaves the user's random state as it is
                torch.manual_seed(self.seed)
                model.generate(**inputs, streamer=streamer, stopping_criteria=[self], **settings)
        except StoppedEarly:
            streamer.end()
        except BaseException as error:  # raised again where the answer is iterated
            self.error = error
            with self._offload.runtime.lock:
                if self._offload.closed:  # the weights were freed during a forward pass
                    self.error = MoEColabError(CLOSED)
                    self.error.__cause__ = error
        finally:
            self._offload.runtime.check_stop = lambda: None
            self._finish()

    def _finish(self) -> None:
        """Mark the answer as done, even if something in here fails."""
        try:
            self._end, self._after = time.perf_counter(), self._offload.stats()
        except Exception as error:
            self.error = self.error or error
        finally:
            with self._changed:
                try:
                    self._on_end(self)
                finally:
                    self.done = True
                    self._changed.notify_all()

    def _check_stop(self) -> None:
        """Called before every layer: stops within the prompt, but never within a later token."""
        if self._stop.is_set() and not self.count and threading.current_thread() is self._thread:
            raise StoppedEarly
