"""The safetensors files of a checkpoint, each brought to where it can be read when it is wanted.

Knows two kinds: those of a folder are there; those of a hub's model are downloaded one after the
other, ahead of the work, and deleted when no work needs them, so that two lie on the disk at the
most. Does not know what the work is, nor how bytes come off the network.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import groupby
from pathlib import Path
from typing import Protocol, TypeVar

from tqdm.auto import tqdm

from ..errors import MoEColabError
from ..store.safetensors import INDEX, SINGLE, TensorEntry, read_header, weight_files
from .hub import PART, Announced, Snapshot, announced, download, hub_errors
from .shard_plan import ROOM, plan
from .tensors import TORCH_DTYPES

OTHER_WEIGHTS = ("pytorch_model*.bin", "*.gguf", "*.pth", "*.h5", "consolidated*.pt")
HEADERS_AT_ONCE = 8
# Names of GPTQ, AWQ, MXFP4, fp8, compressed-tensors, bitsandbytes and HQQ.
CODES = re.compile(
    r"\.(qweight|qzeros|weight_scale_inv|weight_packed|SCB|W_q)$|_(blocks|scales)$"
    r"|\.weight\.(absmax|quant_)"
)
WHOLE_NUMBERS = ("U8", "I8", "I16", "I32")


class Job(Protocol):
    @property
    def files(self) -> frozenset[str]:
        """The names of the files it reads."""


J = TypeVar("J", bound=Job)


class Shards(Protocol):
    """The safetensors files of a checkpoint."""

    def entries(self) -> dict[str, TensorEntry]:
        """Every tensor of every file by name, before any weights move. Where a tensor's bytes lie
        is true when its file has been delivered; the dictionary is the same one then."""

    def fingerprint(self) -> str:
        """Changes when the weights do; asks for no headers and reads no weights."""

    def extra_disk(self) -> int:
        """Bytes of disk that delivering takes at the most, for a while."""

    def deliver(self, jobs: Sequence[J], folder: Path) -> Iterator[J]:
        """Each job once, when all files that it reads can be read; it is done when the next one is
        asked for. `folder`: for downloaded files; it is removed at the end, and what a stopped or
        killed delivery has left in it is used by the next one. Close it: it may have a thread."""


class FolderShards:
    """Those of a folder on this machine."""

    def __init__(self, folder: Path):
        self.folder = folder

    def entries(self) -> dict[str, TensorEntry]:
        if not (self.folder / INDEX).is_file() and not (self.folder / SINGLE).is_file():
            other = [path.name for pattern in OTHER_WEIGHTS for path in self.folder.glob(pattern)]
            found = f"only {other[0]}" if other else "none"
            raise MoEColabError(
                f"{self.folder} needs its weights as {SINGLE} or in shards with {INDEX}; it has "
                f"{found}."
            )
        entries = {}
        for file in weight_files(self.folder):
            entries.update(read_header(self.folder / file))
        return entries

    def fingerprint(self) -> str:
        stats = [(name, (self.folder / name).stat()) for name in weight_files(self.folder)]
        return "".join(f"{name} {stat.st_size} {stat.st_mtime_ns}\n" for name, stat in stats)

    def extra_disk(self) -> int:
        return 0

    def deliver(self, jobs: Sequence[J], folder: Path) -> Iterator[J]:
        yield from jobs


class HubShards:
    """Those of a model on the hub. What is in the hub's cache folder is read there, and stays."""

    def __init__(self, snapshot: Snapshot, progress: bool = True):
        self.snapshot, self.progress = snapshot, progress
        cached = {name: snapshot.cached(name) for name in sorted(snapshot.weights)}
        self.cached = {name: path for name, path in cached.items() if path}
        self.away = [name for name, path in cached.items() if not path]
        self.headers: dict[str, Announced] = {}
        self.known: dict[str, TensorEntry] = {}

    def entries(self) -> dict[str, TensorEntry]:
        if not self.known:
            with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
                headers = pool.map(lambda name: announced(self.snapshot, name), self.away)
                self.headers = dict(zip(self.away, headers, strict=True))
            files = [self._header(name) for name in sorted(self.snapshot.weights)]
            self.known = {key: entry for file in files for key, entry in file.items()}
        return self.known

    def fingerprint(self) -> str:
        return self.snapshot.revision

    def extra_disk(self) -> int:
        return sum(sorted(self.snapshot.weights[name] for name in self.away)[-ROOM:])

    def deliver(self, jobs: Sequence[J], folder: Path) -> Iterator[J]:
        self.entries()
        groups, place, arriving = self._groups(jobs), folder / self.snapshot.revision, {}
        steps, leaves = plan([needs for needs, _ in groups], self._clear(folder, groups))
        bar = tqdm(
            desc=f"downloading {self.snapshot.repo_id}",
            total=sum(self.snapshot.weights[step.name] for step in steps),
            disable=not self.progress or not steps,
            **{"unit": "B", "unit_scale": True, "leave": False},
        )
        stop, pool = threading.Event(), ThreadPoolExecutor(1, "shards")
        try:
            for done, (needs, group) in enumerate(groups):
                for name in leaves[done]:
                    remove(place, name)
                while steps and steps[0].after <= done:
                    name = steps.popleft().name
                    arriving[name] = pool.submit(self._bring, name, place, stop, bar.update)
                for name in sorted(needs):
                    arriving[name].result()
                yield from group
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            # It ends with the piece that is on its way, or writes nothing more.
            wait([one for one in arriving.values() if not one.cancelled()], timeout=10)
            bar.close()

    def _header(self, name: str) -> dict[str, TensorEntry]:
        if name in self.cached:
            return read_header(self.cached[name])
        path = self.snapshot.folder / name  # where it is not, but the name is right
        return {
            key: TensorEntry(path, key, dtype, shape, 0, nbytes)
            for key, (dtype, shape, nbytes) in self.headers[name].items()
        }

    def _groups(self, jobs: Sequence[J]) -> list[tuple[frozenset[str], list[J]]]:
        """The jobs by the files that must be downloaded for them, in the order of the last one that
        they need, which is worked on when it comes, then of the earlier ones, which can go then."""
        rank = {name: number for number, name in enumerate(self.away)}

        def ranks(job: J) -> list[int]:
            return sorted(rank[name] for name in job.files if name in rank)

        ordered = sorted(jobs, key=lambda job: (max(ranks(job), default=-1), ranks(job)))
        return [
            (frozenset(self.away[number] for number in numbers), list(group))
            for numbers, group in groupby(ordered, key=ranks)
        ]

    def _clear(self, folder: Path, groups: list[tuple[frozenset[str], list[J]]]) -> set[str]:
        """Deletes what a killed delivery has left and nobody needs; the names of the rest."""
        needed = {name for needs, _ in groups for name in needs}
        with hub_errors(self.snapshot.repo_id, self.snapshot.revision, folder):
            for place in folder.iterdir() if folder.is_dir() else ():
                if place.name != self.snapshot.revision:
                    shutil.rmtree(place)
            left = {path.name.removesuffix(PART) for path in folder.glob("*/*")}
            for name in left - needed:
                remove(folder / self.snapshot.revision, name)
        return left & needed

    def _bring(
        self, name: str, place: Path, stop: threading.Event, arrived: Callable[[int], object]
    ) -> None:
        path = download(self.snapshot, name, place, stop, arrived)
        try:
            entries = read_header(path)
            if {k: (e.dtype, e.shape, e.nbytes) for k, e in entries.items()} != (
                self.headers[name]
            ):
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


def remove(place: Path, name: str) -> None:
    for path in (place / name, place / (name + PART)):
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------------- what cannot be read
def refuse_quantized(entries: Mapping[str, TensorEntry]) -> None:
    """Raises MoEColabError where a tensor is not of plain numbers, whatever config.json says."""
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
                f"{name} belongs to weights that are quantized in a way that moe_colab cannot "
                "read: use the original weights."
            )
