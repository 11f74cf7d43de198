"""How much a model minds fewer bits, matrix by matrix, and the bits that follow from it. Knows how
stores are made and scored; leaves the choice to `allocation`.

Each matrix is measured once, alone in few bits and everything else as it was, by two scores: the
rise of the mean negative log likelihood, and the share of tokens whose first choice is another one.
What another format would cost is not measured but scaled, by the error that it leaves in the
weights; small errors of many matrices add up as their squares do ("Pushing the Limits of Large
Language Model Quantization via the Linearity Theorem", arXiv 2411.17525). First choices change in
proportion to how far the logits move, so it is the squares of these shares that add up. A rise may
be nothing, or less, for a matrix whose spoiling changes many answers: no model's likelihood of a
text is at its highest. A first choice can only be kept or lost.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from ..checkpoint.reader import Checkpoint
from ..checkpoint.source import open_checkpoint
from ..checkpoint.tensors import DTYPE_NAMES, read_tensor
from ..errors import MoEColabError
from ..offload.load import load
from ..quantization.bits import quantize_matrix
from ..quantization.devices import pick_device
from ..quantization.format import Format
from ..quantization.hqq import choose_scales
from ..quantization.quantize import quantize
from ..quantization.recipe import Recipe, expert_name
from ..quantization.targets import low_bit_targets
from ..store import Store, Summary
from ..units import parse_bytes
from .allocation import Option, best_options
from .comparison import Interval, Resamples
from .perplexity import Scores, perplexity

if TYPE_CHECKING:
    import pandas

AGREEMENT, PERPLEXITY = "agreement", "perplexity"
FORMATS = tuple(Format(bits, group) for bits in (2, 3, 4) for group in (64, 16))

Way = tuple[dict[str, Format], int]
"""Formats of matrices that lie together, and the bytes that they take so."""


@dataclass(frozen=True)
class Loss:
    """What few bits cost. rise: of the mean negative log likelihood, nats a token. disagreement:
    the share of tokens whose first choice is another than in full precision."""

    rise: Interval
    disagreement: Interval

    @classmethod
    def of(cls, scores: Scores, full: Scores, resamples: Resamples) -> Loss:
        changed = resamples.interval(scores.top1 != full.top1)
        return cls(resamples.interval(scores.nll - full.nll), changed)


@dataclass(frozen=True)
class MatrixSensitivity:
    """loss: where this matrix alone is kept in the coarsest format. weights: how many it has, in
    all experts. errors: by format, the norm of what quantizing loses over that of the weights, of
    all experts together."""

    loss: Loss
    weights: int
    errors: Mapping[Format, float]

    def expected(self, form: Format, coarsest: Format, by: str) -> float:
        """What adds up over matrices. A rise below zero is chance."""
        relative = self.errors[form] / max(self.errors[coarsest], 1e-12)
        if by == PERPLEXITY:
            return max(0.0, self.loss.rise.value) * relative**2
        return (self.loss.disagreement.value * relative) ** 2


@dataclass(frozen=True)
class Sensitivity:
    """`matrices` by the names that a recipe gives them; `formats`, the coarsest first. together:
    what is lost where all of them are in the coarsest format. parts: for what lies together, all
    ways to keep it. fixed_bytes: everything else."""

    formats: tuple[Format, ...]
    matrices: Mapping[str, MatrixSensitivity]
    together: Loss
    parts: tuple[tuple[Way, ...], ...]
    fixed_bytes: int

    def frame(self) -> pandas.DataFrame:
        """One row per matrix: matrix, weights, rise, rise_low, rise_high (nats a token),
        disagreement, disagreement_low, disagreement_high."""
        import pandas as pd

        rows = []
        for name, found in self.matrices.items():
            rows.append({"matrix": name, "weights": found.weights})
            for score in ("rise", "disagreement"):
                interval = getattr(found.loss, score)
                ends = {f"{score}_low": interval.low, f"{score}_high": interval.high}
                rows[-1] |= {score: interval.value, **ends}
        return pd.DataFrame(rows)


def allocate(
    sensitivity: Sensitivity, budget: int | str, *, by: str = AGREEMENT
) -> dict[str, Format]:
    """A format for every matrix that was measured, so that all weights of the store take `budget`
    bytes (or "12GB") at most and the expected loss is the least: `overrides` for `quantize`. by:
    which loss, "agreement" (first choices that change) or "perplexity" (the rise). Raises
    MoEColabError where the budget is too small."""
    if by not in (AGREEMENT, PERPLEXITY):
        raise MoEColabError(f"by={by!r}: choose {AGREEMENT!r} or {PERPLEXITY!r}.")
    matrices, coarsest = sensitivity.matrices, sensitivity.formats[0]
    parts = [
        [
            Option(way, nbytes, sum(matrices[m].expected(f, coarsest, by) for m, f in way.items()))
            for way, nbytes in ways
        ]
        for ways in sensitivity.parts
    ]
    chosen = best_options(parts, parse_bytes(budget) - sensitivity.fixed_bytes)
    return {name: form for option in chosen for name, form in option.choice.items()}


def measure_sensitivity(
    source: str | os.PathLike[str] | None,
    texts: Sequence[str],
    *,
    domains: Sequence[str] | None = None,
    formats: Sequence[Format] = FORMATS,
    device: str | torch.device = "auto",
    revision: str | None = None,
    progress: bool = True,
) -> Sensitivity:
    """Score a model on `texts` once for every matrix of its experts and of its attention, with this
    one alone in fewer bits. Each time a store is made, on disk, and thrown away: seconds a matrix
    for the small model, many minutes for a large one.

    source, revision, device: as for `quantize`. domains: of every text, for the intervals. formats:
    what `allocate` may choose from; the first is the one that is measured: let it be the coarsest,
    so that its cost stands out of the noise. Raises MoEColabError.
    """
    checkpoint = open_checkpoint(source, revision, progress)
    options = {"device": device, "revision": revision}
    full, _ = score_quantized(source, texts, attention_bits=16, expert_bits=16, **options)
    resamples = Resamples(full.documents, domains)

    def lost(names: Sequence[str]) -> tuple[Loss, Summary]:
        overrides = dict.fromkeys(names, formats[0])
        scores, summary = score_quantized(
            source, texts, attention_bits=16, expert_bits=16, overrides=overrides, **options
        )
        return Loss.of(scores, full, resamples), summary

    errors = relative_errors(checkpoint, formats, pick_device(device))
    bar = tqdm(errors, desc="sensitivity", unit="matrix", disable=not progress, leave=False)
    matrices = {name: MatrixSensitivity(lost([name])[0], *errors[name]) for name in bar}
    together, coarsest = lost(list(errors))
    parts = (*expert_ways(checkpoint, formats), *attention_ways(checkpoint, formats))
    smallest = sum(ways[0][1] for ways in parts)  # all in the first format
    return Sensitivity(tuple(formats), matrices, together, parts, coarsest.total_bytes - smallest)


def score_quantized(
    source: str | os.PathLike[str] | None, texts: Sequence[str], **options: Any
) -> tuple[Scores, Summary]:
    """Quantize with these options of `quantize` into a store that is thrown away, load it and score
    it with all experts in slots, by plain torch, alike on all machines. The summary tells its
    bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "store"
        summary = quantize(source, folder, progress=False, **options)
        model, tokenizer = load(
            folder,
            slots=[layer.experts for layer in Store(folder).manifest.layers],
            kernels="plain",
            device=options.get("device", "auto"),
            progress=False,
        )
        with model.offload:
            return perplexity(model, tokenizer, texts), summary


# ---------------------------------------------------------------------- without any text
def relative_errors(
    checkpoint: Checkpoint, formats: Sequence[Format], device: torch.device
) -> dict[str, tuple[int, dict[Format, float]]]:
    """By matrix, its weights and the relative error in every format."""
    weights: defaultdict[str, int] = defaultdict(int)
    norms: defaultdict[str, float] = defaultdict(float)
    lost: defaultdict[str, dict[Format, float]] = defaultdict(lambda: dict.fromkeys(formats, 0.0))
    for name, weight in all_weights(checkpoint, formats[0]):
        square = weight.double().square().sum().item()
        weights[name] += weight.numel()
        norms[name] += square
        for form in formats:
            _, error = quantize_matrix(weight.to(device), form, choose_scales)
            lost[name][form] += error**2 * square
    return {
        name: (
            weights[name],
            {form: (value / max(norms[name], 1e-60)) ** 0.5 for form, value in by_form.items()},
        )
        for name, by_form in lost.items()
    }


def all_weights(checkpoint: Checkpoint, form: Format) -> Iterator[tuple[str, torch.Tensor]]:
    """(matrix, weight [out, in]) of every expert, then of all else that can be kept in `form`; one
    expert is in memory."""
    for layer, (_, experts) in enumerate(checkpoint.layers):
        for expert in range(experts.num_experts):
            for name, weight in checkpoint.expert(layer, expert).items():
                if weight.dim() == 2:
                    across = weight.T.contiguous() if experts.is_transposed else weight
                    yield expert_name(layer, name), across
    for key, matrix in low_bit_targets(checkpoint, Recipe(dense=form)).items():
        yield matrix.modules[0], read_tensor(checkpoint.entries[key])


def expert_ways(checkpoint: Checkpoint, formats: Sequence[Format]) -> Iterator[tuple[Way, ...]]:
    """For every layer, all ways to keep its experts' matrices. They lie in one blob, whose bytes
    are no sum: it ends on a page."""
    dtype = DTYPE_NAMES[checkpoint.dtype()]
    for layer, ((_, experts), shapes) in enumerate(
        zip(checkpoint.layers, checkpoint.shapes, strict=True)
    ):
        names = [expert_name(layer, name) for name, shape in shapes.items() if len(shape) == 2]
        ways = []
        for forms in itertools.product(formats, repeat=len(names)):
            way = dict(zip(names, forms, strict=True))
            layout = Recipe(overrides=way).layout(layer, shapes, dtype, experts.is_transposed)
            ways.append((way, experts.num_experts * layout.nbytes))
        yield tuple(ways)


def attention_ways(checkpoint: Checkpoint, formats: Sequence[Format]) -> Iterator[tuple[Way, ...]]:
    """The same for every matrix of the attention, each in a blob of its own."""
    found = [(form, low_bit_targets(checkpoint, Recipe(dense=form))) for form in formats]
    for key, matrix in found[0][1].items():
        name = matrix.modules[0]
        yield tuple(({name: form}, matrices[key].layout.nbytes) for form, matrices in found)
