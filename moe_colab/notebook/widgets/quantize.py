"""`mc.QuantizeWidget`: the error of one quantized matrix and the bytes of the model, for any bits.

Knows matrix previews and plots; computes and draws nothing itself. Uses only what both ipywidgets
7.7 and 8 have.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import ipywidgets as w

from ...planner.card import card, tiles
from ...plots import levels
from ...quantization.format import BITS, Format
from ...units import human
from .controls import LABEL, menu
from .matrix_preview import Matrices, MatrixPreview
from .panel import Panel

KEEP = 16  # bits of a matrix that is not quantized
NARROW = "180px"
TITLE = "Size and error"


class QuantizeWidget(Panel):
    """Shows what the bits and the group size change: the levels of one expert's matrix and of one
    attention matrix of the same layer, their errors and real bits per weight, and the bytes of the
    whole model. As the last line of a cell it displays itself.

    source: a checkpoint folder with a matrix of its own for each expert; None: the small model.
    `expert_bits`, `group`, `attention_bits`, `layer`, `expert` and `matrix` are controls; `error`
    is the latest error that was no MoEColabError.
    """

    def __init__(self, source: str | os.PathLike[str] | None = None):
        self.matrices = Matrices(source)
        layers = sorted({layer for layer, _ in self.matrices.experts})
        experts = sorted({expert for _, expert in self.matrices.experts})
        some = next(iter(self.matrices.experts.values()))
        groups = self.matrices.groups()
        self.expert_bits = buttons("Expert bits", BITS, 2)
        self.group = buttons("Group", groups, 64 if 64 in groups else groups[-1])
        self.attention_bits = buttons("Attention", (*BITS, KEEP), 4)
        self.layer = menu("Layer", options_of(layers), NARROW)
        self.expert = menu("Expert", options_of(experts), NARROW)
        self.matrix = menu("Matrix", options_of(some), NARROW)
        super().__init__(
            "moe-quantize",
            (self.expert_bits, self.group),
            (self.attention_bits,),
            (self.layer, self.expert, self.matrix),
        )
        self.update()

    @property
    def title(self) -> str:
        return TITLE

    def settings(self) -> dict[str, int]:
        """The selected bits and group size, as keywords for `mc.quantize`."""
        return {
            "attention_bits": self.attention_bits.value,
            "expert_bits": self.expert_bits.value,
            "group_size": self.group.value,
        }

    def show(self) -> None:
        samples = self.samples()
        self.picture.value = levels([sample.as_row() for sample in samples]).png()
        self.facts.value = card(TITLE, tiles(self.tiles(samples)), FOOT)

    def samples(self) -> list[MatrixPreview]:
        """The expert's matrix, and one attention matrix of its layer if attention is quantized."""
        layer, expert = self.layer.value, self.expert.value
        name, forms = self.matrix.value, self.formats()
        entry = self.matrices.experts[layer, expert][name]
        samples = [self.matrices.sample(entry, f"expert {expert}, {name}", forms[0])]
        if forms[1]:
            name, entry = next(iter(self.matrices.attention[layer].items()))
            samples.append(self.matrices.sample(entry, f"attention, {name}", forms[1]))
        return samples

    def formats(self) -> tuple[Format, Format | None]:
        """The formats of the experts and of the attention."""
        group, bits = self.group.value, self.attention_bits.value
        return Format(self.expert_bits.value, group), None if bits == KEEP else Format(bits, group)

    def tiles(self, samples: list[MatrixPreview]) -> list[tuple[str, str, str]]:
        """(label, number, remark): one for each sample, and one for the whole model."""
        matrices = [
            (
                sample.name,
                f"{sample.bits_per_weight:.2f} bits per weight",
                f"{sample.relative_error:.1%} of its norm lost",
            )
            for sample in samples
        ]
        parts = self.matrices.bytes_by_part(*self.formats())
        before = sum(self.matrices.bytes_by_part(None, None).values())
        detail = ", ".join(f"{part} {human(nbytes)}" for part, nbytes in parts.items())
        now = sum(parts.values())
        return [*matrices, (f"the whole model: {now / before:.0%}", human(now), detail)]


FOOT = "Scales and zeros are counted; padding and headers, a few kilobytes per layer, are not."


def buttons(label: str, values: Any, value: int) -> w.ToggleButtons:
    style = {"button_width": "38px", "description_width": LABEL}
    return w.ToggleButtons(options=options_of(values), value=value, description=label, style=style)


def options_of(values: Iterable[Any]) -> list[tuple[str, Any]]:
    return [(str(one), one) for one in values]
