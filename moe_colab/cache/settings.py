"""What a user may choose when loading, checked against the model: one clear error, before any work.

Knows how many experts each layer has; knows no memory and no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from ..errors import MoEColabError

SOURCES = ("router_input", "layer_output")
FARTHEST = 2  # layers ahead
SPECULATE = 2  # guesses a layer, unless something else is asked for


@dataclass(frozen=True)
class PrefetchSettings:
    """How the experts of the next layers are prefetched (paper, section 3.2).

    speculate: experts of each layer that are guessed and loaded ahead of time, 0 for none.
    lookahead: how many layers ahead, 1 or 2. guess_from: the residual stream at the router
    ("router_input", earlier) or after the layer ("layer_output", more often right).
    guess_threshold: a guess that the router thinks less probable is not made. stand_aside: let the
    governor prefetch less, or nothing, where it does not pay.
    """

    speculate: int = SPECULATE
    lookahead: int = 1
    guess_from: str = SOURCES[0]
    guess_threshold: float = 0.0
    stand_aside: bool = True

    def __post_init__(self) -> None:
        """Raises MoEColabError."""
        if not is_whole(self.speculate) or self.speculate < 0:
            raise MoEColabError(
                "speculate must be a number of guesses a layer, 0 for none, not "
                f"{self.speculate!r}."
            )
        if not is_whole(self.lookahead) or not 1 <= self.lookahead <= FARTHEST:
            raise MoEColabError(
                f"lookahead must be 1 to {FARTHEST} layers, not {self.lookahead!r}."
            )
        if self.guess_from not in SOURCES:
            raise MoEColabError(
                f"guess_from must be {' or '.join(map(repr, SOURCES))}, not {self.guess_from!r}."
            )
        if not isinstance(self.guess_threshold, Real) or not 0 <= self.guess_threshold <= 1:
            raise MoEColabError(
                f"guess_threshold must be a probability from 0 to 1, not {self.guess_threshold!r}."
            )
        if not isinstance(self.stand_aside, bool):
            raise MoEColabError(f"stand_aside must be True or False, not {self.stand_aside!r}.")


def is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


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
        if not is_whole(n) or not 1 <= n <= most:
            raise MoEColabError(
                f"slots must be 1 to {most}, the experts of MoE layer {number}, not {n!r}."
            )
    return [int(n) for n in per_layer]


def check_pinned(
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
