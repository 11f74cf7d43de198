"""Loading a model takes the memory of its dense part, its slots and an expert or two: never that of
all experts. Measured in fresh processes, on a checkpoint whose experts are far larger than that.

The peak is the kernel's VmHWM of the process: ru_maxrss, kept across exec, would tell of the
process that started it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
LAYERS, EXPERTS, SLOTS = 4, 8, 2
HIDDEN, INTERMEDIATE, VOCABULARY = 1024, 1536, 8192
EXPERT_BYTES = 4 * 3 * HIDDEN * INTERMEDIATE  # float32: 18.9 MB, and 604 MB for all
SLACK = 100 << 20


# ---------------------------------------------------------------------- in processes of their own
def build(folder: Path) -> None:
    """A checkpoint of distinct random experts, one layer and one shard in memory at a time."""
    from safetensors.torch import save_file
    from transformers import MixtralConfig

    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=2,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
        architectures=["MixtralForCausalLM"],
        dtype="float32",
    )
    config.save_pretrained(folder)
    H, I, kv, places = HIDDEN, INTERMEDIATE, HIDDEN // 4, {}  # noqa: E741

    def save(shard: str, shapes: dict[str, tuple[int, ...]]) -> None:
        tensors = {name: torch.rand(shape) * 0.04 - 0.02 for name, shape in shapes.items()}
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        places.update(dict.fromkeys(shapes, shard))

    outside = {
        "model.embed_tokens": (VOCABULARY, H),
        "lm_head": (VOCABULARY, H),
        "model.norm": (H,),
    }
    save("outside.safetensors", {f"{name}.weight": shape for name, shape in outside.items()})
    for layer in range(LAYERS):
        shapes = {
            "input_layernorm": (H,),
            "post_attention_layernorm": (H,),
            "self_attn.q_proj": (H, H),
            "self_attn.k_proj": (kv, H),
            "self_attn.v_proj": (kv, H),
            "self_attn.o_proj": (H, H),
            "block_sparse_moe.gate": (EXPERTS, H),
        }
        for e in range(EXPERTS):
            for matrix, shape in (("w1", (I, H)), ("w2", (H, I)), ("w3", (I, H))):
                shapes[f"block_sparse_moe.experts.{e}.{matrix}"] = shape
        names = {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()}
        save(f"layer-{layer}.safetensors", names)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def measure(folder: Path) -> None:
    import transformers.models.auto  # noqa: F401

    import moe_colab.offload.load as loading

    at_start = peak()
    model, _ = loading.load(folder, slots=SLOTS, progress=False)
    loaded = peak()
    model.generate(torch.arange(4)[None], max_new_tokens=4, do_sample=False)
    stats = model.offload.stats()
    dense = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    report = {"at_start": at_start, "loaded": loaded, "peak": peak(), "dense": dense}
    report |= {"experts_loaded": stats.loads, "bytes": stats.bytes_loaded}
    print(json.dumps({**report, "wasted": stats.bytes_wasted}))


def measure_one_matrix() -> None:
    """Dequantize, and quantize, a matrix of 33 million weights."""
    from moe_colab.quantization import bits, scales

    fmt, shape = bits.Format(2, 64), (8192, 4096)
    fields, _ = bits.quantize_matrix(torch.randn(64, 4096), fmt, scales.choose_scales)
    rows = shape[0] // 64
    many = {
        name: part.repeat(rows, *[1] * (part.dim() - 1)).view(fmt.fields(shape)[name][1])
        for name, part in fields.items()
    }
    at_start = peak()
    weight = bits.dequantize(many, fmt, shape, torch.bfloat16)
    dequantized = peak()
    fields, _ = bits.quantize_matrix(weight, fmt, scales.choose_scales)
    sizes = {"fields": sum(field.nbytes for field in fields.values()), "weight": weight.nbytes}
    peaks = {"at_start": at_start, "dequantized": dequantized, "quantized": peak()}
    print(json.dumps({**sizes, **peaks}))


# ---------------------------------------------------------------------- the test
def run(job: str, folder: Path, cache: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MOE_COLAB_CACHE": str(cache)}
    command = [sys.executable, __file__, job, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the kernel's own count")
def test_no_more_memory_than_dense_slots_and_two_experts(tmp_path):
    folder, cache = tmp_path / "checkpoint", tmp_path / "cache"
    folder.mkdir()
    run("build", folder, cache)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size > 32 * EXPERT_BYTES
    try:
        for what in ("packing", "the store already made"):
            report = json.loads(run("measure", folder, cache).splitlines()[-1])
            allowed = report["dense"] + (LAYERS * SLOTS + 2) * EXPERT_BYTES + SLACK
            assert allowed < 0.75 * size  # all experts at once would not pass
            assert report["experts_loaded"] > LAYERS * SLOTS
            pieces = report["bytes"] - report["experts_loaded"] * EXPERT_BYTES
            assert 0 <= pieces <= report["wasted"]  # of guesses that were called back
            assert report["peak"] - report["at_start"] < allowed, (what, report)
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(cache, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the kernel's own count")
def test_a_matrix_is_quantized_and_dequantized_in_pieces():
    """Beside the result: not a whole copy in float32 to dequantize; to quantize, where the search
    for scales alone keeps several, less than two (all at once takes nine)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    copy = 2 * report["weight"]
    assert report["dequantized"] - report["at_start"] < report["weight"] + 0.75 * copy, report
    assert report["quantized"] - report["dequantized"] < report["fields"] + 2 * copy, report


if __name__ == "__main__" and len(sys.argv) == 1:
    measure_one_matrix()
elif __name__ == "__main__":
    {"build": build, "measure": measure}[sys.argv[1]](Path(sys.argv[2]))
