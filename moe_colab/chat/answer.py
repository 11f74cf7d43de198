"""One answer under way: `model.generate` in a thread of its own, read as a stream or looked at now
and then. Knows a model and its tokenizer; knows no conversation."""

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

RECENT = 16  # tokens over which the rate of an answer under way is taken


class StoppedEarly(Exception):
    """Stop was heard before the first token."""


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
        self.question, self.left_out = question, left_out
        # Without a seed each answer is another one, and can be repeated all the same.
        self.seed = int.from_bytes(os.urandom(4), "big") if seed is None else seed
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
        """What was said so far."""
        return "".join(self._pieces)

    @property
    def rate(self) -> float:
        """Tokens a second over the last few."""
        times = list(self._times)
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0

    def turn(self) -> Turn:
        """How it goes now, or how it went."""
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
            tokens_after_stop=self.count - self._heard if self._stop.is_set() else 0,
            left_out=self.left_out,
            seed=self.seed,
            speculation=now.speculation,
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
        self._offload.runtime.check_stop = self._check_stop
        devices = [model.device] if model.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):  # the user's own random numbers stay theirs
                torch.manual_seed(self.seed)
                model.generate(**inputs, streamer=streamer, stopping_criteria=[self], **settings)
        except StoppedEarly:
            streamer.end()
        except BaseException as error:  # raised again where the text is read
            self.error = error
            with self._offload.runtime.lock:
                if self._offload.closed:  # its weights went away in the midst of a forward
                    self.error = MoEColabError(CLOSED)
                    self.error.__cause__ = error
        finally:
            self._offload.runtime.check_stop = lambda: None
            self._finish()

    def _finish(self) -> None:
        """Whatever happens here, the answer is done."""
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
        """Before every layer: a long question can be left while it is still read, an answer ends
        with a whole token."""
        if self._stop.is_set() and not self.count and threading.current_thread() is self._thread:
            raise StoppedEarly
