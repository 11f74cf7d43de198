"""The self-test of a kernel: whether it is right, and faster than the fallback, on this machine.

Knows a matrix of odd values, its product by the fallback and in float64; knows no kernel by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from ...store.blobs import FIELD_ALIGNMENT, align
from ..bits import dequantize, quantize_scales
from ..format import PLANES, Format, Shape
from .fallback import Fallback
from .kernel import Fields, Kernel

WORST = 1.25  # the largest error allowed, in errors of the fallback against float64
SINGLES, MOST, PAIRS = 8, 32, 5  # rows tried one by one; rows tried at once; timings of each


class SelfTest:
    """Products with one matrix of odd values. It has fewer rows N than the real matrix, because a
    row of the result depends on one row of weights. N modulo 128 stays the same, for a kernel's
    last tile, and a GPU gets more rows, to be busy."""

    def __init__(self, fmt: Format, shape: Shape, dtype: torch.dtype, device: torch.device):
        rows, columns = shape
        weights = 1 << (22 if device.type == "cpu" else 24)
        most = max(384, weights // columns // 128 * 128)
        shape = (rows if rows <= most else most - 128 + rows % 128, columns)
        random = torch.Generator().manual_seed(0)  # leaves the user's random numbers alone
        self.matrix = as_in_a_blob(odd_fields(fmt, shape, random), device), fmt, shape
        x = 2 * torch.rand(MOST, columns, generator=random, device="cpu") - 1
        x[::2] *= 1e3
        self.x = x.to(device, dtype)
        self.plain = Fallback().linear(self.x, self.matrix)
        weight = dequantize(*self.matrix, torch.float32).cpu().double()
        x = self.x.cpu().double()
        self.exact = x @ weight.T
        self.size = x.norm(dim=1)[:, None] * weight.norm(
            dim=1
        )  # so that large and small results count equally

    def fault(self, kernel: Kernel) -> str | None:
        """What is wrong with the kernel's results; None where they are as good as the
        fallback's."""
        state = kernel.prepare(*self.matrix)
        for batch in (self.x[:SINGLES].split(1), (self.x[: kernel.max_rows],)):
            out = torch.cat([kernel.linear(x, state) for x in batch])
            plain = self.plain[: sum(map(len, batch))]
            if out.shape != plain.shape or out.dtype != plain.dtype:
                return f"its result is {tuple(out.shape)} of {out.dtype}"
            error, fallback = self.error(out), self.error(plain)
            if not error <= WORST * fallback:  # NaN too
                return f"its error is {error:.2g}, plain's {fallback:.2g}"
        return None

    def error(self, out: torch.Tensor) -> float:
        """Root mean square of the relative errors against the float64 product."""
        wrong = (out.cpu().double() - self.exact[: len(out)]) / self.size[: len(out)]
        return wrong.square().mean().sqrt().item()

    def times(self, kernel: Kernel, rows: int) -> tuple[float, float]:
        """Seconds for a product of so many rows: of the fallback, and of the kernel with half of
        its time to prepare, because with a hit rate of one half a load serves two products."""
        x, state = self.x[:rows], kernel.prepare(*self.matrix)
        works = (
            lambda: Fallback().linear(x, self.matrix),
            lambda: kernel.linear(x, state),
            lambda: kernel.prepare(*self.matrix),
        )
        timed = [[seconds(work, x.device) for work in works] for _ in range(PAIRS)]
        plain, product, preparing = (median(column) for column in zip(*timed, strict=True))
        return plain, product + preparing / 2


def odd_fields(fmt: Format, shape: Shape, random: torch.Generator) -> Fields:
    """Fields with every code; scales that are equal in a row, or 11 times apart; zeros among the
    codes, above them and below."""

    def noise(*dims: int) -> torch.Tensor:
        return torch.rand(*dims, generator=random, device="cpu")

    (rows, columns), top, grid = shape, 2**fmt.bits - 1, fmt.grid(shape)
    scale = (0.1 + noise(*grid)) / (top * columns**0.5)
    scale[::5] = scale[0, 0]
    zero = noise(*grid)
    zero[2::4] += 3
    zero[3::4] -= 3
    codes = {
        name: (noise(rows * columns * bits // 8) * 256).to(torch.uint8)
        for name, bits in PLANES[fmt.bits].items()
    }
    return {**codes, **quantize_scales(fmt, scale, zero * top)}


def as_in_a_blob(fields: Fields, device: torch.device) -> Fields:
    """The fields as views into one buffer, as in a slot; none is at its start."""
    ends = [FIELD_ALIGNMENT]
    for field in fields.values():
        ends.append(align(ends[-1] + field.nbytes, FIELD_ALIGNMENT))
    room = torch.empty(ends[-1], dtype=torch.uint8, device=device)
    views = {}
    for (name, field), start in zip(fields.items(), ends, strict=False):
        part = room[start : start + field.nbytes].view(field.dtype)
        views[name] = part.view(field.shape).copy_(field)
    return views


def seconds(work: Callable[[], object], device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start
