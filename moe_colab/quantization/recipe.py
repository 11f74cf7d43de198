"""Which bits every matrix of a model gets, and the blob layout that follows. Knows formats and
layouts; quantizes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from ..errors import MoEColabError
from ..store import BlobLayout, Field, Matrix
from ..store.blobs import (
    BLOB_ALIGNMENT,
    DENSE,
    DTYPE_BYTES,
    EMBEDDINGS,
    EXPERTS,
    FIELD_ALIGNMENT,
    align,
)
from .format import Format

PLAIN, LOWBIT, LOWBIT_TRANSPOSED = "none", "lowbit", "lowbit-transposed"
"""How a matrix lies in a blob: as it is computed with; as low-bit fields of [out, in]; as these of
a matrix that its module keeps as [in, out]."""
PARTS = (EXPERTS, DENSE, EMBEDDINGS)


@dataclass(frozen=True)
class Recipe:
    """The formats of a model's parts, None to keep a part: `experts`, the matrices of every routed
    expert; `dense`, those of the decoder's blocks outside them (attention, shared experts);
    `embeddings`, the input embedding and the output head. `overrides` maps patterns to another
    format, or None, for single matrices: an expert's are called "experts.LAYER.MATRIX", the others
    by their module, as in {"experts.0.*": Format(4), "*.down_proj": Format(3, 64), "lm_head":
    None}; the first pattern that fits counts."""

    experts: Format | None = None
    dense: Format | None = None
    embeddings: Format | None = None
    overrides: Mapping[str, Format | None] = field(default_factory=dict)

    def format(self, part: str, *names: str) -> Format | None:
        """Of a matrix of a part; two `names` if a head is tied to the embedding."""
        for pattern, form in self.overrides.items():
            if any(fnmatchcase(name, pattern) for name in names):
                return form
        return getattr(self, part)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; overrides as pairs, for their order counts."""
        overrides = [[name, form and asdict(form)] for name, form in self.overrides.items()]
        return {**asdict(self), "overrides": overrides}

    def check(self, names: Iterable[str]) -> None:
        """Raises MoEColabError for a format that is none, and for an override of no matrix among
        `names`."""
        for form in (self.experts, self.dense, self.embeddings, *self.overrides.values()):
            if form is not None:
                form.check_choice()
        names = list(names)
        for pattern in self.overrides:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise MoEColabError(
                    f"the override {pattern!r} fits no matrix: an expert's are called as "
                    f"{names[0]!r}, the others by their module, as {names[-1]!r}."
                )

    def layout(
        self, layer: int, shapes: Mapping[str, tuple[int, ...]], dtype: str, transposed: bool
    ) -> BlobLayout:
        """Of one layer's experts: `shapes` of its parameters, `dtype` of what is kept. Biases are
        always kept. Raises MoEColabError where a format does not fit a matrix."""
        matrices = []
        for name, shape in shapes.items():
            form = self.format(EXPERTS, expert_name(layer, name)) if len(shape) == 2 else None
            if form is None:
                matrices.append(kept(name, shape, dtype))
            else:
                across = tuple(reversed(shape)) if transposed else tuple(shape)
                form = form.chosen(across)
                form.check(f"{name} of layer {layer}", across)
                matrices.append(low_bit(name, shape, form, transposed))
        return blob_layout(matrices, BLOB_ALIGNMENT)

    def dense_layout(
        self, part: str, modules: Sequence[str], shape: tuple[int, int]
    ) -> BlobLayout | None:
        """Of one matrix [out, in] outside the experts, called "weight" in its blob; None where it
        is kept, as one that no group fits is, if none was asked for. Embeddings are looked up by
        rows: their groups lie along axis 1. Raises MoEColabError where a format does not fit."""
        form = self.format(part, *modules)
        if form is None:
            return None
        chosen = form.chosen(shape)
        if form.group is None and not chosen.fits(shape):
            return None
        chosen.check(modules[0], shape)
        if part == EMBEDDINGS and chosen.axis != 1:
            raise MoEColabError(f"{modules[0]} is looked up by rows: give it a format of axis 1.")
        # Not to a page: read once, into memory of its own; in a small model pages would be a bit.
        return blob_layout([low_bit("weight", shape, chosen, False)], FIELD_ALIGNMENT)


def expert_name(layer: int, matrix: str) -> str:
    """What a recipe calls a matrix of a layer's experts."""
    return f"{EXPERTS}.{layer}.{matrix}"


def kept(name: str, shape: tuple[int, ...], dtype: str) -> Matrix:
    whole = Field("weight", dtype, tuple(shape), 0)
    return Matrix(name, tuple(shape), 8 * DTYPE_BYTES[dtype], None, None, PLAIN, (whole,))


def low_bit(name: str, shape: tuple[int, ...], form: Format, transposed: bool) -> Matrix:
    """`shape` is the module's, [in, out] where `transposed`."""
    across = tuple(reversed(shape)) if transposed else tuple(shape)
    fields = (Field(part, kind, dims, 0) for part, (kind, dims) in form.fields(across).items())
    packing = LOWBIT_TRANSPOSED if transposed else LOWBIT
    return Matrix(name, tuple(shape), form.bits, form.group, form.axis, packing, tuple(fields))


def blob_layout(matrices: Iterable[Matrix], alignment: int) -> BlobLayout:
    """These matrices one behind the other, each of their fields in its place, in a blob of a
    multiple of `alignment` bytes."""
    offset, placed = 0, []
    for matrix in matrices:
        fields = []
        for part in matrix.fields:
            fields.append(replace(part, offset=offset))
            offset = align(offset + part.nbytes, FIELD_ALIGNMENT)
        placed.append(replace(matrix, fields=tuple(fields)))
    return BlobLayout(tuple(placed), align(offset, alignment))


def format_of(matrix: Matrix) -> Format:
    """The format of a low-bit matrix in a blob."""
    return Format(matrix.bits, matrix.group, matrix.axis)
