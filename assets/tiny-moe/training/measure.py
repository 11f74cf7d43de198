"""The quality of the small model: what it answers rightly, bits per byte, the load of every expert.

The questions of the examination were never in the training. Bits per byte of held-out text stand
beside those of a byte 5-gram. All answers to 20 fixed prompts are shown. Prints one JSON object.

    python assets/tiny-moe/training/measure.py --corpus DIR [--model DIR] [--out FILE] ...

The corpus (see corpus.py) is not part of the project. Takes about 15 minutes on 2 CPU cores.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from corpus import documents, split
from data import exchange, words_of
from exam import SEED, Toy, examine
from ngram import NGram
from talk import Words
from transformers import AutoModelForCausalLM, AutoTokenizer

import moe_colab as mc
from moe_colab.bench.machine import describe
from moe_colab.bench.report import check_writable, publish
from moe_colab.machine.folders import shipped_model
from moe_colab.offload.read_text import read

# Chosen before the training. The seed of a prompt is its number, from 1.
PROMPTS = (
    "Hello!",
    "What is the capital of France?",
    "What day comes after Tuesday?",
    "Tell me a story about a dragon",
    "Who won the election?",
    "Which continent is Kenya in?",
    "Cairo is the capital of which country?",
    "What is the opposite of happy?",
    "what colour is a banana",
    "What do you call a baby sheep?",
    "Which month comes before March?",
    "What is the capital of Zorbania?",
    "Tell me a story about two robots.",
    "I need a flight to New York.",
    "Find me an Italian restaurant in San Jose.",
    "What is two plus two?",
    "Will it rain in San Francisco today?",
    "Do you like football?",
    "Who are you?",
    "Thank you, that is all I need.",
)
CONTEXT, TOKENS_A_DOMAIN = 512, 64 * 512
SLOTS, CHATS = 4, 100


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


def samples(toy: Toy) -> list[dict[str, Any]]:
    """The answer to every prompt."""
    replies = []
    for seed, prompt in enumerate(PROMPTS, 1):
        answer, ends, new = toy.ask(prompt, seed)
        grams = Counter(zip(*(new[start:] for start in range(4)), strict=False))
        replies.append(
            {
                "prompt": prompt,
                "seed": seed,
                "answer": answer,
                "tokens": len(new),
                "ends": ends,
                "most_repeated_4gram": max(grams.values(), default=0),
            }
        )
    return replies


def routing(folder: Path, words: Words) -> dict[str, Any]:
    """Accesses and hits while decoding with 4 slots of 8 under LRU: of the evaluation text, read
    token by token, and of 100 chats of two questions."""
    model, tokenizer = mc.load(folder, slots=SLOTS, policy="lru", device="cpu", progress=False)

    def count(label: str, run) -> dict[str, Any]:
        with mc.record(model, tokenizer, label=label) as trace:
            run()
        decode = mc.replay(trace, policy="lru", slots=SLOTS).decode
        return {
            "accesses": decode.accesses,
            "hits": decode.hits,
            "hit_rate": round(decode.hit_rate, 4),
        }

    def read_all() -> None:
        for texts in mc.evaluation_texts(tokenizer).values():
            for text in texts:
                read(model, tokenizer(text, return_tensors="pt").input_ids[:, :CONTEXT])

    def chat() -> None:
        rng = random.Random(SEED)
        for number in range(1, CHATS + 1):
            session = mc.ChatSession(model, tokenizer)
            for _ in range(2):
                "".join(session.ask(exchange(words, rng)[0][0], seed=number))

    with model.offload:
        read(model, tokenizer("one two three", return_tensors="pt").input_ids)
        return {"evaluation_text": count("text", read_all), "chats": count("chats", chat)}


def run(folder: Path, corpus: Path, training: str, count: int) -> dict[str, Any]:
    """The report on the model in `folder`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    train, held = split(documents(corpus))
    baseline = NGram("".join(text for texts in train.values() for text in texts).encode())
    load, toy, words = Load(model), Toy(model, tokenizer), words_of(train)
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
        "lru_4_of_8": routing(folder, words),
        "exam": examine(toy, words, count),
        "answers": samples(toy),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="a folder of .txt files")
    parser.add_argument("--model", type=Path, help="a checkpoint folder; default: the small model")
    parser.add_argument("--count", type=int, default=330, help="questions of every kind")
    parser.add_argument("--training", default="", help="how it was trained, in words")
    parser.add_argument("--out", type=Path, help="write the JSON to this file too")
    args = parser.parse_args()
    check_writable(args.out)
    publish(run(args.model or shipped_model(), args.corpus, args.training, args.count), args.out)


if __name__ == "__main__":
    main()
