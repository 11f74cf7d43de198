"""Sensitivity of a model to fewer bits, matrix by matrix, and the formats that follow from it.

Knows how stores are made and scored; leaves the choice to `allocation`.

Each matrix is measured once, alone in the coarsest format, by two scores: the rise of the mean
negative log likelihood, and the share of tokens whose first choice changes. The loss in another
format is not measured but scaled by the error in the weights; small errors of many matrices add up
as their squares do ("Pushing the Limits of Large Language Model Quantization via the Linearity
Theorem", arXiv 2411.17525). First choices change in proportion to how far the logits move, so the
squares of these shares add up. The rise can be 0 or negative even for a matrix whose error changes
many first choices; the share cannot.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
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
from ..quantization.recipe import Recipe, expert_name
from ..quantization.scales import choose_scales
from ..quantization.targets import low_bit_targets
from ..store import Store, Summary
from ..units import parse_bytes
from .allocation import Option, best_options
from .comparison import Interval, Resamples
from .perplexity import Scores, perplexity
from .quantize import quantize

if TYPE_CHECKING:
    import pandas

AGREEMENT, PERPLEXITY = "agreement", "perplexity"
FORMATS = tuple(Format(bits, group) for bits in (2, 3, 4) for group in (64, 16))

Way = tuple[dict[str, Format], int]
"""Formats of the matrices of one part, and the bytes of the part in them."""


@dataclass(frozen=True)
class Loss:
    """The loss by fewer bits. rise: of the mean negative log likelihood, nats per token.
    disagreement: the share of tokens, 0 to 1, whose first choice is not that of full precision."""

    rise: Interval
    disagreement: Interval


@dataclass(frozen=True)
class MatrixSensitivity:
    """loss: with this matrix alone in the coarsest format. weights: how many it has, over all
    experts. errors: by format, the norm of the quantization error over that of the weights."""

    loss: Loss
    weights: int
    errors: Mapping[Format, float]

    def expected(self, fmt: Format, coarsest: Format, by: str) -> float:
        """The expected loss in a format, which adds up over matrices. A rise below 0 is noise and
        counts as 0."""
        relative = self.errors[fmt] / max(self.errors[coarsest], 1e-12)
        if by == PERPLEXITY:
            return max(0.0, self.loss.rise.value) * relative**2
        return (self.loss.disagreement.value * relative) ** 2


@dataclass(frozen=True)
class Sensitivity:
    """What `measure_sensitivity` found. formats: the coarsest first. matrices: by the names that
    `quantize` gives them. together: the loss with all of them in the coarsest format. parts: the
    matrices that share a blob, with the bytes of every combination of formats. fixed_bytes: of
    everything else."""

    formats: tuple[Format, ...]
    matrices: Mapping[str, MatrixSensitivity]
    together: Loss
    parts: tuple[tuple[Way, ...], ...]
    fixed_bytes: int

    def frame(self) -> pandas.DataFrame:
        """One row per matrix: matrix, weights, rise, rise_low, rise_high (nats per token),
        disagreement, disagreement_low, disagreement_high."""
        import pandas as pd

        rows = []
        for name, matrix in self.matrices.items():
            rows.append({"matrix": name, "weights": matrix.weights})
            for score in ("rise", "disagreement"):
                value, low, high = astuple(getattr(matrix.loss, score))
                rows[-1] |= {score: value, f"{score}_low": low, f"{score}_high": high}
        return pd.DataFrame(rows)


def allocate(
    sensitivity: Sensitivity, budget: int | str, *, by: str = AGREEMENT
) -> dict[str, Format]:
    """A format for every matrix that was measured, with the least expected loss: the `overrides` of
    `quantize`.

    budget: bytes, or "12GB", of all weights of the store.
    by: the loss, "agreement" (first choices that change) or "perplexity" (the rise).

    Raises MoEColabError where the budget is too small.

        texts = ["Once upon a time there was a king.", "The capital of France is Paris."]
        sensitivity = mc.measure_sensitivity("shipped", texts)
        overrides = mc.allocate(sensitivity, "6MB")
        print(mc.quantize("shipped", "my-store", overrides=overrides).text())
    """
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
    options = best_options(parts, parse_bytes(budget) - sensitivity.fixed_bytes)
    return {name: fmt for option in options for name, fmt in option.choice.items()}


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
    """Score a model once for every matrix of its experts and its attention, with this matrix alone
    in fewer bits. Each time a store is made on disk and deleted: this takes seconds a matrix for
    the small model, many minutes for a large one.

    source, device, revision, progress: as for `quantize`.
    texts: what is scored.
    domains: the domain of every text, for the intervals; one for all by default.
    formats: what `allocate` may choose from. The first is measured: let it be the coarsest, whose
        loss stands out of the noise.

    Raises MoEColabError where `quantize` does, or where a domain has a single text.
    """
    checkpoint = open_checkpoint(source, revision, progress)
    options = {"device": device, "revision": revision, "attention_bits": 16, "expert_bits": 16}
    full, _ = score_quantized(source, texts, **options)
    resamples = Resamples(full.documents, domains)

    def loss_of(names: Sequence[str]) -> tuple[Loss, Summary]:
        scores, summary = score_quantized(
            source, texts, overrides=dict.fromkeys(names, formats[0]), **options
        )
        rise, changed = scores.nll - full.nll, scores.top1 != full.top1
        return Loss(resamples.interval(rise), resamples.interval(changed)), summary

    errors = relative_errors(checkpoint, formats, pick_device(device))
    bar = tqdm(errors, desc="sensitivity", unit="matrix", disable=not progress, leave=False)
    matrices = {name: MatrixSensitivity(loss_of([name])[0], *errors[name]) for name in bar}
    together, coarsest = loss_of(list(errors))
    parts = (*expert_ways(checkpoint, formats), *attention_ways(checkpoint, formats))
    smallest = sum(ways[0][1] for ways in parts)  # all in the first format
    return Sensitivity(tuple(formats), matrices, together, parts, coarsest.total_bytes - smallest)


def score_quantized(
    source: str | os.PathLike[str] | None, texts: Sequence[str], **options: Any
) -> tuple[Scores, Summary]:
    """Scores and summary of a temporary store, made with these options of `quantize`; scored with
    all experts in slots and by plain torch, so that every machine gives the same scores."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "store"
        summary = quantize(source, folder, check=False, progress=False, **options)
        model, tokenizer = load(
            folder,
            slots=[layer.experts for layer in Store(folder).manifest.layers],
            kernels="plain",
            device=options.get("device", "auto"),
            progress=False,
        )
        with model.offload:
            return perplexity(model, tokenizer, texts), summary


# ---------------------------------------------------------------------- errors and bytes
def relative_errors(
    checkpoint: Checkpoint, formats: Sequence[Format], device: torch.device
) -> dict[str, tuple[int, dict[Format, float]]]:
    """By matrix, over all experts: how many weights it has, and its relative error in every
    format."""
    counts, norms, errors = Counter(), Counter(), Counter()  # squared norms, of weights and errors
    for name, weight in all_weights(checkpoint, formats[0]):
        square = weight.double().square().sum().item()
        counts[name] += weight.numel()
        norms[name] += square
        for fmt in formats:
            _, error = quantize_matrix(weight.to(device), fmt, choose_scales)
            errors[name, fmt] += error**2 * square
    return {
        name: (n, {f: (errors[name, f] / max(norms[name], 1e-60)) ** 0.5 for f in formats})
        for name, n in counts.items()
    }


def all_weights(checkpoint: Checkpoint, fmt: Format) -> Iterator[tuple[str, torch.Tensor]]:
    """(matrix, weight [out, in]) of every expert, then of every dense matrix that can be kept in
    `fmt`; one expert at a time is in memory."""
    for layer, (_, experts) in enumerate(checkpoint.layers):
        for expert in range(experts.num_experts):
            for name, weight in checkpoint.expert(layer, expert).items():
                if weight.dim() == 2:
                    across = weight.T.contiguous() if experts.is_transposed else weight
                    yield expert_name(layer, name), across
    for key, matrix in low_bit_targets(checkpoint, Recipe(dense=fmt)).items():
        yield matrix.modules[0], read_tensor(checkpoint.entries[key])


def expert_ways(checkpoint: Checkpoint, formats: Sequence[Format]) -> Iterator[tuple[Way, ...]]:
    """For every layer, all combinations of formats of its experts' matrices. They share one blob,
    which is padded to a page: its bytes are not a sum over matrices."""
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
    """For every matrix of the attention, each in a blob of its own, all formats."""
    by_form = {fmt: low_bit_targets(checkpoint, Recipe(dense=fmt)) for fmt in formats}
    for key, matrix in by_form[formats[0]].items():
        name = matrix.modules[0]
        yield tuple(({name: fmt}, low[key].layout.nbytes) for fmt, low in by_form.items())
