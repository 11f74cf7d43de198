"""Shards: the safetensors files of a checkpoint, each delivered when it is needed.

Knows two kinds. The files of a folder are there. Those of a model on the hub are downloaded one
after the other, ahead of the work, and deleted when no later work needs them, so that at most two
are on the disk. Does not know what the work is, nor how a file is downloaded.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from fnmatch import fnmatchcase
from itertools import groupby, pairwise
from pathlib import Path
from typing import Protocol, TypeVar

from tqdm.auto import tqdm

from ..errors import MoEColabError
from ..files import read_errors, read_file
from ..store.safetensors import INDEX, SINGLE, TensorEntry, read_header, weight_files
from .digests import check_cached, stamp
from .hub import PART, Snapshot, announced, download
from .hub_errors import hub_errors
from .tensors import TORCH_DTYPES

OTHER_WEIGHTS = ("pytorch_model*.bin", "*.gguf", "*.pth", "*.h5", "*.pt", "*.safetensors")
HEADERS_AT_ONCE = 8
MAX_FILES = 2  # on the disk at once, unless a job needs more; the one that arrives counts
# Names of tensors in GPTQ, AWQ, MXFP4, fp8, compressed-tensors, bitsandbytes and HQQ checkpoints.
CODES = re.compile(
    r"\.(qweight|qzeros|weight_scale_inv|weight_packed|SCB|W_q)$|_(blocks|scales)$"
    r"|\.weight\.(absmax|quant_)"
)
WHOLE_NUMBERS = ("U8", "I8", "I16", "I32")


class Reader(Protocol):
    """A piece of work that reads weights, such as packing one expert."""

    @property
    def files(self) -> frozenset[str]:
        """The names of the files that it reads."""


R = TypeVar("R", bound=Reader)


class Shards(Protocol):
    """The safetensors files of a checkpoint."""

    def entries(self) -> dict[str, TensorEntry]:
        """Every tensor of every file by name, before any download. Path and bytes of a tensor are
        right once its file was delivered, in the same dictionary."""

    def fingerprint(self) -> str:
        """A text that changes when the weights do. Reads a few pages of them."""

    def extra_disk(self) -> int:
        """Bytes of disk that the delivery takes at most, until it ends."""

    def deliver(self, jobs: Sequence[R], folder: Path) -> Iterator[R]:
        """Yields each job once, in another order, when all its files can be read; it is done when
        the next one is asked for. `folder`: for downloads; it is removed at the end, and files
        that a stopped or killed delivery has left there are used by the next. Close the iterator,
        which may have a thread."""


class FolderShards:
    """The files of a checkpoint folder on this machine."""

    def __init__(self, folder: Path):
        self.folder = folder

    def entries(self) -> dict[str, TensorEntry]:
        if not any(os.path.lexists(self.folder / name) for name in (INDEX, SINGLE)):
            with read_errors(self.folder):
                names = sorted(os.listdir(self.folder))
            other = [name for p in OTHER_WEIGHTS for name in names if fnmatchcase(name, p)]
            weights = f"only {other[0]}" if other else "none"
            raise MoEColabError(
                f"{self.folder} needs its weights as {SINGLE} or in shards with {INDEX}; it has "
                f"{weights}."
            )
        entries = {}
        for file in weight_files(self.folder):
            entries.update(read_header(self.folder / file))
        return entries

    def fingerprint(self) -> str:
        names = weight_files(self.folder)
        lines = [f"{name} {stamp(self.folder / name)}\n" for name in names]
        if os.path.isfile(self.folder / INDEX):
            lines.append(hashlib.sha256(read_file(self.folder / INDEX)).hexdigest())
        return "".join(lines)

    def extra_disk(self) -> int:
        return 0

    def deliver(self, jobs: Sequence[R], folder: Path) -> Iterator[R]:
        yield from sound(jobs, lambda name: self.folder / name)


class HubShards:
    """The files of a model on the hub. Those in the hub's cache folder are read there and never
    deleted. `away`: the names of the others, which are downloaded."""

    def __init__(self, snapshot: Snapshot, progress: bool = True):
        self.snapshot, self.progress = snapshot, progress
        cached = {name: snapshot.cached(name) for name in sorted(snapshot.weights)}
        self.cached = {name: path for name, path in cached.items() if path}
        self.away = [name for name, path in cached.items() if not path]
        self.headers: dict[str, dict[str, TensorEntry]] = {}
        self.known: dict[str, TensorEntry] = {}

    def entries(self) -> dict[str, TensorEntry]:
        if not self.known:
            with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
                headers = pool.map(lambda name: announced(self.snapshot, name), self.away)
                self.headers = dict(zip(self.away, headers, strict=True))
            headers = self.headers | {n: read_header(path) for n, path in self.cached.items()}
            for name in sorted(headers):
                self.known |= headers[name]
        return self.known

    def fingerprint(self) -> str:
        return self.snapshot.revision

    def extra_disk(self) -> int:
        return sum(sorted(self.snapshot.weights[name] for name in self.away)[-MAX_FILES:])

    def deliver(self, jobs: Sequence[R], folder: Path) -> Iterator[R]:
        self.entries()
        groups, place, arriving = self._groups(jobs), folder / self.snapshot.revision, {}
        on_disk, size = self._leftovers(folder), self.snapshot.weights
        plan = files_on_disk([needs for needs, _ in groups], on_disk)
        bar = tqdm(
            desc=f"downloading {self.snapshot.repo_id}",
            total=sum(
                size[n] for had, has in pairwise([set(), *plan]) for n in has if n not in had
            ),
            disable=not self.progress or not any(plan),
            **{"unit": "B", "unit_scale": True, "leave": False},
        )
        stop, pool = threading.Event(), ThreadPoolExecutor(1, "shards")
        try:
            for files, (needs, group) in zip(plan, groups, strict=True):
                for name in on_disk.difference(files):
                    if future := arriving.pop(name, None):
                        future.cancel() or future.result()
                    remove(place, name)
                for name in files:
                    if name not in arriving:
                        arriving[name] = pool.submit(self._fetch, name, place, stop, bar.update)
                on_disk = set(files)
                for name in needs:
                    arriving[name].result()
                yield from sound(group, self.cached.get)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            # A running download stops at its next piece; it writes nothing after that.
            wait([one for one in arriving.values() if not one.cancelled()], timeout=10)
            bar.close()

    def _groups(self, jobs: Sequence[R]) -> list[tuple[list[str], list[R]]]:
        """(files to download, jobs that need exactly these). Sorted by the last file that a group
        needs, then by the earlier ones, so that those can be deleted soon."""

        def needs(job: R) -> list[str]:
            return sorted(job.files.intersection(self.away))

        ordered = sorted(jobs, key=lambda job: (needs(job)[-1:], needs(job)))
        return [(names, list(group)) for names, group in groupby(ordered, key=needs)]

    def _leftovers(self, folder: Path) -> set[str]:
        """The names of the files, complete or partial, that an earlier delivery of this revision
        has left; those of other revisions are deleted."""
        with hub_errors(self.snapshot.repo_id, self.snapshot.revision, folder):
            for place in folder.iterdir() if os.path.isdir(folder) else ():
                if place.name != self.snapshot.revision:
                    shutil.rmtree(place)
        return {path.name.removesuffix(PART) for path in folder.glob("*/*")}

    def _fetch(
        self, name: str, place: Path, stop: threading.Event, arrived: Callable[[int], object]
    ) -> None:
        """Download one file, check its header against the announced one, and note the places of its
        tensors."""
        path = download(self.snapshot, name, place, stop, arrived)
        try:
            entries = read_header(path)
            if signature(entries) != signature(self.headers[name]):
                raise MoEColabError(
                    f"{name} of {self.snapshot.repo_id} came with other tensors than the hub has "
                    "announced: try again later."
                )
        except MoEColabError:
            path.unlink()
            raise
        for key, entry in entries.items():
            if self.known[key].path.name == name:
                self.known[key] = entry


def sound(jobs: Iterable[R], place: Callable[[str], Path | None]) -> Iterator[R]:
    """The jobs; before each one its files are compared with the hub's sha256, once each, if they
    are from the hub. place: the path of such a file by its name."""
    checked: set[str] = set()
    for job in jobs:
        for name in sorted(job.files - checked):
            if path := place(name):
                check_cached(path)
        checked |= job.files
        yield job


def files_on_disk(needs: Sequence[Collection[str]], on_disk: set[str]) -> list[list[str]]:
    """The files to have, or to download in this order, during each group of jobs that `needs` some,
    given those that are `on_disk` at the start. A group has what it needs; what later groups need
    stays or is downloaded ahead, the soonest needed first, as long as MAX_FILES allow."""
    plan = []
    for number, names in enumerate(needs):
        later = dict.fromkeys(name for group in needs[number:] for name in sorted(group))
        files = sorted(later, key=lambda name: (name not in names, name not in on_disk))
        plan.append(files[: max(MAX_FILES, len(names))])
        on_disk = set(plan[-1])
    return plan


def signature(entries: Mapping[str, TensorEntry]) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Dtype, shape and bytes of each tensor, wherever its file is."""
    return {key: (entry.dtype, entry.shape, entry.nbytes) for key, entry in entries.items()}


def remove(place: Path, name: str) -> None:
    """Delete a file, complete or partial."""
    for path in (place / name, place / (name + PART)):
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------------- quantized weights
def refuse_quantized(entries: Mapping[str, TensorEntry]) -> None:
    """Raises MoEColabError where a tensor holds codes instead of numbers, whatever config.json
    says."""
    for name, entry in entries.items():
        if entry.dtype not in TORCH_DTYPES:
            raise MoEColabError(
                f"{entry.path} holds {name} as {entry.dtype}, which moe_colab cannot read: use the "
                "original weights."
            )
        is_weight = name.endswith("weight") or ".experts." in name
        if is_weight and entry.dtype in WHOLE_NUMBERS:
            raise MoEColabError(
                f"{name} is kept in {TORCH_DTYPES[entry.dtype]}, as codes that moe_colab cannot "
                "read: use the original weights."
            )
        if CODES.search(name):
            raise MoEColabError(
                f"{name} belongs to quantized weights, which moe_colab cannot read: use the "
                "original weights."
            )
