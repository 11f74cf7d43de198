"""The trace that comes with moe_colab: the small model over four domains of the evaluation text.

    python -m moe_colab.bench.four_domains [--out FILE]

Of each domain a few documents, each a sequence of its own: the first tokens as a prompt, then token
by token what the text says, so that the routing does not depend on what this machine would have
generated. One label a domain. All is read twice, for guesses from both sources; outcomes and times
are those of the first reading.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..cache.settings import SOURCES
from ..evaluation.perplexity import DOMAINS, evaluation_texts
from ..machine.folders import shipped_trace
from ..offload.load import load
from ..offload.read_text import read, with_guesses_of
from ..offload.record import record
from ..trace import Trace

DOCUMENTS, LENGTH = 3, 128  # a domain's documents; tokens of each
SLOTS, POLICY = 4, "lru"
GUESSES, LOOKAHEAD = 4, 2


def sequences(tokenizer) -> dict[str, list[torch.Tensor]]:
    """The token ids [1, LENGTH] of every domain's first documents that are long enough."""
    texts = evaluation_texts(tokenizer)
    found = {}
    for label, domain in DOMAINS.items():
        ids = (tokenizer(text, return_tensors="pt").input_ids for text in texts[domain])
        found[label] = [one[:, :LENGTH] for one in ids if one.shape[1] >= LENGTH][:DOCUMENTS]
    return found


def record_domains(model, tokenizer, source: str) -> Trace:
    """All domains, with guesses from one source."""
    handle, parts = model.offload, []
    handle.guess_from = source
    handle.slots = SLOTS + 1
    handle.slots = SLOTS  # and empty again
    for label, documents in sequences(tokenizer).items():
        with record(model, tokenizer, label=label) as trace:
            for ids in documents:
                read(model, ids)
        parts.append(trace)
    return Trace.merge(*parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=None, help="default: the one that ships")
    args = parser.parse_args()
    guesses = {"speculate": GUESSES, "lookahead": LOOKAHEAD, "stand_aside": False}
    model, tokenizer = load(slots=SLOTS, policy=POLICY, device="cpu", progress=False, **guesses)
    with model.offload:
        read(model, sequences(tokenizer)["prose"][0])  # norms are found in the first forward
        readings = [record_domains(model, tokenizer, source) for source in SOURCES]
    trace = with_guesses_of(*readings)
    path = trace.save(args.out or shipped_trace())
    print(f"{trace!r} in {path}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
