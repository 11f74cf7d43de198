"""The preflight card: what this machine can run, within seconds and before torch is imported.

Knows nvidia-smi, the machine's memory and disk, and the list of models. Uses the arithmetic of
loading (device_memory.py); loads nothing.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from html import escape
from importlib import metadata
from pathlib import Path

from ..machine.folders import cache_folder, environment
from ..machine.memory import RAM_RESERVE, VRAM_RESERVE, available_memory, free_disk, total_memory
from ..units import human
from .card import bar, card, mark, table, tiles
from .catalogue import ASSUMED, ModelInfo, ModelList, models

GPU_QUERY = "--query-gpu=name,memory.total,memory.free"
NO_GPU = (
    "No GPU that torch can use: the model runs on the CPU. Its text and the counts (hits, loads, "
    "bytes) are the same; only the seconds are not those of a GPU."
)
GET_GPU = {
    "colab": " Runtime › Change runtime type › T4 GPU gives you one.",
    "kaggle": " Settings › Accelerator gives you one, once your phone number is verified.",
    "local": "",
}


@dataclass(frozen=True)
class Gpu:
    """The first GPU that this process may use; memory in bytes, None where the driver does not
    say."""

    name: str
    total: int | None
    free: int | None


@dataclass(frozen=True)
class Verdict:
    """Whether a model fits, None where that is unknown; how many slots per layer fit; and why."""

    fits: bool | None
    slots: int | None
    why: str


@dataclass(frozen=True)
class Preflight:
    """This machine and the models: bytes that are free now, and a verdict for each model. Displays
    as a card in a notebook and as text elsewhere."""

    where: str
    gpu: Gpu | None
    torch_has_cuda: bool
    ram_total: int
    ram_free: int
    disk_free: int
    disk_folder: Path
    cores: int
    models: ModelList

    @property
    def on_gpu(self) -> bool:
        """Whether `mc.load(device="auto")` will use the GPU."""
        return self.gpu is not None and self.torch_has_cuda

    def verdict(self, model: ModelInfo) -> Verdict:
        """Whether this machine can load a model, by disk and memory."""
        sizes = model.sizes
        if sizes is None:
            return Verdict(None, None, model.problem)
        if model.disk_bytes > self.disk_free:
            need, free = human(model.disk_bytes), human(self.disk_free)
            return Verdict(False, None, f"needs {need} of disk, and {free} are free")
        kind, free, left_alone = "host memory", self.ram_free, 0
        if self.on_gpu:
            kind, free, left_alone = "GPU memory", self.gpu.free, VRAM_RESERVE
        if free is None:
            return Verdict(None, None, "the driver does not say how much GPU memory is free")
        slots = max(sizes.memory.slots_within(free - left_alone))
        if slots < 1:
            need = human(sizes.memory.least() + left_alone)
            return Verdict(False, 0, f"needs {need} of {kind}, and {human(free)} are free")
        usual = sizes.experts_per_layer // 2  # what "auto" takes on a CPU
        if not self.on_gpu and slots < usual:
            return Verdict(True, slots, f"with slots={slots} or fewer: {human(free)} are free")
        if not self.on_gpu:
            return Verdict(True, slots, "slots in RAM, experts on disk")
        return Verdict(True, slots, self.homes(model, slots))

    def homes(self, model: ModelInfo, slots: int) -> str:
        """Where the experts are that have no slot on the GPU, in words."""
        if slots >= model.sizes.experts_per_layer:
            return "every expert has a slot on the GPU"
        share = max(0, self.ram_free - RAM_RESERVE) / model.sizes.experts
        if share >= 1:
            return "every expert is in RAM"
        return f"{share:.0%} of the experts are in RAM, the others on disk"

    def facts(self) -> list[tuple[str, str, str]]:
        """(name, value, remark) of this machine's parts."""
        gpu = ("GPU", "none", "")
        if self.gpu is not None:
            memory = "memory unknown"
            if not self.torch_has_cuda:
                memory = "this torch was built without CUDA"
            elif self.gpu.free is not None:
                memory = f"{human(self.gpu.free)} free of {human(self.gpu.total or self.gpu.free)}"
            gpu = ("GPU", self.gpu.name, memory)
        return [
            gpu,
            ("RAM", f"{human(self.ram_free)} free", f"of {human(self.ram_total)}"),
            ("disk", f"{human(self.disk_free)} free", f"in {self.disk_folder}"),
            ("CPU", f"{self.cores} core{'s' if self.cores != 1 else ''}", ""),
        ]

    def remark(self) -> str:
        """What to know, and to do, where there is no GPU."""
        if self.on_gpu:
            return ""
        return NO_GPU + (GET_GPU.get(self.where, "") if self.gpu is None else "")

    def text(self) -> str:
        lines = [f"Preflight: {self.where}"]
        lines += [f"  {name:5}{value} {remark}".rstrip() for name, value, remark in self.facts()]
        lines += [self.remark()] if self.remark() else []
        for model in self.models:
            verdict = self.verdict(model)
            sign = {True: "+", False: "-", None: "?"}[verdict.fits]
            result = f"{answer(verdict)}{slots_of(verdict, model)}: {verdict.why}"
            wait = f"; first wait {model.wait()}" if verdict.fits is not False else ""
            lines.append(f"{sign} {model.title}, {model.load_with()}\n    {result}{wait}")
        return "\n".join([*lines, ASSUMED])

    def __repr__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        rows = []
        for model in self.models:
            verdict = self.verdict(model)
            name = f"<b>{escape(model.title)}</b><br><code>{escape(model.choice)}</code>"
            fits = f"{mark(verdict.fits)} {answer(verdict)}<small>{escape(verdict.why)}</small>"
            slots = "–"
            if verdict.slots:
                of = model.sizes.experts_per_layer
                slots = f"{verdict.slots} of {of}{bar(verdict.slots / of)}"
            wait = "–" if verdict.fits is False else escape(model.wait())
            rows.append([name, fits, slots, wait])
        say = f'<p class="moecard-say">{escape(self.remark())}</p>' if self.remark() else ""
        heads = ("model", "fits here?", "slots per layer", "first wait")
        body = tiles(self.facts()) + say + table(heads, rows)
        return card("What this machine can run", body, ASSUMED, self.where)


def answer(verdict: Verdict) -> str:
    return {True: "fits", False: "does not fit", None: "unknown"}[verdict.fits]


def slots_of(verdict: Verdict, model: ModelInfo) -> str:
    if not verdict.slots:
        return ""
    return f" with up to {verdict.slots} of {model.sizes.experts_per_layer} slots per layer"


# ---------------------------------------------------------------------- this machine
def preflight(*more: str, timeout: float = 10.0) -> Preflight:
    """A card of what this machine can run, for the models of `moe_colab.models(*more)`, which gives
    the hub `timeout` seconds. Imports no torch."""
    gpu = find_gpu()
    return Preflight(
        where=environment(),
        gpu=gpu,
        torch_has_cuda=torch_has_cuda(),
        ram_total=total_memory(),
        ram_free=available_memory(),
        disk_free=free_disk(cache_folder()),
        disk_folder=cache_folder(),
        cores=len(os.sched_getaffinity(0)),
        models=models(*more, timeout=timeout),
    )


def find_gpu(timeout: float = 5.0) -> Gpu | None:
    """The first visible GPU, by nvidia-smi, which is part of the driver; None where there is
    none."""
    which = []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        first = os.environ["CUDA_VISIBLE_DEVICES"].split(",")[0].strip()
        if not first or first.startswith("-"):
            return None
        which = [f"--id={first}"]
    command = ["nvidia-smi", *which, GPU_QUERY, "--format=csv,noheader,nounits"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = out.stdout.strip().splitlines()
    if out.returncode != 0 or not lines or lines[0].count(",") < 2:
        return None
    name, total, free = (part.strip() for part in lines[0].rsplit(",", 2))
    return Gpu(name, mebibytes(total), mebibytes(free))


def mebibytes(text: str) -> int | None:
    """Bytes of so many MiB; None for "[N/A]", which nvidia-smi prints where memory is shared."""
    return int(text) << 20 if text.isdigit() else None


def torch_has_cuda() -> bool:
    """Whether the installed torch supports CUDA, by the name of its version, without importing
    it."""
    try:
        return not metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        return False
