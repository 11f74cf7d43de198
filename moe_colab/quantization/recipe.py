"""The recipe of a store: which format every matrix of a model gets, and the blob layout that
follows. Knows formats and layouts; knows no weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from ..errors import MoEColabError
from ..store import BlobLayout, Field, Matrix
from ..store.blobs import BLOB_ALIGNMENT, EMBEDDINGS, EXPERTS, FIELD_ALIGNMENT, UNPACKED, align
from .format import Format

LOWBIT, LOWBIT_TRANSPOSED = "lowbit", "lowbit-transposed"
"""How a low-bit matrix is stored in a blob (`Matrix.packing`): as fields of [out, in]; as fields of
[out, in] where the module has [in, out]."""


@dataclass(frozen=True)
class Recipe:
    """The formats of a model's parts, None for a part that stays as it is: `experts`, the matrices
    of every routed expert; `dense`, the other matrices of the decoder's blocks (attention, shared
    experts); `embeddings`, the input embedding and the output head. `overrides` maps patterns of
    names to another format, or None: an expert's matrix has the name "experts.LAYER.MATRIX", any
    other the name of its module, as in {"experts.0.*": Format(4), "*.down_proj": Format(3, 64),
    "lm_head": None}. The first pattern that matches is used."""

    experts: Format | None = None
    dense: Format | None = None
    embeddings: Format | None = None
    overrides: Mapping[str, Format | None] = field(default_factory=dict)

    def format(self, part: str, *names: str) -> Format | None:
        """The format of a matrix in `part`; it has two `names` if it is a head that is tied to the
        embedding."""
        for pattern, fmt in self.overrides.items():
            if any(fnmatchcase(name, pattern) for name in names):
                return fmt
        return getattr(self, part)

    def as_dict(self) -> dict[str, Any]:
        """The recipe for JSON. Overrides are pairs, because their order matters."""
        overrides = [[name, fmt and asdict(fmt)] for name, fmt in self.overrides.items()]
        return {**asdict(self), "overrides": overrides}

    def check(self, names: Iterable[str]) -> None:
        """Raises MoEColabError for a format that does not exist, and for an override that matches
        none of the matrices' `names`."""
        check_overrides(self.overrides)
        for fmt in (self.experts, self.dense, self.embeddings, *self.overrides.values()):
            if fmt is not None:
                fmt.check_choice()
        names = list(names)
        for pattern in self.overrides:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise MoEColabError(
                    f"the override {pattern!r} matches no matrix: name an expert's matrix as in "
                    f"{names[0]!r}, and any other by its module, as in {names[-1]!r}."
                )

    def layout(
        self, layer: int, shapes: Mapping[str, tuple[int, ...]], dtype: str, transposed: bool
    ) -> BlobLayout:
        """The layout of one layer's experts. shapes: of the parameters of one expert; dtype: of the
        matrices that stay as they are, as biases always do. Raises MoEColabError where a format
        does not fit a matrix."""
        matrices = []
        for name, shape in shapes.items():
            fmt = self.format(EXPERTS, expert_name(layer, name)) if len(shape) == 2 else None
            if fmt is None:
                matrices.append(Matrix.unpacked(name, shape, dtype))
            else:
                across = tuple(reversed(shape)) if transposed else tuple(shape)
                fmt = fmt.with_group(across)
                fmt.check(f"{name} of layer {layer}", across)
                matrices.append(low_bit_matrix(name, shape, fmt, transposed))
        return blob_layout(matrices, BLOB_ALIGNMENT)

    def dense_layout(
        self, part: str, modules: Sequence[str], shape: tuple[int, int]
    ) -> BlobLayout | None:
        """The layout of one matrix [out, in] outside the experts, which is called "weight" in its
        blob. None where it stays as it is: by the recipe, or because no usual group fits it and
        none was asked for. Raises MoEColabError where a format does not fit."""
        fmt = self.format(part, *modules)
        if fmt is None:
            return None
        grouped = fmt.with_group(shape)
        if fmt.group is None and not grouped.fits(shape):
            return None
        grouped.check(modules[0], shape)
        if part == EMBEDDINGS and grouped.axis != 1:
            raise MoEColabError(f"{modules[0]} is looked up by rows: give it a format of axis 1.")
        # Not aligned to pages: it is read once, and pages would add up in a small model.
        return blob_layout([low_bit_matrix("weight", shape, grouped, False)], FIELD_ALIGNMENT)


def check_overrides(overrides: object) -> None:
    """Raises MoEColabError unless these are formats, or None, by patterns of names."""
    if not isinstance(overrides, Mapping) or not all(
        isinstance(name, str) and isinstance(fmt, Format | None) for name, fmt in overrides.items()
    ):
        raise MoEColabError(
            f"overrides must be formats by names, as {{'lm_head': mc.Format(8)}}, not {overrides}."
        )


def expert_name(layer: int, matrix: str) -> str:
    """The name that a recipe uses for a matrix of a layer's experts."""
    return f"{EXPERTS}.{layer}.{matrix}"


def low_bit_matrix(name: str, shape: tuple[int, ...], fmt: Format, transposed: bool) -> Matrix:
    """A matrix in low bits. `shape` is the module's, [in, out] where `transposed`."""
    across = tuple(reversed(shape)) if transposed else tuple(shape)
    fields = (Field(part, kind, dims, 0) for part, (kind, dims) in fmt.fields(across).items())
    packing = LOWBIT_TRANSPOSED if transposed else LOWBIT
    return Matrix(name, tuple(shape), fmt.bits, fmt.group, fmt.axis, packing, tuple(fields))


def blob_layout(matrices: Iterable[Matrix], alignment: int) -> BlobLayout:
    """The layout of a blob with these matrices in order. Gives every field its offset; the blob's
    size is a multiple of `alignment` bytes."""
    offset, placed = 0, []
    for matrix in matrices:
        fields = []
        for part in matrix.fields:
            fields.append(replace(part, offset=offset))
            offset = align(offset + part.nbytes, FIELD_ALIGNMENT)
        placed.append(replace(matrix, fields=tuple(fields)))
    return BlobLayout(tuple(placed), align(offset, alignment))


def check_layout(layout: BlobLayout, dtype: str, alignment: int) -> None:
    """Raises MoEColabError where a blob is not laid out as packing does it. dtype: of the matrices
    that stay as they are; alignment: of the blob's size."""
    matrices = []
    for matrix in layout.matrices:
        transposed = matrix.packing == LOWBIT_TRANSPOSED
        across = tuple(reversed(matrix.shape)) if transposed else matrix.shape
        if matrix.packing == UNPACKED:
            matrices.append(Matrix.unpacked(matrix.name, matrix.shape, dtype))
        elif len(across) == 2 and matrix.group and matrix.axis is not None:
            fmt = format_of(matrix)
            fmt.check(matrix.name, across)
            matrices.append(low_bit_matrix(matrix.name, matrix.shape, fmt, transposed))
    if blob_layout(matrices, alignment) != layout:
        raise MoEColabError(
            "the manifest of the store describes its matrices in a way that no moe_colab writes: "
            "make the store again."
        )


def format_of(matrix: Matrix) -> Format:
    """The format of a low-bit matrix in a blob."""
    return Format(matrix.bits, matrix.group, matrix.axis)
