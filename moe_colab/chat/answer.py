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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import DynamicCache, StoppingCriteria

from ..errors import CLOSED, MoEColabError
from ..offload.read_text import cache_argument
from .kept import Kept
from .settings import Plan, explained
from .streamer import Streamer
from .thinking import ANSWER, THINKING, Splitter, marks
from .turn import Turn

RECENT = 16  # tokens over which `rate` is measured
PROMPT_END = 32  # tokens of the prompt in which a template may begin the thinking


class StoppedEarly(Exception):
    """Raised inside the model when the answer is stopped before its first token."""


class Answer(StoppingCriteria):
    """One answer, generated from `begin` on. Iterate over it for its pieces of text, or read
    `text`, `thinking`, `turn()` and `done` at any time. `error`: what ended the answer, as a
    MoEColabError, or None; iterating raises it."""

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any,
        ids: Sequence[int],
        *,
        question: str,
        seed: int | None,
        left_out: int,
        given: Mapping[str, Any],
        plan: Plan,
        kept: Kept,
        on_end: Callable[[Answer], None],
    ):
        """ids: the prompt. given: the caller's own settings, for the words of an error."""
        self.question, self.left_out = question, left_out
        # A random seed is kept, so that the answer can be repeated.
        self.seed = int.from_bytes(os.urandom(4), "big") if seed is None else seed
        self.prompt_tokens, self.reused = len(ids), 0
        self.error: MoEColabError | None = None
        self.done = False
        self.count = 0
        self._model, self._ids, self._given, self._plan = model, list(ids), dict(given), plan
        self._offload, self._kept, self._on_end = model.offload, kept, on_end
        self._cache: DynamicCache | None = None
        self._pieces: list[tuple[str, str]] = []  # kind and text
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._at_stop = 0  # tokens when `stop` was called
        self._first = self._end = 0.0
        self._times: deque[float] = deque(maxlen=RECENT)
        self._before, self._start = model.offload.peek(), time.perf_counter()
        self._after = None
        end = tokenizer.decode(self._ids[-PROMPT_END:])
        self._splitter = Splitter(self._add, prompt=end)
        self._streamer = Streamer(
            *(tokenizer, self._splitter.text, marks(tokenizer), self._splitter.mark, self._counted)
        )
        self._thread = threading.Thread(target=self._run, name="moe_colab-answer", daemon=True)

    def begin(self) -> None:
        """Start to generate; from now on `on_end` will be called once."""
        self._thread.start()

    @property
    def begun(self) -> bool:
        return self._thread.ident is not None

    def __iter__(self) -> Iterator[str]:
        return (text for kind, text in self.parts() if kind == ANSWER)

    def parts(self) -> Iterator[tuple[str, str]]:
        """The pieces as they come: (kind, text), kind "answer" or "thinking"."""
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
        """The answer so far, without what the model thought."""
        return self._text_of(ANSWER)

    @property
    def thinking(self) -> str:
        """What the model has thought so far; "" for models that do not mark it."""
        return self._text_of(THINKING)

    @property
    def rate(self) -> float:
        """Tokens per second over the last 16 tokens."""
        times = list(self._times)
        seconds = times[-1] - times[0] if len(times) > 1 else 0.0
        return (len(times) - 1) / seconds if seconds > 0 else 0.0

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
            thinking=self.thinking.strip(),
            reused_tokens=self.reused,
            kept=self._kept.note if self._end and self._plan.reusable else "",
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

    def _text_of(self, kind: str) -> str:
        return "".join(text for one, text in list(self._pieces) if one == kind)

    # ------------------------------------------------------------------ in the thread
    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        """Called by `generate` after every token: input_ids int64 [rows, length] -> bool [rows]."""
        if self._cache is not None and not self._kept.copied:
            self._kept.prompt_read(self._cache, self.prompt_tokens)
        if not self._plan.streamed:
            self._counted(input_ids.shape[1] - self.prompt_tokens)
        return torch.full((input_ids.shape[0],), self._stop.is_set(), device=input_ids.device)

    def _counted(self, tokens: int) -> None:
        now = time.perf_counter()
        self._first = self._first or now
        self._times.append(now)
        self.count = tokens

    def _add(self, kind: str, text: str) -> None:
        with self._changed:
            self._pieces.append((kind, text))
            self._changed.notify_all()

    def _run(self) -> None:
        self._offload.runtime.check_stop = self._check_stop
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):  # leaves the user's random state as it is
                torch.manual_seed(self.seed)
                self._generate()
        except StoppedEarly:
            self._kept.clear()
        except BaseException as error:  # raised again where the answer is iterated
            self._kept.clear()
            self.error = explained(error, self._model, self._given)
            with self._offload.runtime.lock:
                if self._offload.closed:  # the weights were freed during a forward pass
                    self.error = MoEColabError(CLOSED)
                    self.error.__cause__ = error
        finally:
            self._offload.runtime.check_stop = lambda: None
            self._finish()

    def _generate(self) -> None:
        model, ids = self._model, self._ids
        keywords = dict(self._plan.keywords)
        own = keywords.pop("stopping_criteria", None) or []
        if self._plan.reusable:
            self._cache, self.reused = self._kept.take(model, ids)
        if self._cache is not None:
            keywords[cache_argument(model)] = self._cache
        if self._plan.streamed:
            keywords["streamer"] = self._streamer
        prompt = torch.tensor([ids], device=model.device)
        out = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            stopping_criteria=[self, *own],
            **keywords,
        )
        whole = torch.as_tensor(out)[0].tolist()
        if not self._plan.streamed:
            self._show(whole[len(ids) :])
        self._streamer.end()
        self._splitter.flush()
        if self._cache is not None and not self._offload.closed:
            self._kept.keep(self._cache, whole)

    def _show(self, answer: list[int]) -> None:
        """Show the tokens of an answer that was not streamed, up to its end."""
        ends = [n for n, token in enumerate(answer, 1) if token in self._plan.ends]
        self._streamer.put(torch.tensor(self._ids))
        self._streamer.put(torch.tensor(answer[: ends[0]] if ends else answer))

    def _finish(self) -> None:
        """Mark the answer as done, even if something in here fails."""
        try:
            self._end, self._after = time.perf_counter(), self._offload.stats()
        except Exception as error:
            self.error = self.error or explained(error, self._model, self._given)
        finally:
            self._cache = None
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
