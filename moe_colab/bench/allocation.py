"""A benchmark of allocation: are bits better allocated by measured sensitivity than uniformly?

The bytes of uniform settings are allocated again: sensitivity is measured on one half of the
documents, the result is judged on the other. Part of `bench quality`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from ..evaluation.comparison import Interval, Resamples, compare
from ..evaluation.perplexity import Scores
from ..evaluation.sensitivity import PERPLEXITY, Sensitivity, allocate, measure_sensitivity
from ..quantization.format import Format
from .report import markdown
from .rows import FULL, Documents, Setting, agreement, columns, format_name, ratio, score_columns

# Settings whose bytes are allocated again: two of about 3 bits, then the default of `quantize`. Its
# experts already have the fewest bits, so that only the attention can give bytes.
UNIFORM = tuple(
    Setting(Format(4, 64), fmt) for fmt in (Format(2, 16), Format(3, 64), Format(2, 64))
)


def share_out(
    source: str | None, by_domain: dict[str, list[str]], uniform: Iterable[Setting]
) -> dict[str, Any]:
    """Measure sensitivity on every other document and judge on the others. One comparison for every
    uniform setting, the first one at the top level."""
    fitted, judged = (Documents.of(by_domain, slice(first, None, 2)) for first in (0, 1))
    sensitivity = measure_sensitivity(source, fitted.texts, domains=fitted.domains, device="cpu")
    full, _ = judged.score(source, **FULL.options())
    first, *more = [against_uniform(source, sensitivity, one, judged, full) for one in uniform]
    return {
        **first,
        "other_budgets": more,
        "sensitivity": {
            "format": asdict(sensitivity.formats[0]),
            "matrices": sensitivity.frame().to_dict("records"),
            "together": columns("rise", sensitivity.together.rise)
            | columns("disagreement", sensitivity.together.disagreement),
        },
        "fitted_documents": len(fitted.texts),
        "judged_documents": len(judged.texts),
        "judged_tokens": full.tokens,
    }


def against_uniform(
    source: str | None, sensitivity: Sensitivity, setting: Setting, judged: Documents, full: Scores
) -> dict[str, Any]:
    """A uniform setting, and the same bytes allocated in three ways: "allocated" by changed first
    choices; "by_rise" by the rise of the loss; "blind" as if all weights were equally sensitive:
    its gain comes from mixing formats alone. Each is compared with full precision, and "allocated"
    with each of the others."""
    uniform, summary = judged.score(source, **setting.options())
    budget, resamples = summary.total_bytes, judged.resamples(full)
    overrides = {
        "allocated": allocate(sensitivity, budget),
        "by_rise": allocate(sensitivity, budget, by=PERPLEXITY),
        "blind": allocate(blind(sensitivity), budget, by=PERPLEXITY),
    }
    scored = {"uniform": (uniform, summary)} | {
        name: judged.score(source, **FULL.options() | {"overrides": formats})
        for name, formats in overrides.items()
    }
    rows = {
        name: {"name": name, "bytes": made.total_bytes, **score_columns(scores, full, resamples)}
        for name, (scores, made) in scored.items()
    }
    others = {
        f"allocated_over_{name}": difference(scored["allocated"][0], scores, full, resamples)
        for name, (scores, _) in scored.items()
        if name != "allocated"
    }
    return {
        "budget_bytes": budget,
        "uniform": setting.columns(),
        "rows": [rows["uniform"], rows["allocated"]],
        **{name: rows[name] for name in ("by_rise", "blind")},
        **others,
        "formats": {
            name: {"bits": fmt.bits, "group": fmt.group}
            for name, fmt in overrides["allocated"].items()
        },
    }


def blind(sensitivity: Sensitivity) -> Sensitivity:
    """The sensitivity if every weight had the same: a matrix's rise is its number of weights."""
    matrices = {}
    for name, matrix in sensitivity.matrices.items():
        alike = Interval(matrix.weights, matrix.weights, matrix.weights)
        matrices[name] = replace(matrix, loss=replace(matrix.loss, rise=alike))
    return replace(sensitivity, matrices=matrices)


def difference(one: Scores, other: Scores, full: Scores, resamples: Resamples) -> dict[str, Any]:
    """Two quantized models on the same samples: the ratio of their perplexities, and how much more
    often `one` agrees with full precision."""
    over = compare(one, other, resamples=resamples)
    more = resamples.interval((one.top1 == full.top1) * 1.0 - (other.top1 == full.top1))
    return {
        **columns("ratio", over.ratio),
        "tie": over.tie,
        **columns("agreement_gain", more),
        "agreement_tie": more.spans(0.0),
    }


def allocation_table(allocation: dict[str, Any]) -> str:
    """All comparisons in Markdown. The last two columns: the perplexity of "allocated" over that of
    the row, and how much more often "allocated" agrees with full precision."""
    heads = ("bytes", "bits", "perplexity", "agreement", "allocated over it", "agrees more")
    cells = []
    for one in (allocation, *allocation["other_budgets"]):
        uniform, allocated = one["rows"]
        attention, experts = (
            format_name(one["uniform"], "attention"),
            format_name(one["uniform"], "expert"),
        )
        for row, name in (
            (uniform, f"uniform: attention {attention}, experts {experts}"),
            (one["blind"], "all weights alike"),
            (one["by_rise"], "by the rise of the loss"),
            (allocated, "**allocated**, by first choices"),
        ):
            over = one.get(f"allocated_over_{row['name']}")
            gains = (ratio(over), gain(over)) if over else ("", "")
            cells.append((f"{row['bytes'] / 1e6:.2f} MB", name, ratio(row), agreement(row), *gains))
    return markdown(heads, cells)


def gain(over: dict[str, Any]) -> str:
    return "tie" if over["agreement_tie"] else f"{100 * over['agreement_gain']:+.1f} points"
