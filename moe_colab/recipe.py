"""Which bits every matrix of every expert gets, and the blob layout that follows. Knows formats and
layouts; quantizes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from .lowbit import Format
from .store import BlobLayout, Field, Matrix
from .store.manifest import BLOB_ALIGNMENT, DTYPE_BYTES, FIELD_ALIGNMENT, align

PLAIN, LOWBIT, LOWBIT_TRANSPOSED = "none", "lowbit", "lowbit-transposed"
"""How a matrix lies in a blob: as it is computed with; as low-bit fields of [out, in]; as these of
a matrix that its module keeps as [in, out]."""


@dataclass(frozen=True)
class Recipe:
    """`experts`: the format of every expert's matrices, None to keep them. `overrides` maps
    patterns over "layer.matrix" to another format or None, as {"0.*": Format(4, 64),
    "*.down_proj": Format(3, 64)}; the first that fits counts."""

    experts: Format | None = None
    overrides: Mapping[str, Format | None] = field(default_factory=dict)

    def format(self, layer: int, matrix: str) -> Format | None:
        for pattern, form in self.overrides.items():
            if fnmatchcase(f"{layer}.{matrix}", pattern):
                return form
        return self.experts

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def layout(
        self, layer: int, shapes: Mapping[str, tuple[int, ...]], dtype: str, transposed: bool
    ) -> BlobLayout:
        """Of one layer's experts: `shapes` of its parameters, `dtype` of what is kept. Biases are
        always kept. Raises MoEColabError where a format does not fit a matrix."""
        offset, matrices = 0, []
        for name, shape in shapes.items():
            form = self.format(layer, name) if len(shape) == 2 else None
            if form is None:
                bits, kept, packing = 8 * DTYPE_BYTES[dtype], {"weight": (dtype, shape)}, PLAIN
            else:
                across = tuple(reversed(shape)) if transposed else tuple(shape)
                form.check(f"{name} of layer {layer}", across)
                bits, kept = form.bits, form.fields(across)
                packing = LOWBIT_TRANSPOSED if transposed else LOWBIT
            fields = []
            for part, (kind, dims) in kept.items():
                fields.append(Field(part, kind, tuple(dims), offset))
                offset = align(offset + fields[-1].nbytes, FIELD_ALIGNMENT)
            group, axis = (form.group, form.axis) if form else (None, None)
            matrices.append(Matrix(name, tuple(shape), bits, group, axis, packing, tuple(fields)))
        return BlobLayout(tuple(matrices), align(offset, BLOB_ALIGNMENT))


def format_of(matrix: Matrix) -> Format:
    """The format of a low-bit matrix in a blob."""
    return Format(matrix.bits, matrix.group, matrix.axis)
