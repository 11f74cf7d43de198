"""Settings of `mc.load`, checked against the model before any work is done.

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
    """The arguments of `mc.load`, whose docstring explains them; `pinned` is its `resident`. After
    `checked`, `slots` is a list with one number per layer or "auto", `vram` and `ram` are bytes or
    None for "auto", `pinned` is a tuple of experts per layer."""

    slots: int | Sequence[int] | str = AUTO
    policy: PolicySpec = "lru"
    vram: int | str | None = AUTO
    ram: int | str | None = AUTO
    pinned: Mapping[int, Sequence[int]] | None = None
    whole_layer: bool = False
    kernels: str = AUTO
    prefetch: PrefetchSettings = field(default_factory=PrefetchSettings)

    def checked(self, experts: Sequence[int]) -> Settings:
        """These settings for a model with `experts` in each MoE layer. Raises MoEColabError for the
        first wrong one."""
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
