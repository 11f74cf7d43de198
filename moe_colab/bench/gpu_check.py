"""A check of offloading on a GPU: are the tokens right, and how fast is the link?

    python -m moe_colab bench gpu-check [SOURCE] [--device DEVICE] [--quick] [--out FILE]

For every policy and number of slots, with the experts' homes on disk and in host memory, greedy
tokens must equal those of the plain model, fully resident on the same device. Times are medians
over repetitions in one run.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM

from ..cache.policies import POLICIES
from ..checkpoint.source import find_source
from ..errors import MoEColabError
from ..offload.handle import make_link
from ..offload.load import load, pick_device
from ..offload.placement import free_memory, in_host_memory
from ..offload.slots import allocate
from ..store import Store, is_store
from .machine import CPU, describe
from .report import publish

PROMPT_TOKENS, NEW_TOKENS, REPEATS = 48, 24, 5
LINK_LOADS = 32
COUNTS = ("hit_rate", "bytes_loaded", "stall_seconds")


def run(source: str | None, device: str, out: str | None, quick: bool = False) -> int:
    """Check, measure and publish the report; 0 if every token was right, else 1. quick: check every
    setting, time none. Raises MoEColabError where `source` is a store."""
    target, folder = pick_device(device), find_source(source)
    if is_store(folder):
        raise MoEColabError(
            f"{folder} is a store; gpu-check compares with the plain model: give its checkpoint."
        )
    report: dict[str, Any] = {"bench": "gpu-check", "machine": describe(target)}
    report |= check_tokens(folder, target, timed=not quick)
    report |= measure_link(folder, target)
    publish(report, out)
    return 0 if not report["wrong"] else 1


def check_tokens(folder: Path, device: torch.device, timed: bool) -> dict[str, Any]:
    """Tokens of the offloaded and the resident model, over policies, slots and homes. timed: the
    seconds of both too, with LRU."""
    model, _ = load(folder, device=device, slots=1, ram=0, progress=False)
    experts = model.offload.entries[0].experts
    plain = AutoModelForCausalLM.from_pretrained(
        folder, dtype=model.dtype, experts_implementation="eager"
    ).to(device)
    for parameter in plain.parameters():  # mapped weights have any alignment; ours have 64 bytes
        parameter.data = parameter.data.clone()
    vocabulary = plain.get_input_embeddings().num_embeddings
    seeded = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (1, PROMPT_TOKENS), generator=seeded).to(device)
    expected, wrong, settings = tokens(plain, ids), [], []
    host = min(model.offload.store_bytes, free_memory(CPU) // 2)
    model.offload.close()
    for tier, ram in (("disk", 0), ("host", host)):
        model, _ = load(folder, device=device, slots=1, ram=ram, progress=False)
        with model.offload as offload:
            grid = [(policy, slots) for policy in POLICIES for slots in range(1, experts + 1)]
            for policy, slots in tqdm(grid, desc=f"homes on {tier}"):
                offload.policy, offload.slots = policy, slots
                offload.reset_stats()
                got = tokens(model, ids)
                stats = offload.stats()
                setting = {"homes": tier, "policy": policy, "slots": slots}
                if not torch.equal(got, expected):
                    wrong.append(setting)
                if timed and policy == "lru":
                    offloaded, resident = paired(model, plain, ids)
                    seconds = {
                        "seconds_per_token": offloaded / NEW_TOKENS,
                        "resident_seconds_per_token": resident / NEW_TOKENS,
                    }
                    counts = {name: getattr(stats, name) for name in COUNTS}
                    settings.append(setting | seconds | counts)
    return {"checked": 2 * len(grid), "wrong": wrong, "settings": settings}


def tokens(model, ids: torch.Tensor) -> torch.Tensor:
    """NEW_TOKENS greedy tokens after `ids` [1, T] -> [1, T + NEW_TOKENS], on the CPU."""
    return model.generate(
        ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
    ).cpu()


def paired(model, plain, ids: torch.Tensor) -> tuple[float, float]:
    """Median seconds of a generation by each model; the models take turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for one, seconds in zip((model, plain), times, strict=True):
            start = time.perf_counter()
            tokens(one, ids)
            seconds.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def measure_link(folder: Path, device: torch.device) -> dict[str, Any]:
    """Bytes per second of whole-expert loads, from disk (page cache) and from host memory."""
    model, _ = load(folder, device=device, slots=1, ram=0, progress=False)
    store = Store(model.offload.store)
    model.offload.close()
    home = store.homes[0][0]
    block = allocate(1, home.nbytes, device)[0]
    link = make_link(device)
    rates = {}
    for tier, source_home in (("disk", home), ("host", in_host_memory(home, device))):
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            tickets = [link.start(source_home, block, link.mark(), True) for _ in range(LINK_LOADS)]
            for ticket in tickets:
                ticket.wait()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
        rates[tier] = LINK_LOADS * home.nbytes / statistics.median(seconds)
    link.close()
    return {"link_bytes_per_second": rates, "expert_bytes": home.nbytes}
