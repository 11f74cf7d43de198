"""Damaged files: mutants of every kind of file, and flipped bits. Each gives what the whole file
gives, or what plain transformers gives, or one MoEColabError.

Knows what is read of each kind of file; knows no processes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch

import moe_colab as mc

from ..checkpoint.reader import Checkpoint
from ..quantization.pack import pack
from ..store import StoreWriter
from ..store.files import file_entry
from ..store.journal import JOURNAL
from ..store.manifest import NAME, REPORT
from ..store.safetensors import INDEX, SINGLE
from . import mutants
from .toys import (
    IDS,
    contents,
    logits,
    make_checkpoint,
    make_store,
    plain_logits,
    quantize,
    same,
)
from .trials import Kind, Trial, Wrong, replaced


def altered(
    path: Path,
    mutate: mutants.Mutator,
    use: Callable[[], Any],
    right: Callable[[Any], bool] = lambda result: True,
) -> Trial:
    """The trial that uses a mutant of the file."""
    whole = path.read_bytes()

    def trial(dice: Random) -> None:
        path.unlink(missing_ok=True)  # a model may have the last one mapped
        path.write_bytes(mutate(whole, dice))
        result = use()
        if not right(result):
            raise Wrong(f"another result: {str(result)[:100]}")

    return trial


# ---------------------------------------------------------------------- stores
def store_of(folder: Path, quantized: bool) -> Path:
    checkpoint = make_checkpoint("mixtral", folder / "model")
    return (quantize if quantized else make_store)(checkpoint, folder / "store")


def of_store(folder: Path, file: str, mutate: mutants.Mutator, quantized: bool = False) -> Trial:
    """A file of a store: the logits stay the same."""
    store = store_of(folder, quantized)
    return altered(store / file, mutate, partial(logits, store), partial(same, logits(store)))


def inspected(folder: Path) -> Trial:
    """A manifest that is inspected and verified."""
    store = store_of(folder, True)

    def use() -> None:
        summary = mc.inspect(store)
        summary.text()
        summary.frame()
        mc.verify(store)

    return altered(store / NAME, mutants.of_manifest, use)


def of_report(folder: Path) -> Trial:
    """A report of a store, whose digests fit it."""
    store = store_of(folder, True)
    whole = logits(store)

    def use() -> torch.Tensor | None:
        entry, body = file_entry(store, REPORT), json.loads((store / NAME).read_bytes())
        body["files"] = [vars(entry) if e["name"] == REPORT else e for e in body["files"]]
        (store / NAME).write_text(mutants.sealed(body))
        summary = mc.inspect(store)
        summary.text()
        summary.frame()
        return logits(store)

    return altered(store / REPORT, mutants.of_json, use, partial(same, whole))


def of_journal(folder: Path) -> Trial:
    """A packing that goes on with it ends with the same store."""
    source = Checkpoint(make_checkpoint("mixtral", folder / "model"))
    whole = contents(make_store(folder / "model", folder / "whole"))
    half, copy = folder / "half", folder / "copy"

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    with replaced(StoreWriter, "finish", stop), contextlib.suppress(KeyboardInterrupt):
        make_store(folder / "model", half)

    def use() -> dict[str, bytes]:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(half, copy)
        pack(source, copy, source.dtype(), progress=False)
        return contents(copy)

    return altered(half / JOURNAL, mutants.of_journal, use, whole.__eq__)


def under_a_model(folder: Path) -> Trial:
    """A bit of an expert that flips while a model is open, and back: never another result."""
    store = store_of(folder, False)
    path = store / "experts-00000.safetensors"
    size, expected = path.stat().st_size, logits(store)

    def flip(position: int, bit: int) -> None:
        with open(path, "r+b") as file:
            file.seek(position)
            (byte,) = file.read(1)
            file.seek(position)
            file.write(bytes([byte ^ 1 << bit]))

    def trial(dice: Random) -> None:
        place = dice.randrange(size), dice.randrange(8)
        model, _ = mc.load(store, progress=False, slots=dice.randint(1, 8))

        def check(when: str) -> None:
            with torch.no_grad():
                if not same(model(IDS).logits, expected):
                    raise Wrong(f"another result {when}")

        with model.offload:
            for _ in range(dice.randrange(2)):
                check("of whole files")
            flip(*place)
            refused = None
            try:
                check("with a flipped bit")
            except mc.MoEColabError as error:
                refused = error
            finally:
                flip(*place)
            try:
                check("after the bit is right again")
            except mc.MoEColabError as error:
                raise Wrong(f"refused though the bit is right again: {error}") from error
            if refused:
                raise refused

    return trial


# ---------------------------------------------------------------------- checkpoints
def of_checkpoint(folder: Path, file: str, mutate: mutants.Mutator, family: str) -> Trial:
    """A file of a checkpoint: the same as plain transformers."""
    model = make_checkpoint(family, folder / "model")
    return altered(
        model / file, mutate, partial(logits, model), lambda got: same(plain_logits(model), got)
    )


def of_index(folder: Path) -> Trial:
    """Where transformers wants more of an index than the names of the files, ours still loads."""
    model = make_checkpoint("mixtral", folder / "model", max_shard_size="20kB")
    whole = logits(model)
    return altered(
        *(model / INDEX, mutants.of_json, partial(logits, model)),
        lambda got: same(whole, got) or same(plain_logits(model), got),
    )


# ---------------------------------------------------------------------- traces
def read_whole(trace: mc.Trace) -> str:
    """Everything that a reader asks of a trace."""
    trace.frame()
    trace.guess_frame()
    mc.replay(trace, slots=2)
    return repr(trace)


def of_trace(folder: Path, mutate: mutants.Mutator) -> Trial:
    path = mc.Trace.load().between(0, 3).save(folder / "trace.npz")
    return altered(path, mutate, lambda: read_whole(mc.Trace.load(path)))


def of_csv(folder: Path) -> Trial:
    path = folder / "trace.csv"
    heads = [
        "# route_trace v1",
        "# model=/models/x.gguf n_layer=2 n_expert=4 n_expert_used=2",
        *(f"# layer={layer} expert_bytes=100" for layer in range(2)),
        "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes",
    ]
    rows = [
        f"0,{int(step > 1)},{step},{layer},{slot},{(step + slot) % 4},0.5,1,{100 * slot}"
        for step in range(4)
        for layer in range(2)
        for slot in range(2)
    ]
    path.write_text("\n".join(heads + rows))
    read_whole(mc.Trace.from_csv(path))
    return altered(path, mutants.of_lines, lambda: read_whole(mc.Trace.from_csv(path)))


EXPERTS, DENSE = "experts-00000.safetensors", "dense.safetensors"


def mutant(name: str, count: int, prepare: Callable[..., Trial], **options: Any) -> Kind:
    return Kind("mutants", name, count, partial(prepare, **options))


def flipped(name: str, count: int, prepare: Callable[..., Trial], **options: Any) -> Kind:
    return Kind("flipped bits", name, count, partial(prepare, **options))


OF_WEIGHTS = {"mutate": mutants.of_safetensors}
OF_SHARD = {"file": SINGLE, **OF_WEIGHTS}
OF_CONFIG = {"file": "config.json", "mutate": mutants.of_json}
OF_MANIFEST = {"file": NAME, "mutate": mutants.of_manifest}
BIT = {"mutate": mutants.one_bit}

KINDS = [
    mutant("manifest", 20_000, of_store, **OF_MANIFEST),
    mutant("manifest, quantized", 13_000, of_store, **OF_MANIFEST, quantized=True),
    mutant("manifest, inspected", 7_000, inspected),
    mutant("report", 3_000, of_report),
    mutant("header of dense weights", 6_000, of_store, file=DENSE, **OF_WEIGHTS),
    mutant("header of experts", 6_000, of_store, file=EXPERTS, **OF_WEIGHTS),
    *(
        mutant(
            f"header of {family}", count, of_checkpoint, file=SINGLE, family=family, **OF_WEIGHTS
        )
        for family, count in {"mixtral": 6_000, "qwen3_moe": 5_000, "gpt_oss": 5_000}.items()
    ),
    *(
        mutant(f"config of {family}", 3_000, of_checkpoint, family=family, **OF_CONFIG)
        for family in ("mixtral", "olmoe", "deepseek_v3")
    ),
    mutant("index", 5_000, of_index),
    mutant("journal", 4_000, of_journal),
    mutant("trace", 5_000, of_trace, mutate=mutants.of_archive),
    mutant("trace that claims", 2_000, of_trace, mutate=mutants.claims),
    mutant("csv", 4_000, of_csv),
    flipped("bit of an expert", 5_000, of_store, file=EXPERTS, **BIT),
    flipped("bit of a low-bit expert", 5_000, of_store, file=EXPERTS, **BIT, quantized=True),
    flipped("bit of dense weights", 2_000, of_store, file=DENSE, **BIT),
    flipped("bit of a shard", 2_000, of_checkpoint, file=SINGLE, family="mixtral", **BIT),
    flipped("bit under a model", 2_000, under_a_model),
]
