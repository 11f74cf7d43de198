"""A question and what its answer cost. Knows numbers only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Turn:
    """A question and how its answer went, or goes. `seconds` from the question to the last token,
    `first_token_seconds` to the first; `hit_rate`, `loads`, `bytes_loaded` and `stall_seconds`
    (layers waiting for bytes) are those of this answer alone. `tokens_after_stop`: tokens that came
    after Stop was heard. `left_out`: earlier turns that no longer fitted into the context.
    `speculation`: whether guessing has paid so far, in words."""

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
            + (f"; {self.speculation}" if self.speculation else "")
        )

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "tokens_per_second": self.tokens_per_second}
