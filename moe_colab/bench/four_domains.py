"""The shipped trace: the small model reads four domains of the evaluation text.

    python -m moe_colab.bench.four_domains [--out FILE]

A few documents of each domain, each as a sequence of its own: the first tokens are the prompt, the
rest is decoded token by token from the text, so that the routing does not depend on what this
machine would generate. One label per domain. Everything is read twice, for guesses from both
sources; outcomes and times are those of the first reading. It takes about 45 seconds on 2 CPU
cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import torch

from ..cache.settings import SOURCES
from ..evaluation.perplexity import DOMAINS, evaluation_texts
from ..machine.folders import shipped_trace
from ..offload.load import load
from ..offload.read_text import read, with_guesses_of
from ..offload.record import record
from ..offload.text_ids import text_ids
from ..trace import Trace

DOCUMENTS, LENGTH = 3, 128  # documents per domain, tokens per document
SLOTS, POLICY = 4, "lru"
GUESSES, LOOKAHEAD = 4, 2


def sequences(tokenizer) -> dict[str, list[torch.Tensor]]:
    """Token ids [1, LENGTH] of the first documents of every domain that are long enough."""
    texts = evaluation_texts(tokenizer)
    by_label = {}
    for label, domain in DOMAINS.items():
        ids = (text_ids(tokenizer, text, goes_on=True) for text in texts[domain])
        by_label[label] = [one[:, :LENGTH] for one in ids if one.shape[1] >= LENGTH][:DOCUMENTS]
    return by_label


def recorded(sources: Sequence[str] = SOURCES) -> Trace:
    """A trace of all domains, read by the small model on this machine, with guesses from these
    sources."""
    guesses = {"speculate": GUESSES, "lookahead": LOOKAHEAD, "stand_aside": False}
    model, tokenizer = load(slots=SLOTS, policy=POLICY, device="cpu", progress=False, **guesses)
    with model.offload:
        read(model, sequences(tokenizer)["prose"][0])  # norms are found in the first forward
        readings = [record_domains(model, tokenizer, source) for source in sources]
    return reduce(with_guesses_of, readings)


def record_domains(model, tokenizer, source: str) -> Trace:
    """A trace of all domains, with guesses from one source."""
    handle, parts = model.offload, []
    handle.guess_from = source
    handle.slots = SLOTS + 1
    handle.slots = SLOTS  # a change empties the slots
    for label, documents in sequences(tokenizer).items():
        with record(model, tokenizer, label=label) as trace:
            for ids in documents:
                read(model, ids)
        parts.append(trace)
    return Trace.merge(*parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=None, help="default: the shipped trace")
    args = parser.parse_args()
    trace = recorded()
    path = trace.save(args.out or shipped_trace())
    print(f"{trace!r} in {path}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
