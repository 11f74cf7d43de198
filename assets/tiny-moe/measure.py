"""The quality of the small model: bits per byte, the load of every expert, answers to 20 prompts.

Bits per byte of held-out text stand beside those of a byte 5-gram. The prompts are fixed, and all
answers are shown. Prints one JSON object.

    python assets/tiny-moe/measure.py --corpus DIR [--model DIR] [--training TEXT] [--out FILE]

The corpus is a folder of .txt files, one per domain, with a line `<|doc|>` between two documents;
the turns of a dialogue start with "U: " and "A: ". The corpus is not part of the project.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from moe_colab.bench.machine import describe
from moe_colab.bench.report import check_writable, publish
from moe_colab.machine.folders import shipped_model

# Chosen before the training. The seed of a prompt is its number, from 1.
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
ORDER = 5  # of the n-gram: the four bytes before predict a byte


def documents(corpus: Path) -> dict[str, list[str]]:
    """{domain: its documents}, dialogues as turns of the chat template."""
    by_domain: dict[str, list[str]] = {}
    for path in sorted(corpus.glob("*.txt")):
        texts = [text.strip("\n") for text in path.read_text(encoding="utf-8").split("<|doc|>")]
        dialogue = path.stem.startswith("chat")
        by_domain[path.stem] = [
            dialogue_text(text) if dialogue else f"<|bos|>{text}<|end|>\n" for text in texts if text
        ]
    return by_domain


def dialogue_text(text: str) -> str:
    """A dialogue of the corpus, written as the chat template writes it."""
    turns: list[str] = []
    for line in text.split("\n"):
        if line.startswith(("U: ", "A: ")):
            role = "<|user|>" if line[0] == "U" else "<|assistant|>"
            turns.append(role + line[3:].strip())
        elif turns:
            turns[-1] += " " + line.strip()
    return "<|bos|>" + "\n".join(turn + "<|end|>" for turn in turns) + "\n"


def split(by_domain: dict[str, list[str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """(training documents, held-out documents), by domain: one in fifty is held out, drawn with a
    fixed seed; none of a domain with a single document."""
    train, held = {}, {}
    for domain, texts in by_domain.items():
        texts = list(texts)
        random.Random(2).shuffle(texts)
        count = max(1, len(texts) // 50) if len(texts) > 1 else 0
        held[domain], train[domain] = texts[:count], texts[count:]
    return train, held


class NGram:
    """A byte n-gram of `ORDER`. Every order is interpolated with the next lower one (Witten and
    Bell 1991), the lowest one with the uniform distribution."""

    def __init__(self, data: bytes):
        self.tables = []
        for order in range(1, ORDER + 1):
            grams, counts = np.unique(keys(data, order), return_counts=True)
            contexts, starts = np.unique(grams >> 8, return_index=True)
            totals = np.add.reduceat(counts, starts)
            kinds = np.diff(np.append(starts, len(grams)))  # different bytes after the context
            self.tables.append((grams, counts, contexts, totals, kinds))

    def bits(self, data: bytes) -> np.ndarray:
        """Bits of every byte of `data` that follows at least ORDER - 1 bytes -> float64 [n]."""
        count = len(data) - ORDER + 1
        probability = np.full(count, 1 / 256)
        for order, (grams, counts, contexts, totals, kinds) in enumerate(self.tables, 1):
            wanted = keys(data, order)[-count:]
            seen = lookup(grams, counts, wanted)
            total, kind = (lookup(contexts, values, wanted >> 8) for values in (totals, kinds))
            known = total > 0
            mixed = (seen + kind * probability)[known]
            probability[known] = mixed / (total + kind)[known]
        return -np.log2(probability)


def keys(data: bytes, order: int) -> np.ndarray:
    """Every window of `order` bytes as one integer, last byte lowest -> int64 [n - order + 1]."""
    values = np.frombuffer(data, np.uint8).astype(np.int64)
    windows = np.zeros(len(values) - order + 1, np.int64)
    for start in range(order):
        windows = windows << 8 | values[start : len(windows) + start]
    return windows


def lookup(table: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values[i] where table[i] == wanted, else 0; `table` is sorted."""
    at = np.searchsorted(table, wanted).clip(max=len(table) - 1)
    return np.where(table[at] == wanted, values[at], 0)


class Load:
    """Counts the tokens that each router sends to each expert, with hooks on the routers."""

    def __init__(self, model):
        config = model.config
        self.top_k = config.num_experts_per_tok
        self.counts = torch.zeros(config.num_hidden_layers, config.num_local_experts)
        for layer, block in enumerate(model.model.layers):
            gate = block.mlp.gate
            gate.register_forward_hook(lambda m, a, out, layer=layer: self.add(layer, out))

    def add(self, layer: int, out) -> None:
        logits = out[0] if isinstance(out, tuple) else out
        experts = logits.topk(self.top_k, -1).indices.flatten().cpu()
        self.counts[layer] += torch.bincount(experts, minlength=self.counts.shape[1])

    def over_mean(self) -> list[list[float]]:
        """Tokens of every expert over the mean of its layer, [layer][expert]."""
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
    """The answer to every prompt, with the model's own generation settings."""
    replies = []
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
        grams = Counter(zip(*(new[start:] for start in range(4)), strict=False))
        replies.append(
            {
                "prompt": prompt,
                "seed": seed,
                "answer": tokenizer.decode(new, skip_special_tokens=True),
                "tokens": len(new),
                "ends": new[-1] == tokenizer.eos_token_id,
                "most_repeated_4gram": max(grams.values(), default=0),
            }
        )
    return replies


def run(folder: Path, corpus: Path, training: str) -> dict[str, Any]:
    """The report on the model in `folder`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    train, held = split(documents(corpus))
    baseline = NGram("".join(text for texts in train.values() for text in texts).encode())
    load = Load(model)
    domains = held_out(model, tokenizer, held, baseline)
    shares = load.over_mean()
    return {
        "bench": "small-model",
        "machine": describe(),
        "training": training,
        "weights_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "held_out": domains,
        "load_over_mean": shares,  # [layer][expert], over all held-out text
        "answers": answers(model, tokenizer),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="a folder of .txt files")
    parser.add_argument("--model", type=Path, help="a checkpoint folder; default: the small model")
    parser.add_argument("--training", default="", help="how it was trained, in words")
    parser.add_argument("--out", type=Path, help="write the JSON to this file too")
    args = parser.parse_args()
    check_writable(args.out)
    publish(run(args.model or shipped_model(), args.corpus, args.training), args.out)


if __name__ == "__main__":
    main()
