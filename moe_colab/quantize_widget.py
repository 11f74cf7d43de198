"""Fewer bits by hand: choose them, and see what one matrix loses and what the whole model takes.

Knows `sample`, what it computes, and `plots`, who draws it; computes and draws nothing itself. Only
what ipywidgets 7.7 has as well as 8.
"""

from __future__ import annotations

import os
from typing import Any

import ipywidgets as w
from IPython.display import display

from . import markup
from .card import card, tiles
from .controls import below, row, size, tagged
from .hardware import human
from .lowbit import BITS, Format
from .plots import levels
from .sample import Matrices, Sample
from .widgets import told

KEEP = 16  # bits of a matrix that is left alone


class QuantizeWidget:
    """Bits, group and attention bits, and what follows at once: a matrix of one expert beside one
    of the same layer's attention, their errors and real bits, and the bytes of the whole model. As
    the last line of a cell it shows itself.

    source: a checkpoint folder whose experts are kept one by one, None for the small model.
    `expert_bits`, `group`, `attention_bits`, `layer`, `expert`, `matrix` are widgets; `settings` is
    what is chosen, for `mc.quantize`; `error` is the latest error that was no MoEColabError.
    """

    def __init__(self, source: str | os.PathLike[str] | None = None):
        self.matrices = Matrices(source)
        self.error: Exception | None = None
        layers = sorted({layer for layer, _ in self.matrices.experts})
        experts = sorted({expert for _, expert in self.matrices.experts})
        some = next(iter(self.matrices.experts.values()))
        groups = self.matrices.groups()
        self.expert_bits = buttons("Expert bits", BITS, 2)
        self.group = buttons("Group", groups, 64 if 64 in groups else groups[-1])
        self.attention_bits = buttons("Attention", (*BITS, KEEP), 4)
        self.layer = menu("Layer", layers)
        self.expert = menu("Expert", experts)
        self.matrix = menu("Matrix", list(some))
        self.facts, self.status = w.HTML(), w.HTML()
        self.picture = w.Image(format="png", layout=w.Layout(width="100%", max_width="800px"))
        self.chosen = (
            *(self.expert_bits, self.group, self.attention_bits),
            *(self.layer, self.expert, self.matrix),
        )
        for control in self.chosen:
            control.observe(self._changed, "value")
        choices = (
            row(self.expert_bits, self.group),
            row(self.attention_bits),
            row(self.layer, self.expert, self.matrix),
        )
        self.page = tagged(
            w.VBox([*choices, self.picture, self.facts, self.status]), "moe-quantize"
        )
        self.update()

    def settings(self) -> dict[str, int]:
        """Keywords for `mc.quantize`."""
        return {
            "attention_bits": self.attention_bits.value,
            "expert_bits": self.expert_bits.value,
            "group_size": self.group.value,
        }

    @told
    def update(self) -> None:
        """Quantize anew what is chosen, and show it."""
        samples = self.samples()
        self.picture.value = levels([sample.as_row() for sample in samples]).png()
        self.facts.value = card("What it takes", tiles(self.tiles(samples)), FOOT)
        self.say("")

    def samples(self) -> list[Sample]:
        """The expert's matrix, and one of the same layer's attention if that is quantized."""
        layer, expert = self.layer.value, self.expert.value
        name, forms = self.matrix.value, self.formats()
        entry = self.matrices.experts[layer, expert][name]
        samples = [self.matrices.sample(entry, f"expert {expert}, {name}", forms[0])]
        if forms[1]:
            name, entry = next(iter(self.matrices.attention[layer].items()))
            samples.append(self.matrices.sample(entry, f"attention, {name}", forms[1]))
        return samples

    def formats(self) -> tuple[Format, Format | None]:
        """Of the experts and of the attention."""
        group, bits = self.group.value, self.attention_bits.value
        return Format(self.expert_bits.value, group), None if bits == KEEP else Format(bits, group)

    def tiles(self, samples: list[Sample]) -> list[tuple[str, str, str]]:
        told = [
            (
                sample.name,
                f"{sample.bits_per_weight:.2f} bits a weight",
                f"{sample.relative_error:.1%} of its norm lost",
            )
            for sample in samples
        ]
        parts = self.matrices.bytes_by_part(*self.formats())
        before = sum(self.matrices.bytes_by_part(None, None).values())
        detail = ", ".join(f"{part} {human(nbytes)}" for part, nbytes in parts.items())
        now = sum(parts.values())
        return [*told, (f"the whole model: {now / before:.0%}", human(now), detail)]

    def say(self, text: str, bad: bool = False) -> None:
        self.status.value = markup.status(text, bad) if text else ""

    def close(self) -> None:
        """Take the widget off the page."""
        for widget in list(below(self.page)):
            widget.close()

    def _changed(self, _: Any) -> None:
        self.update()

    def _ipython_display_(self) -> None:
        display(self.page)


FOOT = "Scales and zeros are counted; padding and headers, some kilobytes a layer, are not."


def buttons(label: str, values: Any, value: int) -> w.ToggleButtons:
    style = {"button_width": "38px", "description_width": "80px"}
    options = [(str(one), one) for one in values]
    return w.ToggleButtons(options=options, value=value, description=label, style=style)


def menu(label: str, values: list) -> w.Dropdown:
    options = [(str(one), one) for one in values]
    style = {"description_width": "80px"}
    return w.Dropdown(options=options, description=label, layout=size("180px"), style=style)
