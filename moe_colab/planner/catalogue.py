"""The catalogue of models to begin with: their sizes, what they need, how long the first load
takes.

Knows their names; every number is read from the headers of the weights, or is marked as an
estimate. Knows no GPU: the preflight card decides what fits this machine.
"""

from __future__ import annotations

import contextlib
import glob
import os
import threading
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    NotASafetensorsRepoError,
    RepositoryNotFoundError,
)

from ..errors import MoEColabError
from ..machine.folders import cache_folder, shipped_model, store_name
from ..machine.memory import VRAM_RESERVE
from ..store.manifest import NAME as MANIFEST
from ..store.manifest import Manifest
from ..units import human
from .access import gated
from .card import card, table
from .sizes import Sizes, downloaded, folder_sizes, hub_sizes, progress_bars, store_sizes
from .sources import SHIPPED, source_of

CATALOGUE = {
    None: ("the small model", "comes with moe_colab; answers at once, knows little"),
    "ibm-granite/granite-3.1-1b-a400m-instruct": ("Granite 3.1 1B", "a real chat model, small"),
    "allenai/OLMoE-1B-7B-0924-Instruct": ("OLMoE 1B-7B", "a real chat model, 64 experts per layer"),
}
DOWNLOAD_SPEED, PACKING_SPEED = 50e6, 150e6  # bytes a second, assumed, not measured
ASSUMED = (
    f"The first wait is an estimate: {DOWNLOAD_SPEED / 1e6:.0f} MB/s of download and "
    f"{PACKING_SPEED / 1e6:.0f} MB/s of packing are assumed. Later the packed store is used."
)
MEMORY = (
    f"Memory is that of the GPU, where another {human(VRAM_RESERVE)} must stay free. "
    "Without a GPU, it is that of the computer."
)
_known: dict[tuple[str | None, str], Sizes] = {}  # by endpoint and name


@dataclass(frozen=True)
class ModelInfo:
    """One model of the list. `source` is the argument for `mc.load`; `sizes` is None where it is
    not known, and `problem` says why. `here`: nothing must be downloaded; `packed`: the cache
    folder has a store of it."""

    source: str | None
    title: str
    note: str
    sizes: Sizes | None = None
    problem: str = ""
    here: bool = False
    packed: bool = False

    @property
    def download_bytes(self) -> int | None:
        """Bytes that must be downloaded."""
        return self.sizes and (0 if self.here or self.packed else self.sizes.download)

    @property
    def disk_bytes(self) -> int | None:
        """Bytes needed on the disk at most: the store, and the two largest files of a
        download, which are deleted after packing."""
        if self.sizes is None or self.packed:
            return self.sizes and 0
        return self.sizes.store() + (0 if self.here else self.sizes.shards)

    @property
    def memory_bytes(self) -> int | None:
        """Bytes needed at least on the GPU (in host memory without one): everything but the
        experts, one slot in every layer, and the spares."""
        return self.sizes and self.sizes.memory.least()

    @property
    def wait_seconds(self) -> float | None:
        """An estimate of the time until it can be used: download and packing."""
        if self.sizes is None:
            return None
        packing = 0 if self.packed else self.sizes.store()
        return self.download_bytes / DOWNLOAD_SPEED + packing / PACKING_SPEED

    def wait(self) -> str:
        """`wait_seconds` in words."""
        if self.wait_seconds is None:
            return "?"
        return "none: packed already" if self.packed else duration(self.wait_seconds)

    @property
    def choice(self) -> str:
        """Its name in a form field; `source_of` is the inverse."""
        return self.source or SHIPPED

    def load_with(self) -> str:
        """The code that loads it."""
        return "mc.load()" if self.source is None else f'mc.load("{self.source}")'


class ModelList(tuple[ModelInfo, ...]):
    """A sequence of ModelInfo that displays as a table, in text and in a notebook."""

    def __repr__(self) -> str:
        lines = []
        for row in self:
            facts = (
                f"size unknown: {row.problem}"
                if row.problem
                else "; ".join(f"{name} {value}" for name, value in facts_of(row))
            )
            lines += [f"{row.load_with()}  # {row.title}: {row.note}", f"    {facts}"]
        return "\n".join([*lines, MEMORY, ASSUMED])

    def _repr_html_(self) -> str:
        heads = ("model", "download", "disk", "memory, at least", "experts", "first wait")
        body = []
        for row in self:
            name = (
                f"<b>{escape(row.title)}</b><small>{escape(row.note)}</small>"
                f"<code>{escape(row.load_with())}</code>"
            )
            if row.sizes is None:
                body.append([name, (escape(f"size unknown: {row.problem}"), len(heads) - 1)])
            else:
                body.append([name, *(escape(value) for _, value in facts_of(row))])
        return card("Which model", table(heads, body), f"{MEMORY} {ASSUMED}")


def facts_of(row: ModelInfo) -> list[tuple[str, str]]:
    """(name, value) of the columns, for a model whose sizes are known."""
    sizes = row.sizes
    kind = f"{sizes.layers} layers × {sizes.experts_per_layer}"
    return [
        ("download", human(row.download_bytes) if row.download_bytes else "none"),
        ("disk", human(row.disk_bytes) if row.disk_bytes else "none"),
        ("memory at least", human(row.memory_bytes)),
        ("experts", f"{kind}, {human(sizes.experts)} of {human(sizes.download)}"),
        ("first wait", row.wait()),
    ]


def duration(seconds: float) -> str:
    """Seconds to read: 95 is "~2 min"."""
    if seconds < 1:
        return "a second"
    if seconds < 60:
        return f"~{seconds:.0f} s"
    return f"~{round(seconds / 60)} min"


def models(*more: str, timeout: float = 10.0, refresh: bool = False) -> ModelList:
    """The models to begin with, and `more` of the hub ("org/name", or the address of its page) or
    on this machine (checkpoint folders). Sizes are read from the headers of the weights, over the
    network for models that are not here. That takes at most `timeout` seconds altogether; a row
    without an answer says so. Only headers and configuration are fetched; `refresh` fetches them
    again. Raises MoEColabError for an address that is not a model's."""
    sources = list(dict.fromkeys([*CATALOGUE, *map(source_of, more)]))
    rows: list[ModelInfo | None] = [None] * len(sources)

    def look_up(number: int) -> None:
        rows[number] = info(sources[number], refresh)

    # Daemon threads, not a pool: one that hangs must not block the list or the end of the program.
    threads = [
        threading.Thread(target=look_up, args=(number,), daemon=True)
        for number in range(len(sources))
    ]
    end = time.monotonic() + timeout
    with progress_bars(False):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
    return ModelList(
        [row or describe(source, UNREACHABLE) for source, row in zip(sources, rows, strict=True)]
    )


# ---------------------------------------------------------------------- one row
UNREACHABLE = "the hub cannot be reached"


def describe(source: str | None, problem: str = "", **facts) -> ModelInfo:
    """A row with the catalogue's title and note."""
    title, note = CATALOGUE.get(source, (source, "your choice"))
    return ModelInfo(source, title, note, problem=problem, **facts)


def packed_sizes(name: str) -> Sizes | None:
    """The sizes of a finished store in the cache folder that was made of a checkpoint of this name,
    if there is one. (Loading checks whether the checkpoint has changed since.)"""
    for path in cache_folder().glob(f"{glob.escape(store_name(name))}-*/{MANIFEST}"):
        with contextlib.suppress(MoEColabError):  # damaged, or old: packed again by loading
            manifest = Manifest.load(path.parent)
            if manifest.source["id"] == name and manifest.layers:
                return store_sizes(manifest)
    return None


def info(source: str | None, refresh: bool) -> ModelInfo:
    """The row of one model. Raises nothing: the row says what went wrong, so that the others are
    shown."""
    try:
        folder = shipped_model() if source is None else Path(source).expanduser()
        if source is None or folder.is_dir():
            name = folder.resolve().name
        else:
            folder, name = downloaded(source), source
        packed = packed_sizes(name)
        if folder is not None:
            sizes = folder_sizes(folder)
            return describe(source, sizes=sizes, here=True, packed=packed is not None)
        if packed is not None:
            return describe(source, sizes=packed, packed=True)
        key = (os.environ.get("HF_ENDPOINT"), source)
        if refresh or key not in _known:
            if constants.HF_HUB_OFFLINE:
                return describe(source, "not here, and offline mode is on (HF_HUB_OFFLINE)")
            _known[key] = hub_sizes(source)
        return describe(source, sizes=_known[key])
    except GatedRepoError as error:
        problem = gated(source, error)
    except (RepositoryNotFoundError, HFValidationError):
        problem = "there is no such folder, and no such model on the hub that you can access"
    except NotASafetensorsRepoError:
        problem = "it has no safetensors weights, the only ones that moe_colab can read"
    except MoEColabError as error:
        problem = str(error)
    except Exception as error:  # the hub has many errors, which differ between versions
        return describe(source, f"{UNREACHABLE} ({type(error).__name__})")
    return describe(source, problem)
