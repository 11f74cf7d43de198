"""Does it pay to share out bits by measured sensitivity? The bytes of uniform settings, shared out
anew: measured on one half of the documents, judged on the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from ..evaluation.comparison import Interval, Resamples, compare
from ..evaluation.perplexity import Scores
from ..evaluation.sensitivity import PERPLEXITY, Sensitivity, allocate, measure_sensitivity
from ..quantization.format import Format
from .rows import FULL, Documents, Setting, agreement, columns, named, ratio, score_columns

# Whose bytes are shared out anew: twice about 3 bits; then what `quantize` makes by default, whose
# experts could not be coarser, so that only the attention has bytes to give.
UNIFORM = tuple(
    Setting(Format(4, 64), form) for form in (Format(2, 16), Format(3, 64), Format(2, 64))
)


def share_out(
    source: str | None, by_domain: dict[str, list[str]], uniform: Iterable[Setting]
) -> dict[str, Any]:
    """Sensitivities from every other document, judged on those between. A comparison for every
    uniform setting, the first on top."""
    fitted, judged = (Documents.of(by_domain, slice(first, None, 2)) for first in (0, 1))
    found = measure_sensitivity(source, fitted.texts, domains=fitted.domains, device="cpu")
    full, _ = judged.score(source, **FULL.options())
    first, *more = [against_uniform(source, found, setting, judged, full) for setting in uniform]
    return {
        **first,
        "other_budgets": more,
        "sensitivity": {
            "format": asdict(found.formats[0]),
            "matrices": found.frame().to_dict("records"),
            "together": columns("rise", found.together.rise)
            | columns("disagreement", found.together.disagreement),
        },
        "fitted_documents": len(fitted.texts),
        "judged_documents": len(judged.texts),
        "judged_tokens": full.tokens,
    }


def against_uniform(
    source: str | None, found: Sensitivity, setting: Setting, judged: Documents, full: Scores
) -> dict[str, Any]:
    """A uniform setting, and the same bytes shared out: each against full precision, and what was
    "allocated" against the others. "by_rise": by the rise of the loss instead of by first choices.
    "blind": as if all weights were minded alike; what it gains comes from mixing formats alone."""
    uniform, summary = judged.score(source, **setting.options())
    budget, resamples = summary.total_bytes, judged.resamples(full)
    overrides = {
        "allocated": allocate(found, budget),
        "by_rise": allocate(found, budget, by=PERPLEXITY),
        "blind": allocate(blind(found), budget, by=PERPLEXITY),
    }
    scored = {"uniform": (uniform, summary)} | {
        name: judged.score(source, **FULL.options() | {"overrides": chosen})
        for name, chosen in overrides.items()
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
            name: {"bits": form.bits, "group": form.group}
            for name, form in overrides["allocated"].items()
        },
    }


def blind(found: Sensitivity) -> Sensitivity:
    """As if every weight were minded alike, by its share of the rise."""
    matrices = {}
    for name, matrix in found.matrices.items():
        alike = Interval(matrix.weights, matrix.weights, matrix.weights)
        matrices[name] = replace(matrix, loss=replace(matrix.loss, rise=alike))
    return replace(found, matrices=matrices)


def difference(one: Scores, other: Scores, full: Scores, resamples: Resamples) -> dict[str, Any]:
    """Of two models in few bits, on the same samples: the ratio of perplexities, and how much more
    often the one agrees with full precision."""
    over = compare(one, other, resamples=resamples)
    more = resamples.interval((one.top1 == full.top1) * 1.0 - (other.top1 == full.top1))
    return {
        **columns("ratio", over.ratio),
        "tie": over.tie,
        **columns("agreement_gain", more),
        "agreement_tie": more.spans(0.0),
    }


def allocation_table(allocation: dict[str, Any]) -> str:
    """In Markdown. The last two columns: the perplexity of the allocated over that of this row, and
    how much more often it agrees with full precision."""
    lines = [
        "| bytes | shared out | perplexity | agreement | allocated over it | agrees more |",
        "|---|---|---|---|---|---|",
    ]
    for one in (allocation, *allocation["other_budgets"]):
        uniform, allocated = one["rows"]
        attention, experts = named(one["uniform"], "attention"), named(one["uniform"], "expert")
        for row, name in (
            (uniform, f"uniform: attention {attention}, experts {experts}"),
            (one["blind"], "all weights alike"),
            (one["by_rise"], "by the rise of the loss"),
            (allocated, "**allocated**, by first choices"),
        ):
            over = one.get(f"allocated_over_{row['name']}")
            lines.append(
                f"| {row['bytes'] / 1e6:.2f} MB | {name} | {ratio(row)} | {agreement(row)} "
                f"| {ratio(over) if over else ''} | {gain(over) if over else ''} |"
            )
    return "\n".join(lines)


def gain(over: dict[str, Any]) -> str:
    return "tie" if over["agreement_tie"] else f"{100 * over['agreement_gain']:+.1f} points"
