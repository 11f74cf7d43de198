"""Several threads at once: settings that change while a model generates; models that are loaded,
used and closed together.

Knows the handle of a model; knows no files and no counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import moe_colab as mc

from ..cache.policies import POLICIES
from ..cache.settings import FARTHEST, SOURCES, PrefetchSettings
from ..offload.handle import Offload
from .toys import make_checkpoint, make_store, tokens
from .trials import Aside, Kind, Trial, Wrong


# ---------------------------------------------------------------------- settings
def some_slots(handle: Offload, dice: Random) -> int | list[int]:
    each = [dice.randint(1, experts) for experts in handle.experts]
    return dice.choice((each, min(each)))


def some_prefetch(handle: Offload, dice: Random) -> PrefetchSettings:
    names = ("speculate", "lookahead", "guess_from", "guess_threshold", "stand_aside")
    return PrefetchSettings(**{name: SETTINGS[name](handle, dice) for name in names})


SETTINGS: dict[str, Callable[[Offload, Random], Any]] = {
    "slots": some_slots,
    "policy": lambda handle, dice: dice.choice(list(POLICIES)),
    "speculate": lambda handle, dice: dice.randint(0, 4),
    "lookahead": lambda handle, dice: dice.randint(1, FARTHEST),
    "guess_from": lambda handle, dice: dice.choice(SOURCES),
    "guess_threshold": lambda handle, dice: dice.choice((0.0, dice.random())),
    "stand_aside": lambda handle, dice: dice.random() < 0.5,
    "prefetch": some_prefetch,
}


def change_all(handle: Offload, dice: Random, wait: float) -> None:
    """Set every setting, ask every question, in any order, with up to `wait` seconds between."""
    calls: list[Callable[[], Any]] = [
        *(partial(change, handle, name, dice) for name in SETTINGS),
        *(handle.reset_stats, handle.stats, handle.peek, handle.memory),
        *(partial(handle.where, 0, dice.randrange(handle.experts[0])), partial(repr, handle)),
    ]
    dice.shuffle(calls)
    for call in calls:
        time.sleep(dice.uniform(0, wait))
        call()


def change(handle: Offload, name: str, dice: Random) -> None:
    setattr(handle, name, SETTINGS[name](handle, dice))


def live_changes(folder: Path) -> Trial:
    """Every setting is changed while a model generates: its tokens stay the same."""
    store = make_store(make_checkpoint("mixtral", folder / "model"), folder / "store")
    model, _ = mc.load(store, progress=False)
    with model.offload:
        expected = tokens(model)

    def trial(dice: Random) -> None:
        model, _ = mc.load(store, progress=False, slots=dice.randint(1, 8))
        with model.offload as handle:
            aside = Aside(partial(change_all, handle, Random(dice.random()), 0.003))
            going = True
            while going:
                going = aside.is_alive()
                if (got := tokens(model)) != expected:
                    raise Wrong(f"{got} instead of {expected} with {handle!r}")
            aside.end()

    return trial


# ---------------------------------------------------------------------- threads
def threads(folder: Path) -> Trial:
    """One model generates in two threads, while a third changes it, a fourth closes it, and a fifth
    loads another one."""
    checkpoint = make_checkpoint("mixtral", folder / "model")
    store = make_store(checkpoint, folder / "store")
    model, _ = mc.load(store, progress=False)
    with model.offload:
        expected = tokens(model)

    def speak(model: Any) -> None:
        if (got := tokens(model)) != expected:
            raise Wrong(f"{got} instead of {expected}")

    def close(model: Any, seconds: float) -> None:
        time.sleep(seconds)
        model.offload.close()

    def load(source: Path, slots: int) -> None:
        try:
            model, _ = mc.load(source, progress=False, slots=slots)
            with model.offload:
                speak(model)
        except mc.MoEColabError as error:
            raise Wrong(f"a model of one's own is refused: {error}") from error

    def trial(dice: Random) -> None:
        model, _ = mc.load(store, progress=False, slots=dice.randint(1, 8))
        calls = [
            *[partial(speak, model)] * 2,
            partial(change_all, model.offload, Random(dice.random()), 0.003),
            partial(close, model, dice.uniform(0, 0.05)),
            partial(load, dice.choice((store, checkpoint)), dice.randint(1, 8)),
        ]
        dice.shuffle(calls)
        running, refused = [Aside(call) for call in calls], None
        for thread in running:
            try:
                thread.end()
            except mc.MoEColabError as error:
                refused = error
        try:
            speak(model)
        except mc.MoEColabError:
            pass
        else:
            raise Wrong("a closed model generates")
        if refused:
            raise refused

    return trial


KINDS = [
    Kind("live changes", "live changes", 2_000, live_changes, refusable=False),
    Kind("threads", "threads", 1_000, threads),
]
