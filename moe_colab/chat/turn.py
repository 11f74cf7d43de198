"""A turn: one question, its answer, and what the answer cost. Knows numbers only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Turn:
    """A question with its answer, finished or under way. `seconds`: from the question to the last
    token; `first_token_seconds`: to the first one. `hit_rate`, `loads`, `bytes_loaded` and
    `stall_seconds` (layers waiting for experts) count this answer only. `tokens_after_stop`: tokens
    generated after `stop` was called. `left_out`: earlier turns that did not fit into the context.
    `speculation`: in words, whether prefetching has paid so far. `thinking`: what the model marked
    as its thinking, which is no part of `text` and does not go into the next prompt.
    `reused_tokens`: of the prompt, whose keys and values were there from the answer before. `kept`:
    in words, why the keys and values were not kept for the next question; "" where they were."""

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
    seed: int
    speculation: str = ""
    thinking: str = ""
    reused_tokens: int = 0
    kept: str = ""

    @property
    def tokens_per_second(self) -> float:
        """The rate after the first token, so without the time of the prompt."""
        rest = self.seconds - self.first_token_seconds
        return (self.tokens - 1) / rest if self.tokens > 1 and rest > 0 else 0.0

    @property
    def bytes_per_token(self) -> float:
        return self.bytes_loaded / self.tokens if self.tokens else 0.0

    @property
    def stall_share(self) -> float:
        return self.stall_seconds / self.seconds if self.seconds else 0.0

    def line(self) -> str:
        """The numbers as one line, which is shown below an answer."""
        return (
            f"{self.tokens} tokens, first after {self.first_token_seconds:.2f} s, then "
            f"{self.tokens_per_second:.1f} tokens/s, hit rate {self.hit_rate:.0%}, "
            f"{self.bytes_per_token / 1e6:.2f} MB per token; {self.loads} loads, "
            f"{self.bytes_loaded / 1e6:.1f} MB moved"
            + (f"; {self._reused()}" if self.reused_tokens else "")
            + "".join(f"; {words}" for words in (self.speculation, self.kept) if words)
        )

    def _reused(self) -> str:
        return f"{self.reused_tokens} of {self.prompt_tokens} prompt tokens were read before"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "tokens_per_second": self.tokens_per_second}
