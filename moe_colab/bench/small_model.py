"""How good is the small model that ships? Bits per byte on held-out text against a byte 5-gram,
the load of every expert, and all answers to twenty fixed prompts; one JSON at the end.

    python -m moe_colab.bench.small_model --corpus DIR [--model DIR] [--training TEXT] [--out FILE]

The corpus is a folder of .txt files, one a domain, whose documents are separated by lines
`<|doc|>`; a dialogue's turns start with "U: " and "A: ". It is not part of the project.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from ..machine.folders import shipped_model
from .machine import describe

# Fixed before the training whose result they judge; the seed of each is its place in the list.
PROMPTS = (
    "Hello!",
    "What is the weather in London tomorrow?",
    "Will it rain in San Francisco today?",
    "Can you play some music?",
    "I would like to hear a song by Taylor Swift.",
    "I need a flight to New York.",
    "Find me an Italian restaurant in San Jose.",
    "Book a table for two at seven in the evening.",
    "I am looking for a hotel in Paris.",
    "I want to rent a car next Friday.",
    "Is there a good dentist near me?",
    "What films are on tonight?",
    "Please transfer twenty dollars to my savings account.",
    "Do you like football?",
    "Did you watch the game last night?",
    "Who is your favourite author?",
    "Do you have a dog?",
    "Tell me a story about a fox.",
    "What is two plus two?",
    "Thank you, that is all I need.",
)
ANSWER_TOKENS, CONTEXT, TOKENS_A_DOMAIN = 120, 512, 64 * 512
ORDER = 5  # of the n-gram: a byte after the four before it


def documents(corpus: Path) -> dict[str, list[str]]:
    """{domain: its documents}, dialogues as turns of the chat template."""
    found: dict[str, list[str]] = {}
    for path in sorted(corpus.glob("*.txt")):
        texts = [text.strip("\n") for text in path.read_text(encoding="utf-8").split("<|doc|>")]
        dialogue = path.stem.startswith("chat")
        found[path.stem] = [
            dialogue_text(text) if dialogue else f"<|bos|>{text}<|end|>\n" for text in texts if text
        ]
    return found


def dialogue_text(text: str) -> str:
    turns: list[str] = []
    for line in text.split("\n"):
        if line.startswith(("U: ", "A: ")):
            role = "<|user|>" if line[0] == "U" else "<|assistant|>"
            turns.append(role + line[3:].strip())
        elif turns:
            turns[-1] += " " + line.strip()
    return "<|bos|>" + "\n".join(turn + "<|end|>" for turn in turns) + "\n"


def split(found: dict[str, list[str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """(trained on, held out): one document in fifty is held out, with a fixed seed; a domain of a
    single document has none to hold out."""
    train, held = {}, {}
    for domain, texts in found.items():
        texts = list(texts)
        random.Random(2).shuffle(texts)
        count = max(1, len(texts) // 50) if len(texts) > 1 else 0
        held[domain], train[domain] = texts[:count], texts[count:]
    return train, held


class NGram:
    """A byte n-gram of `ORDER`, every order interpolated with the next lower one as Witten and Bell
    (1991) do it; below the single byte lies the uniform distribution."""

    def __init__(self, data: bytes):
        self.tables = []
        for order in range(1, ORDER + 1):
            grams, counts = np.unique(keys(data, order), return_counts=True)
            contexts, starts = np.unique(grams >> 8, return_index=True)
            totals = np.add.reduceat(counts, starts)
            kinds = np.diff(np.append(starts, len(grams)))  # different bytes after the context
            self.tables.append((grams, counts, contexts, totals, kinds))

    def bits(self, data: bytes) -> np.ndarray:
        """Bits of every byte of `data` that has ORDER - 1 bytes before it -> float64 [n]."""
        count = len(data) - ORDER + 1
        chance = np.full(count, 1 / 256)
        for order, (grams, counts, contexts, totals, kinds) in enumerate(self.tables, 1):
            wanted = keys(data, order)[-count:]
            seen = lookup(grams, counts, wanted)
            total, kind = (lookup(contexts, values, wanted >> 8) for values in (totals, kinds))
            known = total > 0
            chance[known] = (seen + kind * chance)[known] / (total + kind)[known]
        return -np.log2(chance)


def keys(data: bytes, order: int) -> np.ndarray:
    """Every window of `order` bytes as one integer, last byte lowest -> int64 [n - order + 1]."""
    one = np.frombuffer(data, np.uint8).astype(np.int64)
    out = np.zeros(len(one) - order + 1, np.int64)
    for place in range(order):
        out = out << 8 | one[place : len(one) - order + 1 + place]
    return out


def lookup(table: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values[i] where table[i] == wanted, else 0; table is sorted."""
    at = np.searchsorted(table, wanted).clip(max=len(table) - 1)
    return np.where(table[at] == wanted, values[at], 0)


class Load:
    """Counts what every layer's router picks, from hooks on the routers."""

    def __init__(self, model):
        config = model.config
        self.top_k = config.num_experts_per_tok
        self.counts = torch.zeros(config.num_hidden_layers, config.num_local_experts)
        for layer, block in enumerate(model.model.layers):
            gate = block.mlp.gate
            gate.register_forward_hook(lambda m, a, out, layer=layer: self.add(layer, out))

    def add(self, layer: int, out) -> None:
        logits = out[0] if isinstance(out, tuple) else out
        picked = logits.topk(self.top_k, -1).indices.flatten().cpu()
        self.counts[layer] += torch.bincount(picked, minlength=self.counts.shape[1])

    def over_mean(self) -> list[list[float]]:
        relative = self.counts / self.counts.mean(1, keepdim=True)
        return [[round(value, 3) for value in row] for row in relative.tolist()]


@torch.no_grad()
def held_out(model, tokenizer, held: dict[str, list[str]], baseline: NGram) -> dict[str, Any]:
    """Bits per byte of the model and of the 5-gram on the same bytes, by domain."""
    figures = {}
    for domain, texts in held.items():
        ids = [i for text in texts for i in tokenizer(text, add_special_tokens=False).input_ids]
        ids = torch.tensor(ids[:TOKENS_A_DOMAIN])
        if len(ids) < 32:
            continue
        bits, size = 0.0, 0
        for start in range(0, len(ids) - 1, CONTEXT):
            chunk = ids[start : start + CONTEXT + 1]
            logits = model(chunk[None, :-1]).logits.float()[0]
            bits += F.cross_entropy(logits, chunk[1:], reduction="sum").item() / math.log(2)
            size += len(tokenizer.decode(chunk[1:]).encode())
        data = tokenizer.decode(ids).encode()
        figures[domain] = {
            "bytes": size,
            "bits_per_byte": round(bits / size, 4),
            "byte_5gram": round(float(baseline.bits(data).mean()), 4),
        }
    return figures


def answers(model, tokenizer) -> list[dict[str, Any]]:
    """Every prompt's answer with the model's own generation settings."""
    found = []
    for seed, prompt in enumerate(PROMPTS, 1):
        set_seed(seed)
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        out = model.generate(**inputs, max_new_tokens=ANSWER_TOKENS)
        new = out[0, inputs["input_ids"].shape[1] :].tolist()
        grams = Counter(zip(*(new[place:] for place in range(4)), strict=False))
        found.append(
            {
                "prompt": prompt,
                "seed": seed,
                "answer": tokenizer.decode(new, skip_special_tokens=True),
                "tokens": len(new),
                "ends": new[-1] == tokenizer.eos_token_id,
                "most_repeated_4gram": max(grams.values(), default=0),
            }
        )
    return found


def run(folder: Path, corpus: Path, training: str) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    train, held = split(documents(corpus))
    baseline = NGram("".join(text for texts in train.values() for text in texts).encode())
    load = Load(model)
    domains = held_out(model, tokenizer, held, baseline)
    shares = load.over_mean()
    return {
        "bench": "small-model",
        "machine": describe(torch.device("cpu")),
        "training": training,
        "weights_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "held_out": domains,
        "load_over_mean": shares,  # [layer][expert], over all held-out text
        "answers": answers(model, tokenizer),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--training", default="", help="how it was trained, in words")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report = run(args.model or shipped_model(), args.corpus, args.training)
    print(json.dumps(report))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
