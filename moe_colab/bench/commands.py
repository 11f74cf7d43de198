"""The benchmarks on the command line: `python -m moe_colab bench ...`.

Knows their arguments; a benchmark is imported when it runs, so that `--help` needs no torch.
"""

from __future__ import annotations

import argparse
from functools import partial
from importlib import import_module
from typing import Any

from .report import check_writable

CHECKPOINT = "a checkpoint folder, or org/name; default: the small model"


def add_benches(benches: argparse._SubParsersAction) -> None:
    add_bench(benches, "speculation", "what prefetching guessed experts brings")

    paper = add_bench(benches, "paper", "the paper's four rows: bytes counted, time modelled")
    rows = ("full", "no-speculation", "no-cache", "whole-layer")
    paper.add_argument("--row", choices=rows, help="only this row")
    method = paper.add_mutually_exclusive_group()
    for name, text in (("engine", "only the running model"), ("replay", "only the replay")):
        method.add_argument(f"--{name}", dest="method", action="store_const", const=name, help=text)

    check = add_bench(benches, "gpu-check", "is an offloaded model right and fast on this GPU?")
    check.add_argument("source", nargs="?", help="a checkpoint folder; default: the small model")
    check.add_argument("--device", default="cuda", help="cuda or cpu (default: cuda)")
    check.add_argument("--quick", action="store_true", help="check every setting, time none")

    streaming = add_bench(benches, "streaming", "memory and disk while a store is made and used")
    streaming.add_argument("source", nargs="?", help="default: 2.8 GB of random weights, made here")
    streaming.add_argument("--work", help="folder for the checkpoint and the store meanwhile")

    quality = add_bench(benches, "quality", "what each bit costs, in perplexity and agreement")
    quality.add_argument("source", nargs="?", help=CHECKPOINT)
    quality.add_argument("--quick", action="store_true", help="few rows, few documents")

    reliability = add_bench(benches, "reliability", "damaged files, kills, threads, full disks")
    reliability.add_argument("--quick", action="store_true", help="a few trials of each kind")
    reliability.add_argument("--scale", type=float, default=1.0, help="share of the long run")
    reliability.add_argument("--processes", type=int, default=2, help="at once (default: 2)")
    reliability.add_argument("--seed", type=int, default=0, help="of everything random")
    reliability.add_argument("--kind", help="only this kind of trial, such as 'manifest'")
    reliability.add_argument("--trial", type=int, help="only the trial of this number")


def add_bench(benches: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    """The parser of one benchmark: its module is called like it."""
    bench = benches.add_parser(name, help=text, description=text)
    bench.add_argument("--out", help="write the JSON to this file too")
    bench.set_defaults(run=partial(run_bench, name.replace("-", "_")))
    return bench


def run_bench(module: str, *, out: str | None, **options: Any) -> int:
    check_writable(out)
    return import_module(f".{module}", __package__).run(out=out, **options)
