"""The governor: it limits speculative loads by what they have gained so far.

Two rules. *Bytes*: guesses may waste a small share of the bytes that were needed. The nearer they
come to this share, the more probable a guess must be; how far a router's probabilities can be
trusted is learned for every layer. *Time*: in regular trials every other token is made without
guesses; if these are not slower, the prefetch is switched off. Knows bytes, seconds and
probabilities; knows no slots. The same events give the same answers, so a run in virtual time can
be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

Ranked = Sequence[tuple[int, float]]
"""Guesses for one layer: experts with the probability that they are needed, most likely first."""

SHARE = 0.07  # of the needed bytes, which guesses may waste
PURSE = 8  # experts: the largest budget for waste, and the first one
SUREST = 0.8  # the least probability of a guess when the budget is empty
MEMORY = 0.99  # weight of the older guesses of a layer at each new one
TRIAL = 64  # tokens, every other one without guesses
PAUSES = (256, 4096)  # tokens between two trials, at first and at most
SLOWEST = 8  # the slowest of so many tokens is left out: the system was busy


class Governor:
    """clock: seconds as compute sees them."""

    def __init__(self, clock: Callable[[], float]):
        self.on = True  # whether this forward makes guesses
        self.pays = True  # the result of the last trial
        self.found: tuple[float, float] | None = None  # seconds per token with and without guesses
        self.purse: float | None = None  # bytes that may be wasted; None at first
        self._trust: dict[int, tuple[float, float]] = {}  # by layer: right guesses, expected
        self._clock = clock
        self._pause = PAUSES[0]
        self._since = -TRIAL  # tokens since the last trial; below 0 during one
        self._trial = Trial()
        self._last: float | None = None  # when this token began
        self._loads = 0  # loads that this token needed

    # ------------------------------------------------------------------ bytes
    def needed(self, nbytes: int) -> None:
        """Note that an expert of `nbytes` was needed and not in a slot."""
        self._loads += 1
        self.purse = min(PURSE * nbytes, self._purse(nbytes) + SHARE * nbytes)

    def wasted(self, nbytes: int) -> None:
        """Note that `nbytes` of a wrong guess have moved."""
        if self.purse is not None:
            self.purse -= nbytes

    def judge(self, layer: int, ranked: Ranked, needed: Collection[int]) -> None:
        """Compare the guesses for a layer, loaded or not, with the experts that it needed."""
        came, hoped = self._trust.get(layer, (1.0, 1.0))
        self._trust[layer] = (
            MEMORY * came + sum(expert in needed for expert, _ in ranked),
            MEMORY * hoped + sum(probability for _, probability in ranked),
        )

    def allows(self, layer: int, nbytes: int, at_stake: int, probability: float) -> bool:
        """Whether a guess of `nbytes` may be made, besides `at_stake` bytes of other guesses."""
        purse = self._purse(nbytes)
        came, hoped = self._trust.get(layer, (1.0, 1.0))
        sure = probability * came / hoped if hoped else 0.0
        least = SUREST * (1 - purse / (PURSE * nbytes))
        return purse >= at_stake + nbytes and sure >= least

    def _purse(self, nbytes: int) -> float:
        return PURSE * nbytes if self.purse is None else self.purse

    # ------------------------------------------------------------------ time
    def forward(self, decode: bool) -> None:
        """Note that a forward has begun. Only decode steps after a decode step are timed."""
        now, before = self._clock(), self._last
        loads, self._loads = self._loads, 0
        self._last = now if decode else None
        if not decode:
            self.on = self.pays
            return
        if before is not None and self._since < 0:
            self._trial.note(self.on, now - before, loads)
        self._since += 1
        if self._since == 0:
            self._judge()
        elif self._since >= self._pause:
            self._since, self._trial = -TRIAL, Trial()
        self.on = self._since % 2 == 0 if self._since < 0 else self.pays

    def _judge(self) -> None:
        thought, self.found = self.pays, self._trial.means()
        self.pays = self.found[0] <= self.found[1]
        # After the same result twice, the next trial may be later.
        self._pause = min(2 * self._pause, PAUSES[1]) if thought == self.pays else PAUSES[0]

    def says(self) -> str:
        """The result of the last trial in words; "" before the first."""
        if self.found is None:
            return ""
        with_prefetch, without = (f"{1e3 * seconds:.1f} ms" for seconds in self.found)
        what = "saves time" if self.pays else "is off"
        return f"prefetch {what}: {with_prefetch} per token with it, {without} without"


class Trial:
    """Times of tokens with and without guesses. Some tokens need more loads than others, so the
    time of a load is fitted and removed before the two kinds are compared."""

    def __init__(self):
        self.tokens: tuple[list, list] = ([], [])  # without, with: (seconds, loads)

    def note(self, guessed: bool, seconds: float, loads: int) -> None:
        self.tokens[guessed].append((seconds, loads))

    def means(self) -> tuple[float, float]:
        """Seconds per token, with guesses and without, at the mean number of loads."""
        both = [*self.tokens[0], *self.tokens[1]]
        overall = mean([loads for _, loads in both])
        covariance = variance = 0.0
        for tokens in self.tokens:
            seconds, loads = (mean([token[i] for token in tokens]) for i in (0, 1))
            covariance += sum((s - seconds) * (n - loads) for s, n in tokens)
            variance += sum((n - loads) ** 2 for _, n in tokens)
        slope = covariance / variance if variance else 0.0
        without, guessing = (
            mean_of_most([s - slope * (n - overall) for s, n in tokens]) for tokens in self.tokens
        )
        return guessing, without


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def mean_of_most(times: list[float]) -> float:
    """The mean without the slowest 1 in SLOWEST."""
    return mean(sorted(times)[: len(times) - len(times) // SLOWEST])
