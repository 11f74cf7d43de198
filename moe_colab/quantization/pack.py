"""Packing: writes a store from a checkpoint, one expert at a time; a stopped packing goes on later.

Knows the checkpoint, the jobs and the store's writer; knows no model that runs. Holds one expert,
or one other tensor, in memory; works in the order in which the checkpoint's files arrive.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from ..checkpoint.reader import Checkpoint
from ..checkpoint.tensors import DTYPE_NAMES
from ..errors import MoEColabError
from ..files import read_file, reason
from ..machine.folders import cache_folder, store_name
from ..machine.memory import DISK_HEADROOM, free_disk
from ..store import BlobFile, BlobLayout, DenseMatrix, Manifest, Store, StoreWriter
from ..store.blobs import align
from ..store.manifest import NAME, REPORT
from ..store.side_files import side_files
from ..store.update import update_files
from ..store.writer import DOWNLOADS
from ..units import human
from .jobs import DENSE_FILE, Job, dense_jobs, expert_jobs, low_bit_jobs
from .recipe import Recipe
from .targets import low_bit_targets


def cached_store(
    checkpoint: Checkpoint, dtype: torch.dtype | None = None, progress: bool = True
) -> Store:
    """The store of a checkpoint in the cache folder, packed at first use and whenever the
    checkpoint has changed. dtype: of the packed experts, None for the checkpoint's own. If two
    processes call this at once, one packs and the other waits."""
    source, dtype = checkpoint.folder, dtype or checkpoint.dtype()
    key = hashlib.sha256(f"{source.resolve()} {DTYPE_NAMES[dtype]}".encode()).hexdigest()[:12]
    folder = cache_folder() / f"{store_name(checkpoint.name)}-{key}"
    with alone(folder, f"packing {checkpoint.name}", progress):
        return _current_store(folder, checkpoint) or _packed(folder, checkpoint, dtype, progress)


@contextlib.contextmanager
def alone(folder: Path, work: str, progress: bool) -> Iterator[None]:
    """Only one process at a time works on this `folder` of the cache folder; another one waits, and
    says so."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if progress:
                tqdm.write(f"another process is {work}: waiting for it")
            lock.acquire()
    except OSError as error:
        raise MoEColabError(
            f"the cache folder {folder.parent} cannot be written ({reason(error)}): set "
            "MOE_COLAB_CACHE to another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


def pack(
    checkpoint: Checkpoint,
    folder: Path,
    dtype: torch.dtype,
    progress: bool = True,
    recipe: Recipe | None = None,
    device: torch.device | None = None,
    may_clear: bool = True,
) -> Manifest:
    """Write `folder` as a store of the checkpoint that computes in `dtype`, in the formats of
    `recipe`, quantized on `device`. Goes on where an earlier packing of the same checkpoint with
    the same recipe was stopped; clears what another packing has left there only if `may_clear`.
    Raises MoEColabError, before writing, where the disk is too small or the recipe does not
    fit."""
    recipe = recipe or Recipe()
    source = {
        "id": checkpoint.name,
        "revision": checkpoint.revision,
        "fingerprint": checkpoint.fingerprint(),
    }
    layouts = [
        recipe.layout(number, shapes, DTYPE_NAMES[dtype], experts.is_transposed)
        for number, ((_, experts), shapes) in enumerate(
            zip(checkpoint.layers, checkpoint.shapes, strict=True)
        )
    ]
    matrices = low_bit_targets(checkpoint, recipe)
    _check_disk(checkpoint, folder, layouts, matrices)
    if recipe != Recipe():
        source["recipe"] = recipe.as_dict()
    # Read before anything is cleared: they may be unreadable.
    side = {name: read_file(path) for name, path in side_files(checkpoint.folder).items()}
    identity = {**source, "dtype": DTYPE_NAMES[dtype]}
    writer = StoreWriter(folder, identity, may_clear)
    try:
        jobs = list(expert_jobs(checkpoint, writer, layouts, device))
        jobs += low_bit_jobs(checkpoint, writer, matrices, device)
        jobs += dense_jobs(checkpoint, writer, matrices)
        _run_jobs(checkpoint, writer, jobs, progress)
        for name, content in side.items():
            writer.write_file(name, [content])
        names = list(side)
        if "recipe" in source:
            writer.write_file(REPORT, [_report(writer, source["recipe"])])
            names.append(REPORT)
        if checkpoint.fingerprint() != source["fingerprint"]:
            raise MoEColabError(
                f"{checkpoint.folder} has changed while it was packed: pack it again."
            )
        family = checkpoint.config.model_type
        return writer.finish(source, family, DTYPE_NAMES[dtype], DENSE_FILE, names)
    finally:
        writer.close()


# ---------------------------------------------------------------------- the work
def _run_jobs(checkpoint: Checkpoint, writer: StoreWriter, jobs: list[Job], progress: bool) -> None:
    """Do the jobs that no earlier packing has done, in the order in which their files arrive."""
    missing = [job for job in jobs if not writer.has(job.file, job.part)]
    bar = tqdm(
        desc=f"packing {checkpoint.name}",
        total=sum(job.nbytes for job in jobs),
        initial=sum(job.nbytes for job in jobs) - sum(job.nbytes for job in missing),
        disable=not progress,
        **{"unit": "B", "unit_scale": True, "leave": False},
    )
    delivery = checkpoint.shards.deliver(missing, writer.folder / DOWNLOADS)
    with bar, contextlib.closing(delivery):
        for job in delivery:
            _run_job(writer, job)
            bar.update(job.nbytes)


def _run_job(writer: StoreWriter, job: Job) -> None:
    """Do one job. A function of its own, so that its tensors are freed before the next job."""
    data, remarks = job.make()
    writer.write(job.file, job.part, data, **remarks)


def _report(writer: StoreWriter, recipe: dict) -> bytes:
    """The relative errors as JSON: of experts by layer and expert, of other matrices by module."""

    def errors(entry: BlobFile) -> list[dict[str, float]]:
        parts = (entry.part(number) for number in range(len(entry.layouts())))
        return [writer.record(entry.file, part).get("errors", {}) for part in parts]

    low_bit = writer.low_bit
    outside = zip(low_bit.matrices, errors(low_bit), strict=True) if low_bit else ()
    report = {
        "recipe": recipe,
        "relative_errors": [errors(layer) for layer in writer.layers],
        "dense": {matrix.modules[0]: lost["weight"] for matrix, lost in outside},
    }
    return json.dumps(report, indent=1).encode()


def _current_store(folder: Path, checkpoint: Checkpoint) -> Store | None:
    """The finished store of this checkpoint, with its side files as they are now. None where there
    is none, or it is outdated, or it cannot be opened."""
    if not os.path.exists(folder / NAME):
        return None
    fingerprint = checkpoint.fingerprint()
    try:
        if Manifest.load(folder).source.get("fingerprint") != fingerprint:
            return None
    except MoEColabError:
        return None
    update_files(folder, side_files(checkpoint.folder))
    try:
        return Store(folder)
    except MoEColabError:
        return None


def _packed(folder: Path, checkpoint: Checkpoint, dtype: torch.dtype, progress: bool) -> Store:
    pack(checkpoint, folder, dtype, progress)
    return Store(folder)


def _check_disk(
    checkpoint: Checkpoint,
    folder: Path,
    layouts: list[BlobLayout],
    matrices: dict[str, DenseMatrix],
) -> None:
    """Raises MoEColabError where the store would not fit on the disk."""
    kept = (entry for entry in checkpoint.dense_entries() if entry.name not in matrices)
    need = sum(entry.nbytes for entry in kept) + DISK_HEADROOM
    need += sum(matrix.layout.nbytes for matrix in matrices.values())
    need += checkpoint.shards.extra_disk()
    for (_, experts), layout in zip(checkpoint.layers, layouts, strict=True):
        need += align(experts.num_experts * layout.nbytes, 1 << 20)
    free = free_disk(folder)
    if folder.is_dir():  # of an earlier packing
        free += sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
    if need > free:
        raise MoEColabError(
            f"the store needs {human(need)} of disk in {folder.parent} and {human(free)} are free: "
            "make room, or choose a folder on a larger disk (for stores of load(), set "
            "MOE_COLAB_CACHE)."
        )
