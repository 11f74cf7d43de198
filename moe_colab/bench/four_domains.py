"""The trace that comes with moe_colab: the small model over four domains of the evaluation text.

    python -m moe_colab.bench.four_domains [--out FILE]

Of each domain a few documents, each a sequence of its own: the first tokens as a prompt, then token
by token what the text says, so that the routing does not depend on what this machine would have
generated. One label a domain. All is read twice, for guesses from both sources; outcomes and times
are those of the first reading.
"""

from __future__ import annotations

import argparse
import inspect
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache

from ..errors import MoEColabError
from ..loading import load
from ..places import shipped_trace
from ..quality import evaluation_texts
from ..recording import record
from ..settings import SOURCES
from ..trace import Trace

DOMAINS = {"chat": "task_dialogues", "code": "code_python", "french": "french", "prose": "prose"}
DOCUMENTS, PROMPT, LENGTH = 3, 32, 128  # a domain's documents; tokens of each
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


@torch.no_grad()
def read(model, ids: torch.Tensor) -> None:
    """ids [1, LENGTH]: a prompt, then a token at a time."""
    # The argument's name differs between versions of transformers.
    takes = inspect.signature(type(model).forward).parameters
    past = {"cache" if "cache" in takes else "past_key_values": DynamicCache(config=model.config)}
    for begin, end in pairwise([0, *range(PROMPT, ids.shape[1] + 1)]):
        model(ids[:, begin:end], use_cache=True, **past)


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


def with_guesses_of(trace: Trace, other: Trace) -> Trace:
    """A trace with the guesses of another one too, of a second reading of the same tokens."""
    if not np.array_equal(trace.routing, other.routing):
        raise MoEColabError("two readings of the same tokens were routed differently.")
    theirs = other.guesses.copy()
    theirs["source"] += len(trace.sources)
    both = np.concatenate([trace.guesses, theirs])
    both = both[np.lexsort((both["source"], both["at"], both["step"]))]
    return replace(trace, guesses=both, sources=trace.sources + other.sources)


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
