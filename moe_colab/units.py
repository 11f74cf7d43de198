"""Sizes in bytes, parsed from what people write and formatted for them to read. Knows units
only."""

from __future__ import annotations

import re

from .errors import MoEColabError

UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(size: int | float | str) -> int:
    """A size, such as 15_000_000_000, "15GB" or "15 GiB", as a number of bytes. Raises
    MoEColabError for anything else."""
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([A-Za-z]*)\s*", str(size))
    if match is None or match[2].upper() not in UNITS:
        raise MoEColabError(
            f"{size!r} is not a size: write it like 12GB, 500MB or a number of bytes."
        )
    return int(float(match[1]) * UNITS[match[2].upper()])


def human(nbytes: float) -> str:
    """A number of bytes to read: 1234567 is "1.2 MB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(nbytes) >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes:.0f} B"
