"""Where the experts of a pool are, counted."""

from __future__ import annotations

from moe_colab.cache.pool import Pool


def census(pool: Pool) -> dict[str, int]:
    """How many experts have each home, and how many blocks are in each state. Both sums are
    constant."""
    names = ("home_device", "home_host", "home_disk", "ready", "loading", "free")
    out = dict.fromkeys(names, 0)
    for layer, homes in enumerate(pool.homes):
        for expert in range(len(homes)):
            place = pool.where(layer, expert)
            out["home_" + place.home] += 1
            if place.slot != "absent":
                out[place.slot] += 1
    out["free"] = sum(map(len, (*pool.free, *pool.spares.free.values())))
    return out


def blocks_counted(pool: Pool) -> int:
    """All blocks of a pool, whatever their state."""
    counts = census(pool)
    return counts["ready"] + counts["loading"] + counts["free"]
