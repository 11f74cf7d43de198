"""Forecast of quantizing: the disk, memory and minutes that a model will take, before a download.

Knows a checkpoint's headers, this machine's disk and memory, and how fast it quantizes one small
matrix; knows nothing of packing.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import MoEColabError
from ..machine.folders import cache_folder
from ..machine.memory import available_memory, free_disk
from ..planner.card import card, mark, tiles
from ..planner.catalogue import DOWNLOAD_SPEED, ModelInfo, duration, info
from ..planner.sources import source_of
from ..units import human
from .bits import quantize_matrix
from .devices import pick_device
from .format import Format, stored_bytes
from .scales import choose_scales

TRIAL = (1024, 1024)  # the shape of the matrix whose quantizing is timed
COLUMNS = 4096  # assumed of every matrix, to count what a row's scales take
WORKING = 1_500_000_000  # bytes that quantizing takes at most, beside the largest expert
ASSUMED = (
    f"Estimates: {DOWNLOAD_SPEED / 1e6:.0f} MB/s of download are assumed; the speed of quantizing "
    "was measured on this machine just now. The dense part is counted at full size."
)


@dataclass(frozen=True)
class Forecast:
    """Bytes and seconds that quantizing one model will take. `disk_bytes`: the most at any time,
    which is the store and the two largest files of a download; `weights`: of the routed experts;
    `weights_a_second`: measured on this machine. Displays as a card in a notebook, as text
    elsewhere."""

    model: ModelInfo
    store_bytes: int
    disk_bytes: int
    disk_free: int
    memory_bytes: int
    memory_free: int
    download_bytes: int
    weights: int
    weights_a_second: float

    @property
    def fits(self) -> bool:
        return self.disk_bytes <= self.disk_free and self.memory_bytes <= self.memory_free

    @property
    def seconds(self) -> float:
        """The longer of download and quantizing, which overlap."""
        return max(self.download_bytes / DOWNLOAD_SPEED, self.weights / self.weights_a_second)

    def check(self) -> None:
        """Raises MoEColabError where the disk or the memory is too small."""
        for kind, need, free in (
            ("disk", self.disk_bytes, self.disk_free),
            ("memory", self.memory_bytes, self.memory_free),
        ):
            if need > free:
                raise MoEColabError(
                    f"quantizing {self.model.title} needs {human(need)} of {kind}, and "
                    f"{human(free)} are free: make room, or choose fewer bits or a smaller model."
                )

    def facts(self) -> list[tuple[str, str, str]]:
        """(name, value, remark) of what the card shows."""
        download = ("none", "it is here")
        if self.download_bytes:
            download = (human(self.download_bytes), "file by file, each deleted when done")
        speed = f"{self.weights_a_second / 1e6:.1f} million weights a second"
        return [
            ("download", *download),
            ("store", f"about {human(self.store_bytes)}", f"of {human(self.model.sizes.store())}"),
            ("disk", human(self.disk_bytes), f"{human(self.disk_free)} are free"),
            ("memory", f"about {human(self.memory_bytes)}", f"{human(self.memory_free)} are free"),
            ("time", duration(self.seconds), speed),
        ]

    def __repr__(self) -> str:
        answer = "fits" if self.fits else "does not fit"
        lines = [f"Quantizing {self.model.title}: {answer}"]
        lines += [f"  {what:9}{value} ({remark})" for what, value, remark in self.facts()]
        return "\n".join([*lines, ASSUMED])

    def _repr_html_(self) -> str:
        answer = "fits this machine" if self.fits else "does not fit this machine"
        body = f'<p class="moecard-say">{mark(self.fits)} {answer}</p>' + tiles(self.facts())
        return card(f"Quantizing {self.model.title}", body, ASSUMED)


def forecast(
    source: str | None,
    folder: str | os.PathLike[str] | None = None,
    *,
    expert_bits: int = 4,
    group_size: int = 64,
    device: str | torch.device = "auto",
) -> Forecast:
    """What `mc.quantize(source, folder, ...)` will take. folder: None for the cache folder, as in
    `mc.quantized`. Fetches no weights, only headers and configuration of a model of the hub.
    Raises MoEColabError where the model's size is not known, the format does not exist or does not
    fit rows of 4096 weights, or hqq is not installed."""
    fmt = Format(expert_bits, group_size)
    fmt.check("a row", (1, COLUMNS))
    model = info(source_of(source), refresh=False)
    if model.sizes is None:
        raise MoEColabError(f"the size of {model.title} is not known: {model.problem}")
    sizes, weights = model.sizes, model.sizes.experts // 2  # of 16 bits
    store = weights * stored_bytes((1, COLUMNS), fmt) // COLUMNS + sizes.memory.dense
    return Forecast(
        model=model,
        store_bytes=store,
        disk_bytes=store + (0 if model.here else sizes.shards),
        disk_free=free_disk(cache_folder() if folder is None else Path(folder).expanduser()),
        memory_bytes=WORKING + sizes.largest,
        memory_free=available_memory(),
        download_bytes=0 if model.here else sizes.download,
        weights=weights,
        weights_a_second=speed(fmt, pick_device(device)),
    )


def speed(fmt: Format, device: torch.device) -> float:
    """Weights quantized in a second, measured on a matrix of random weights; without reading and
    writing. The first of two runs is a warm-up."""
    matrix = torch.randn(TRIAL, generator=torch.Generator().manual_seed(0), device="cpu").to(device)
    for _ in range(2):
        start = time.perf_counter()
        quantize_matrix(matrix, fmt, choose_scales)  # returns a number, so it waits for the device
        seconds = time.perf_counter() - start
    return matrix.numel() / seconds
