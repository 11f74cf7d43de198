"""The header of a saved trace: names, counts and settings, checked. Knows no arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMES = ("model", "experts", "expert_bytes", "labels", "sources", "texts", "settings")
MOST_EXPERTS = 2**15 - 1  # ids are int16
MOST_BYTES = 2**63 - 1


def checked(header: Mapping[str, Any]) -> dict[str, Any]:
    """The header as a Trace has it, from JSON values. Raises ValueError where a value cannot be
    one."""
    known = {name: header[name] for name in NAMES if name in header}
    for name in ("experts", "expert_bytes", "labels", "sources"):
        if name in known:
            kind = str if name in ("labels", "sources") else int
            known[name] = _all(kind, known[name], name)
    if not isinstance(known["model"], str) or not known["experts"] or known.get("labels") == ():
        raise ValueError("it names no model, no experts or no part")
    _within(known["experts"], 1, MOST_EXPERTS)
    _within(known["expert_bytes"], 0, MOST_BYTES)
    if len(known["experts"]) != len(known["expert_bytes"]):
        raise ValueError("it has experts for another number of layers")
    texts, settings = known.get("texts", {}), known.get("settings", {})
    if not isinstance(texts, dict) or not isinstance(settings, dict):
        raise ValueError("its texts or settings are no objects")
    known["texts"] = {int(token): text for token, text in texts.items()}
    _all(str, list(known["texts"].values()), "texts")
    return known


def _all(kind: type, values: Any, name: str) -> tuple:
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"{name} is not a list")
    if not all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
        raise ValueError(f"{name} has a value that is not of the type {kind.__name__}")
    return tuple(values)


def _within(numbers: tuple[int, ...], least: int, most: int) -> None:
    if not all(least <= number <= most for number in numbers):
        raise ValueError("a number in it is out of range")
