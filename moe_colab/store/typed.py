"""Typed JSON: builds a frozen dataclass from JSON values and checks every type on the way.

Knows dataclasses of str, int, None, tuples, dictionaries and other dataclasses; knows no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
LARGEST = 2**63 - 1
hints = cache(get_type_hints)


def typed(kind: type[T], value: Any, where: str) -> T:
    """`value` as a `kind`. Raises ValueError, which names the place `where` it is another type, or
    where a dataclass lacks a field or has one more."""
    options = get_args(kind) if get_origin(kind) not in (tuple, dict) else ()
    if options:  # int | None
        if value is None and NoneType in options:
            return None
        kind = next(option for option in options if option is not NoneType)
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is not an object")
        names = {field.name for field in fields(kind)}
        if names != value.keys():
            raise ValueError(f"{where} has the wrong keys {sorted(names ^ value.keys())}")
        return kind(**{n: typed(hints(kind)[n], value[n], f"{where}.{n}") for n in names})
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where} is not a list")
        return tuple(typed(get_args(kind)[0], item, where) for item in value)
    plain = get_origin(kind) or kind
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        raise ValueError(f"{where} is not of the type {plain.__name__}")
    if plain is int and not -LARGEST <= value <= LARGEST:  # no array or table could hold it
        raise ValueError(f"{where} is too large a number")
    return value
