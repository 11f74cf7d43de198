"""The governor: how much speculation there may be, from what it has brought so far.

Two rules. *Bytes*: guesses may waste a small share of the bytes that were needed; the nearer they
come to it, the surer a guess must be. *Time*: now and then, every other token is made without
guesses; where these tokens are not slower, speculation stands aside. Knows bytes, seconds and
probabilities; knows no experts. The same events give the same answers, so that a run in virtual
time can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable

SHARE = 0.07  # of the bytes that were needed: what guesses may waste
PURSE = 8  # experts: the most that can be saved up to be wasted, and what a model begins with
SUREST = 0.8  # what the router must think of a guess when the purse is empty
TRIAL = 64  # tokens, every other one without guesses
PAUSES = (256, 4096)  # tokens from one trial to the next, at first and at most
SLOWEST = 8  # one token in so many is left out on either side: the system was busy elsewhere


class Governor:
    """clock: seconds as compute sees them."""

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.on = True  # are guesses made in this forward?
        self.pays = True  # what the last trial has found
        self.found: tuple[float, float] | None = None  # seconds a token with and without guesses
        self.purse: float | None = None  # bytes; None: nothing was moved yet
        self._pause = PAUSES[0]
        self._since = -TRIAL  # tokens since the last trial; below 0 in one
        self._times: tuple[list[float], list[float]] = ([], [])  # with guesses, without
        self._last: float | None = None  # when the last token was begun, if the next goes on

    # ------------------------------------------------------------------ bytes
    def needed(self, nbytes: int) -> None:
        """An expert of so many bytes was needed and not there."""
        self.purse = min(self._full(nbytes), self._purse(nbytes) + SHARE * nbytes)

    def wasted(self, nbytes: int) -> None:
        """So many bytes of a wrong guess have moved."""
        if self.purse is not None:
            self.purse -= nbytes

    def allows(self, nbytes: int, at_stake: int, probability: float) -> bool:
        """May a guess of so many bytes be made, with `at_stake` bytes of others not yet judged?"""
        purse = self._purse(nbytes)
        enough = purse >= at_stake + nbytes
        return enough and probability >= SUREST * (1 - purse / self._full(nbytes))

    def _purse(self, nbytes: int) -> float:
        return self._full(nbytes) if self.purse is None else self.purse

    @staticmethod
    def _full(nbytes: int) -> float:
        return PURSE * nbytes

    # ------------------------------------------------------------------ time
    def forward(self, decode: bool) -> None:
        """The first router of a forward has spoken. Only tokens that follow a token are timed."""
        now, before = self.clock(), self._last
        self._last = now if decode else None
        if not decode:
            self.on = self.pays
            return
        if before is not None and self._since < 0:
            self._times[0 if self.on else 1].append(now - before)
        self._since += 1
        if self._since == 0:
            self._judge()
        elif self._since >= self._pause:
            self._since, self._times = -TRIAL, ([], [])
        self.on = self._since % 2 == 0 if self._since < 0 else self.pays

    def _judge(self) -> None:
        speculating, alone = (mean_of_most(times) for times in self._times)
        thought, self.pays = self.pays, speculating <= alone
        self.found = (speculating, alone)
        # What is found twice need not be asked again so soon.
        self._pause = min(2 * self._pause, PAUSES[1]) if thought == self.pays else PAUSES[0]

    def says(self) -> str:
        """For a reader: nothing while there is nothing to say."""
        if self.found is None:
            return ""
        speculating, alone = (f"{1e3 * seconds:.1f} ms" for seconds in self.found)
        what = "pays" if self.pays else "stands aside"
        return f"speculation {what}: {speculating} a token with it, {alone} without"


def mean_of_most(times: list[float]) -> float:
    """The mean without the slowest few."""
    kept = sorted(times)[: len(times) - len(times) // SLOWEST] or [0.0]
    return sum(kept) / len(kept)
