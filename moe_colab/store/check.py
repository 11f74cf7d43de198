"""What a short check of a quantized store has found, in numbers and in words. Knows no model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

FEWEST = 100  # tokens that say something
RISKY = 0.3  # a relative error from which on many models are noise: that of 2 bits


@dataclass(frozen=True)
class Check:
    """`tokens`: how many the model has read, 0 where it could not run; `perplexity`: on these, and
    `by_frequency`: that of guessing each token by how often it occurs among them; None where
    nothing was read. `error`: the relative error of quantizing, the mean over the experts. `bits`:
    the fewest of any expert's matrix."""

    tokens: int
    perplexity: float | None
    by_frequency: float | None
    error: float
    bits: int

    @property
    def ran(self) -> bool:
        return self.tokens >= FEWEST and self.perplexity is not None

    @property
    def noise(self) -> bool:
        """Whether the model predicts text worse than its words' frequencies do."""
        return self.ran and self.perplexity > self.by_frequency

    def line(self) -> str:
        """What was found, in a sentence, with advice where it is bad."""
        advice = "make it with 4 bits" if self.bits < 4 else "make it with a smaller group_size"
        if not self.ran:
            lost = f"it could not read a text here; its experts lost {self.error:.0%} of their norm"
            risky = f", which turns many models into noise: {advice}, or try its answers"
            return lost + (risky if self.error > RISKY else "")
        read = f"perplexity {self.perplexity:,.1f} on {self.tokens:,} tokens"
        if self.noise:
            return (
                f"{read}, where guessing by frequency gives {self.by_frequency:,.1f}: this model "
                f"is noise, {advice}"
            )
        return f"{read} (by frequency alone: {self.by_frequency:,.1f}): it predicts text"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Check:
        """Raises ValueError or TypeError where it is not what `as_dict` gives."""
        check = cls(**data)
        for name, value in data.items():
            if value is None and name in ("perplexity", "by_frequency"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"{name} is {value!r}")
        return check
