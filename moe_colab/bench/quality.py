"""A benchmark of quality: what each bit costs.

    python -m moe_colab bench quality [SOURCE] [--quick] [--out FILE]

Measures the ratio of a quantized model's perplexity to that in full precision, and how often both
have the same first choice, on the project's own text; then again with the same bytes allocated by
measured sensitivity. Every row is a store that `quantize` made and `load` ran, with products by
plain torch.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

from ..checkpoint.reader import Checkpoint
from ..checkpoint.source import open_checkpoint
from ..errors import MoEColabError
from ..evaluation.comparison import CONFIDENCE, DRAWS
from ..evaluation.perplexity import evaluation_texts
from ..offload.tokenizer import load_tokenizer
from ..quantization.format import Format
from ..store import Summary
from ..store.blobs import DENSE
from .allocation import UNIFORM, allocation_table, share_out
from .machine import describe
from .report import markdown, publish
from .rows import SEED, Documents, Setting, agreement, format_name, ratio, score_columns

BITS, GROUPS = (16, 4, 3, 2), (16, 64)
QUICK_BITS, QUICK_GROUPS, QUICK_DOCUMENTS = (16, 2), (64,), 4


def run(source: str | None, out: str | None, quick: bool = False) -> int:
    """Measure on the CPU, print two tables, publish the report. quick: few rows, on a few short
    documents of every domain. Raises MoEColabError where the checkpoint has no tokenizer."""
    report = measure(source, quick)
    print(table(report["rows"]))
    print(allocation_table(report["allocation"]))
    publish(report, out)
    return 0


def measure(source: str | None, quick: bool) -> dict[str, Any]:
    """The report: a row for every crossing of formats, and the allocations."""
    checkpoint = open_checkpoint(source, None, progress=False)
    tokenizer = load_tokenizer(checkpoint.folder)
    if tokenizer is None:
        raise MoEColabError(f"{checkpoint.folder} has no tokenizer: the text cannot be scored.")
    by_domain = evaluation_texts(tokenizer)
    if quick:
        by_domain = {n: sorted(t, key=len)[:QUICK_DOCUMENTS] for n, t in by_domain.items()}
    documents = Documents.of(by_domain, slice(None))
    bar = tqdm(settings(quick), desc="settings", leave=False)
    scored = [(setting, *documents.score(source, **setting.options())) for setting in bar]
    full = scored[0][1]
    resamples = documents.resamples(full)
    rows = [
        {
            **setting.columns(),
            "bytes": summary.total_bytes,
            "expert_bits_per_weight": summary.bits_per_weight,
            "attention_bits_per_weight": attention_bits(summary, checkpoint),
            **score_columns(scores, full, resamples),
        }
        for setting, scores, summary in scored
    ]
    uniform = UNIFORM[:1] if quick else UNIFORM
    return {
        "bench": "quality",
        "machine": describe(),
        "model": checkpoint.name,
        "weights_sha256": weights_digest(checkpoint),
        "text": documents.tokens(full),
        "tokens": full.tokens,
        "documents": dict(Counter(documents.domains)),
        "interval": {
            "confidence": CONFIDENCE,
            "method": "paired percentile bootstrap over documents, within each domain",
            "draws": DRAWS,
            "seed": SEED,
        },
        "rows": rows,
        "allocation": share_out(source, by_domain, uniform),
    }


def settings(quick: bool) -> list[Setting]:
    """Every crossing of the formats of attention and experts, full precision first."""
    bits, groups = (QUICK_BITS, QUICK_GROUPS) if quick else (BITS, GROUPS)
    formats = [None, *(Format(b, group) for b in bits if b < 16 for group in groups)]
    return [Setting(*both) for both in itertools.product(formats, repeat=2)]


def attention_bits(summary: Summary, checkpoint: Checkpoint) -> float:
    """Bits per weight of the attention, with scales, zeros and padding."""
    if DENSE not in summary.parts:
        return 8.0 * checkpoint.dtype().itemsize
    return summary.parts[DENSE].bits_per_weight


def weights_digest(checkpoint: Checkpoint) -> str:
    """sha256 of all files of weights, one after the other in order of their names."""
    digest = hashlib.sha256()
    for path in sorted({entry.path for entry in checkpoint.entries.values()}):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The rows in Markdown. "tie" is a perplexity that the text cannot tell from that of full
    precision."""
    heads = ("attention", "experts", "bits per weight", "bytes", "perplexity", "agreement")
    cells = (
        (
            *(format_name(row, "attention"), format_name(row, "expert")),
            f"{row['attention_bits_per_weight']:.2f} / {row['expert_bits_per_weight']:.2f}",
            *(f"{row['bytes'] / 1e6:.2f} MB", ratio(row), agreement(row)),
        )
        for row in rows
    )
    return markdown(heads, cells)
