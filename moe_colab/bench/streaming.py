"""A benchmark of memory and disk: while a checkpoint becomes a store, and while the store answers.

    python -m moe_colab bench streaming [SOURCE] [--work DIR] [--out FILE]

Makes a sharded checkpoint of random weights in Mixtral's shapes, with fewer layers and experts (or
takes SOURCE: a checkpoint folder, or org/name of a hub). Then it quantizes, verifies, loads and
generates. Each stage is a process of its own, which reports the peak of its resident memory over
what it had after its imports; meanwhile the shards on the disk are counted.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import MixtralConfig

from ..checkpoint.source import is_on_hub
from ..errors import MoEColabError
from ..planner.sources import named
from ..store.safetensors import INDEX, make_header, read_header, weight_files
from .machine import describe, resident_peak
from .report import publish

SHAPES = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}  # Mixtral-8x7B's
LAYERS, EXPERTS = 2, 3
SHARD = 600 << 20  # bytes
LIMIT = 1_500_000_000  # bytes over start-up, plus the largest tensor of the source
NEW_TOKENS = 8
STAGES = ("quantize", "verify", "load and generate")
NORMS = ("input", "post_attention")
RESULTS = (  # of a stage, in the report
    *("bits_per_weight", "total_bytes", "expert_bytes", "experts", "nbytes", "tokens"),
    "bytes_loaded",
)


# ---------------------------------------------------------------------- a checkpoint
def make_checkpoint(folder: Path, seed: int = 0) -> None:
    """Write random bfloat16 weights under Mixtral's names, shard by shard, with one tensor in
    memory."""
    config = MixtralConfig(
        **SHAPES,
        num_hidden_layers=LAYERS,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
        dtype="bfloat16",
        architectures=["MixtralForCausalLM"],
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    for name, shape in tensors(config):
        shard_bytes = sum(2 * math.prod(dims) for _, dims in shards[-1])
        if shards[-1] and shard_bytes + 2 * math.prod(shape) > SHARD:
            shards.append([])
        shards[-1].append((name, shape))
    random, weight_map = torch.Generator().manual_seed(seed), {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with open(folder / file, "wb") as out:
            out.write(make_header((n, "BF16", dims, 2 * math.prod(dims)) for n, dims in shard))
            for name, shape in shard:
                weight = torch.ones(shape, dtype=torch.bfloat16)
                if len(shape) == 2:
                    weight.normal_(std=shape[1] ** -0.5, generator=random)
                out.write(memoryview(weight.view(torch.uint8).numpy()))
                weight_map[name] = file
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def tensors(config: MixtralConfig) -> list[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor in a Mixtral checkpoint, in file order."""
    wide, narrow, inner = config.hidden_size, config.hidden_size // 4, config.intermediate_size
    entries = [("model.embed_tokens.weight", (config.vocab_size, wide))]
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        rows = {"q_proj": wide, "k_proj": narrow, "v_proj": narrow, "o_proj": wide}
        entries += [(f"{prefix}.self_attn.{name}.weight", (n, wide)) for name, n in rows.items()]
        entries += [(f"{prefix}.{name}_layernorm.weight", (wide,)) for name in NORMS]
        entries += [(f"{prefix}.block_sparse_moe.gate.weight", (config.num_local_experts, wide))]
        for expert in range(config.num_local_experts):
            inside = f"{prefix}.block_sparse_moe.experts.{expert}"
            shapes = {"w1": (inner, wide), "w2": (wide, inner), "w3": (inner, wide)}
            entries += [(f"{inside}.{name}.weight", shape) for name, shape in shapes.items()]
    return [*entries, ("model.norm.weight", (wide,)), ("lm_head.weight", (config.vocab_size, wide))]


# ---------------------------------------------------------------------- one stage, in its process
def stage(name: str, source: str, store: str) -> dict[str, Any]:
    """Run one of STAGES; its seconds, its peak of memory over what this process had after its
    imports, and some of its results."""
    import moe_colab as mc
    import moe_colab.evaluation.quantize

    def generate() -> dict[str, Any]:
        model, _ = mc.load(store, slots=2, progress=False)
        with model.offload as offload:
            ids = torch.tensor([[5, 17, 3, 99]])
            out = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
            return {"tokens": out.shape[1] - 4, "bytes_loaded": offload.stats().bytes_loaded}

    function: Callable[[], dict[str, Any]] = {
        "quantize": lambda: mc.quantize(source, store, progress=False).as_dict(),
        "verify": lambda: mc.verify(store).as_dict(),
        "load and generate": generate,
    }[name]
    before, start = resident_peak(reset=True), time.perf_counter()
    result = function()
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "start_up_bytes": before,
        "peak_over_start_up": resident_peak() - before,
        "found": {key: value for key, value in result.items() if key in RESULTS},
    }


# ---------------------------------------------------------------------- all of them
def run(source: str | None, work: str | None, out: str | None) -> int:
    """Run every stage and publish the report; 0 if all stayed within the limits, else 1. Raises
    MoEColabError where a stage fails."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        root = Path(folder)
        if source is None:
            source = str(root / "checkpoint")
            print("making a checkpoint of random weights", file=sys.stderr)
            make_checkpoint(Path(source))
        report = measure(source, root / "store")
    publish(report, out)
    return 0 if report["within_limits"] else 1


def measure(source: str, store: Path) -> dict[str, Any]:
    """The report of every stage, and whether all stayed within the limits."""
    sizes = source_sizes(source)
    limit = LIMIT + sizes["largest_tensor_bytes"]
    report: dict[str, Any] = {
        "bench": "streaming",
        "machine": describe(),
        "source": sizes,
        "limit_over_start_up": limit,
    }
    within = True
    for name in STAGES:
        print(name, file=sys.stderr)
        one, disk_peak = in_process(name, source, store)
        report[name] = one | {"peak_shards_on_disk_bytes": disk_peak}
        within &= one["peak_over_start_up"] < limit and disk_peak <= sizes["two_largest_files"]
    return report | {"within_limits": within}


def source_sizes(source: str) -> dict[str, Any]:
    """Bytes of the tensors and files of a checkpoint folder or of a model of the hub."""
    source, revision = named(source)
    if is_on_hub(source):
        from ..checkpoint.hub import announced, fetch

        snapshot = fetch(source, revision, progress=False)
        headers = [announced(snapshot, name) for name in snapshot.weights]
        on_disk = list(snapshot.weights.values())
    else:
        names = weight_files(Path(source))
        headers = [read_header(Path(source) / name) for name in names]
        on_disk = [(Path(source) / name).stat().st_size for name in names]
    nbytes = [[entry.nbytes for entry in header.values()] for header in headers]
    return {
        "kind": "hub" if is_on_hub(source) else "folder",
        "bytes": sum(map(sum, nbytes)),
        "files": len(nbytes),
        "largest_tensor_bytes": max(map(max, nbytes)),
        "two_largest_files": sum(sorted(on_disk)[-2:]),
    }


def in_process(name: str, source: str, store: Path) -> tuple[dict[str, Any], int]:
    """The result of `stage` in a new process, and the peak of the shards on the disk, in bytes."""
    command = [sys.executable, "-m", "moe_colab.bench.streaming", name, source, str(store)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = 0
    while True:
        try:
            output, errors = process.communicate(timeout=0.05)
            break
        except subprocess.TimeoutExpired:
            peak = max(peak, folder_bytes(store / "shards"))
    if process.returncode:
        raise MoEColabError(f"{name} failed: {errors.strip().splitlines()[-1]}")
    return json.loads(output.splitlines()[-1]), peak


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder, without those that are deleted meanwhile."""
    total = 0
    for root, _, names in os.walk(folder):  # which passes over folders that are gone
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(root, name)).st_size
    return total


if __name__ == "__main__":
    print(json.dumps(stage(*sys.argv[1:4])))
