"""Settings of caches and prefetch, checked against the model.

Knows how many experts each layer has; knows no memory and no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from ..errors import MoEColabError

SOURCES = ("router_input", "layer_output")  # of guesses: the values of `guess_from`
FARTHEST = 2  # layers ahead
SPECULATE = 2  # experts prefetched for each layer, by default


@dataclass(frozen=True)
class PrefetchSettings:
    """How the experts of later layers are prefetched (paper, section 3.2).

    speculate: experts of each layer that are guessed and loaded ahead of time, 0 for none.
    lookahead: how many layers ahead, 1 or 2.
    guess_from: the residual stream at the router ("router_input": earlier) or after the layer
        ("layer_output": more often right).
    guess_threshold: the least probability, 0 to 1, at which an expert is prefetched.
    stand_aside: whether the governor may prefetch less, or nothing, where that saves no time.
    """

    speculate: int = SPECULATE
    lookahead: int = 1
    guess_from: str = SOURCES[0]
    guess_threshold: float = 0.0
    stand_aside: bool = True

    def __post_init__(self) -> None:
        """Raises MoEColabError for the first wrong setting."""
        n, ahead, odds = self.speculate, self.lookahead, self.guess_threshold
        likely = isinstance(odds, Real) and 0 <= odds <= 1
        rules = {
            "speculate": (is_whole(n) and n >= 0, "a number of guesses per layer, 0 for none"),
            "lookahead": (is_whole(ahead) and 1 <= ahead <= FARTHEST, f"1 to {FARTHEST} layers"),
            "guess_from": (self.guess_from in SOURCES, " or ".join(map(repr, SOURCES))),
            "guess_threshold": (likely, "a probability from 0 to 1"),
            "stand_aside": (isinstance(self.stand_aside, bool), "True or False"),
        }
        for name, (right, rule) in rules.items():
            if not right:
                raise MoEColabError(f"{name} must be {rule}, not {getattr(self, name)!r}.")


def is_whole(value: object) -> bool:
    """Whether a value is a whole number; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_slots(slots: int | Sequence[int], experts: Sequence[int]) -> list[int]:
    """Slots as one number per layer. experts: of each layer. Raises MoEColabError for 0, for more
    than the layer has experts, and for a wrong length."""
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
    """The experts that `resident` names, by layer, ascending. experts: how many each layer has.
    Raises MoEColabError for an expert that does not exist."""
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
