"""A streamer for `model.generate`: passes text on piece by piece. Knows a tokenizer only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer


class Streamer(BaseStreamer):
    """Passes new text to `receive` after every token, without the prompt and special tokens.

    It does not wait for a space, which some languages do not have. It waits only until a character
    is complete. Tokens are decoded together with the ones before them, because whether a piece
    begins with a space depends on these.

    marks: {id: token} of tokens that are no text, but are passed to `marked`. count(n): called with
    the number of tokens so far.
    """

    def __init__(
        self,
        tokenizer: Any,
        receive: Callable[[str], None],
        marks: Mapping[int, str] | None = None,
        marked: Callable[[str], None] = lambda token: None,
        count: Callable[[int], None] = lambda tokens: None,
    ):
        self.tokenizer, self.receive = tokenizer, receive
        self.marks, self.marked, self.count = marks or {}, marked, count
        self.ids: list[int] | None = None  # None: the prompt comes first
        self.before = self.shown = 0  # ids[before:shown] are shown, and are the context of the next

    def put(self, value: torch.Tensor) -> None:
        if self.ids is None:
            self.ids = []
            return
        for token in value.flatten().tolist():
            if token in self.marks:
                self._show(hold=False)
                self.ids.append(token)
                self.before = self.shown = len(self.ids)
                self.marked(self.marks[token])
            else:
                self.ids.append(token)
            self.count(len(self.ids))
        self._show(hold=True)

    def end(self) -> None:
        if self.ids:
            self._show(hold=False)

    def _show(self, hold: bool) -> None:
        context = self._text(self.before, self.shown)
        text = self._text(self.before, len(self.ids))
        if hold and (len(text) <= len(context) or text.endswith("\N{REPLACEMENT CHARACTER}")):
            return
        self.before, self.shown = self.shown, len(self.ids)
        self.receive(text[len(context) :])

    def _text(self, begin: int, end: int) -> str:
        return self.tokenizer.decode(self.ids[begin:end], skip_special_tokens=True)
