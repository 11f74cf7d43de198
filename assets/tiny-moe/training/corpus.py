"""The corpus that tiny-moe was trained on; it is not part of the project.

A folder of .txt files, one per domain, with a line `<|doc|>` between two documents. The turns of a
dialogue start with "U: " and "A: ".
"""

from __future__ import annotations

import random
from pathlib import Path


def documents(corpus: Path) -> dict[str, list[str]]:
    """{domain: its documents}."""
    by_domain: dict[str, list[str]] = {}
    for path in sorted(corpus.glob("*.txt")):
        texts = (text.strip("\n") for text in path.read_text(encoding="utf-8").split("<|doc|>"))
        by_domain[path.stem] = [f"<|bos|>{text}<|end|>\n" for text in texts if text]
    return by_domain


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
