"""Work that can be disturbed: packing, quantizing, loading, saving a trace, generating.

Knows the work and its right result; knows nothing of what disturbs it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import moe_colab as mc

from .toys import contents, logits, make_checkpoint, make_store, quantize, same, tokens
from .trials import Wrong


@dataclass(frozen=True)
class Work:
    """Work that can be disturbed. do: does what is missing, and returns the result. right: whether
    a result is the right one. clear: lets the next `do` begin at the beginning. peek: what another
    program sees when it looks; raises Wrong where that is neither the result nor a refusal."""

    do: Callable[[], Any]
    right: Callable[[Any], bool]
    clear: Callable[[], None]
    peek: Callable[[], None] = lambda: None

    def finish(self) -> None:
        """Do it, undisturbed, and raise Wrong unless the result is right."""
        try:
            result = self.do()
        except mc.MoEColabError as error:
            raise Wrong(f"afterwards it is refused: {error}") from error
        if not self.right(result):
            raise Wrong(f"another result: {str(result)[:100]}")


def of_store(make: Callable[[Path, Path], Path], folder: Path) -> Work:
    """A store that is made from a checkpoint."""
    checkpoint, store = make_checkpoint("mixtral", folder / "model"), folder / "store"
    whole = contents(make(checkpoint, store))
    expected = logits(store)

    def peek() -> None:
        with contextlib.suppress(mc.MoEColabError):
            if not same(logits(store), expected):
                raise Wrong("a part of a store gives another result")

    return Work(
        lambda: contents(make(checkpoint, store)),
        whole.__eq__,
        partial(shutil.rmtree, store, ignore_errors=True),
        peek,
    )


def packing(folder: Path) -> Work:
    return of_store(make_store, folder)


def quantizing(folder: Path) -> Work:
    return of_store(quantize, folder)


def loading(folder: Path) -> Work:
    """A checkpoint that is loaded by way of the cache folder."""
    checkpoint = make_checkpoint("mixtral", folder / "model")
    expected, cache = logits(checkpoint), Path(os.environ["MOE_COLAB_CACHE"])
    clear = partial(shutil.rmtree, cache, ignore_errors=True)
    return Work(partial(logits, checkpoint), partial(same, expected), clear)


def saving(folder: Path) -> Work:
    """A trace that is saved in the place of another one."""
    path, whole = folder / "trace.npz", mc.Trace.load()
    old, new = whole.between(0, 2), whole.between(0, 5)

    def read() -> str:
        trace = mc.Trace.load(path)
        return repr(trace) + trace.frame().to_csv()

    texts = [(trace.save(path), read())[1] for trace in (old, new)]

    def do() -> str:
        new.save(path)
        return read()

    def peek() -> None:
        try:
            seen = read()
        except mc.MoEColabError as error:
            raise Wrong(f"the old trace is lost: {error}") from error
        if seen not in texts:
            raise Wrong("neither the old trace nor the new one")

    return Work(do, texts[1].__eq__, lambda: (old.save(path), None)[1], peek)


def generating(folder: Path) -> Work:
    """A model that generates: the same one again after the disturbance."""
    store = make_store(make_checkpoint("mixtral", folder / "model"), folder / "store")
    models: list[Any] = []

    def clear() -> None:
        if models:
            models.pop().offload.close()
        models.append(mc.load(store, slots=3, progress=False)[0])

    clear()
    expected = tokens(models[0])
    return Work(lambda: tokens(models[0]), expected.__eq__, clear)


WORKS = {work.__name__: work for work in (packing, quantizing, loading, saving, generating)}
