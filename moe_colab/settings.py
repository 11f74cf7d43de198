"""What a user may choose when loading, checked against the model: one clear error, before any work.

Knows how many experts each layer has; knows no memory and no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral

from .cache import PolicySpec, make_policy
from .errors import MoEColabError
from .hardware import parse_bytes

AUTO, PLAIN = "auto", "plain"


@dataclass(frozen=True)
class Settings:
    """As given to `mc.load`, whose docstring says what each means; after `checked`, `slots` is one
    number per layer or "auto", `vram` and `ram` are bytes or None, `resident` is a tuple per
    layer."""

    slots: int | Sequence[int] | str = AUTO
    policy: PolicySpec = "lru"
    vram: int | str | None = AUTO
    ram: int | str | None = AUTO
    resident: Mapping[int, Sequence[int]] | None = None
    whole_layer: bool = False
    kernels: str = AUTO

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
            resident=check_resident(self.resident or {}, experts),
        )


def check_slots(slots: int | Sequence[int], experts: Sequence[int]) -> list[int]:
    """One number per layer. Raises MoEColabError for 0, for more than the layer has experts, for a
    wrong length."""
    if isinstance(slots, str) or not isinstance(slots, (Integral, Iterable)):
        raise MoEColabError(f"slots must be a number or a number per layer, not {slots!r}.")
    per_layer = [slots] * len(experts) if isinstance(slots, Integral) else list(slots)
    if len(per_layer) != len(experts):
        raise MoEColabError(
            f"{len(per_layer)} numbers of slots were given for {len(experts)} MoE layers."
        )
    for number, (n, most) in enumerate(zip(per_layer, experts, strict=True)):
        if isinstance(n, bool) or not isinstance(n, Integral) or not 1 <= n <= most:
            raise MoEColabError(
                f"slots must be 1 to {most}, the experts of MoE layer {number}, not {n!r}."
            )
    return [int(n) for n in per_layer]


def check_resident(
    resident: Mapping[int, Sequence[int]], experts: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """The named experts of each layer, ascending. Raises MoEColabError for one that is not
    there."""
    try:
        named = {number: sorted(set(chosen)) for number, chosen in resident.items()}
    except (AttributeError, TypeError) as error:
        raise MoEColabError(
            f"resident must give each layer a list of its experts, as {{0: [3, 5]}}, not "
            f"{resident!r}."
        ) from error
    for number, chosen in named.items():
        if number not in range(len(experts)) or any(
            not isinstance(e, int) or e not in range(experts[number]) for e in chosen
        ):
            raise MoEColabError(
                f"resident names experts {chosen} of MoE layer {number}, which do not exist."
            )
    return tuple(tuple(named.get(number, ())) for number in range(len(experts)))
