"""What a model thinks, and what it answers: the two are marked by tags or by channels.

Knows the marks that models use. Reads an answer piece by piece; knows no tokenizer but for the ids
of the marks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

TAGS = {  # what begins the thinking: what ends it
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "◁think▷": "◁/think▷",
}
# gpt_oss: "<|start|>assistant<|channel|>analysis<|message|>...<|end|>", "final" is the answer.
START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
ENDS = ("<|end|>", "<|return|>", "<|call|>")
CONSTRAIN = "<|constrain|>"
CHANNELS = (START, CHANNEL, MESSAGE, CONSTRAIN, *ENDS)
FINAL = "final"
_OPENED = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>\s*$")

ANSWER, THINKING = "answer", "thinking"


def has_channels(tokenizer: Any) -> bool:
    """Whether a model with this tokenizer speaks in channels, as gpt_oss does."""
    return {CHANNEL, MESSAGE} <= added_tokens(tokenizer).keys()


def added_tokens(tokenizer: Any) -> dict[str, int]:
    """{token: id} of the tokens beside the vocabulary proper, special ones among them."""
    return dict(getattr(tokenizer, "added_tokens_encoder", None) or {})


def marks(tokenizer: Any) -> dict[int, str]:
    """{id: token} of the tokens that mark thinking and channels."""
    names = {*TAGS, *TAGS.values(), *(CHANNELS if has_channels(tokenizer) else ())}
    return {number: name for name, number in added_tokens(tokenizer).items() if name in names}


class Splitter:
    """Passes the pieces of an answer to `receive(kind, text)`, kind ANSWER or THINKING, without the
    marks. A tag that is written as text counts only where an answer begins, or after thinking.

    prompt: the end of the prompt, special tokens included; some templates begin the thinking there.
    """

    def __init__(self, receive: Callable[[str, str], None], prompt: str = ""):
        self.receive = receive
        self.kind = ANSWER
        self.close: str | None = None  # the tag that ends this thinking; None in a channel
        self.fresh = True  # whether a tag may begin here
        self.after_thinking = False  # whether the answer's leading line breaks are dropped
        self.header: list[str] | None = None  # between a mark of a channel and its message
        self.named = False  # whether the header names a channel
        self.held = ""  # may be the begin of a tag
        tag = next((tag for tag in TAGS if prompt.rstrip().endswith(tag)), None)
        channel = _OPENED.search(prompt)
        if tag:
            self._think(TAGS[tag])
        elif channel and channel[1] != FINAL:
            self._think(None)

    def text(self, piece: str) -> None:
        """The next piece of text."""
        if self.header is not None:
            self.header.append(piece)
        elif self.kind == THINKING and self.close is not None:
            self._text_in_tag(self.held + piece)
        elif self.kind == ANSWER and self.fresh:
            self._text_at_begin(self.held + piece)
        else:
            self._pass_on(piece)

    def mark(self, token: str) -> None:
        """The next token is one of `marks`."""
        self.flush()
        if token in TAGS:
            self._think(TAGS[token])
        elif token == self.close:
            self._answer()
        elif token in (START, CHANNEL, *ENDS):
            self.header, self.named = [], token == CHANNEL
        elif token == MESSAGE and self.header is not None:
            name = "".join(self.header).split()[:1] if self.named else []
            self.header = None
            if name in ([], [FINAL]):
                self._answer()
            else:
                self._think(None)
        elif token == CONSTRAIN and self.header is not None:
            self.header.append(" ")

    def flush(self) -> None:
        """Pass on what was held back; at the end of the answer too."""
        held, self.held = self.held, ""
        self._pass_on(held)

    def _think(self, close: str | None) -> None:
        self.kind, self.close, self.fresh = THINKING, close, False

    def _answer(self) -> None:
        self.kind, self.close, self.fresh, self.after_thinking = ANSWER, None, True, True

    def _text_in_tag(self, text: str) -> None:
        self.held = ""
        thought, tag, rest = text.partition(self.close)
        if tag:
            self._pass_on(thought)
            self._answer()
            self.text(rest)
            return
        keep = max(n for n in range(len(self.close)) if text.endswith(self.close[:n]))
        self._pass_on(text[: len(text) - keep])
        self.held = text[len(text) - keep :]

    def _text_at_begin(self, text: str) -> None:
        begin = text.lstrip()
        tag = next((tag for tag in TAGS if begin.startswith(tag)), None)
        if tag:
            self.held = ""
            self._think(TAGS[tag])
            self.text(begin[len(tag) :])
        elif any(tag.startswith(begin) for tag in TAGS):
            self.held = text
        else:
            self.held, self.fresh = "", False
            self._pass_on(text)

    def _pass_on(self, text: str) -> None:
        if self.kind == ANSWER and self.after_thinking:
            text = text.lstrip()
            self.after_thinking = not text
        if text:
            self.receive(self.kind, text)
