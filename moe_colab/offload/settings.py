"""The settings of `mc.load`, checked against the model: one clear error, before any work.

Knows how many experts each layer has; knows no memory and no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..cache.policies import PolicySpec, make_policy
from ..cache.settings import PrefetchSettings, check_pinned, check_slots
from ..errors import MoEColabError
from ..quantization.kernels.dispatch import AUTO, PLAIN
from ..units import parse_bytes


@dataclass(frozen=True)
class Settings:
    """As given to `mc.load`, whose docstring says what each means; after `checked`, `slots` is one
    number per layer or "auto", `vram` and `ram` are bytes or None, `pinned` is a tuple per
    layer."""

    slots: int | Sequence[int] | str = AUTO
    policy: PolicySpec = "lru"
    vram: int | str | None = AUTO
    ram: int | str | None = AUTO
    pinned: Mapping[int, Sequence[int]] | None = None
    whole_layer: bool = False
    kernels: str = AUTO
    prefetch: PrefetchSettings = field(default_factory=PrefetchSettings)

    def checked(self, experts: Sequence[int]) -> Settings:
        """The same for a model with `experts` per MoE layer. Raises MoEColabError."""
        make_policy(self.policy, experts[0])
        if self.kernels not in (AUTO, PLAIN):
            raise MoEColabError(f"kernels must be {AUTO!r} or {PLAIN!r}, not {self.kernels!r}.")
        return replace(
            self,
            slots=AUTO if self.slots == AUTO else check_slots(self.slots, experts),
            vram=None if self.vram == AUTO else parse_bytes(self.vram),
            ram=None if self.ram == AUTO else parse_bytes(self.ram),
            pinned=check_pinned(self.pinned or {}, experts),
        )
