"""Mutants of files: what a disk, a network, a tool or a person may have made of their bytes.

Each mutator is a function of the bytes and of a `random.Random`, and returns other bytes. It knows
the structure of its kind of file, so that many mutants pass the first checks of a reader. Knows no
reader and no folder.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np

from ..store.manifest import sealed

Mutator = Callable[[bytes, Random], bytes]

NUMBERS = (0, 1, -1, 2, 7, 2**31, 2**63, 10**12, 10**30, 0.5, -0.0, 1e300, float("nan"))
VALUES = (
    *NUMBERS,
    None,
    True,
    False,
    "",
    "x",
    "../x",
    "/x",
    "a\0b",
    "\ud800",
    [],
    {},
    [1],
    {"a": 1},
)
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F9")


# ---------------------------------------------------------------------- bytes
def of_bytes(data: bytes, dice: Random) -> bytes:
    """One piece of the file is flipped, cut, lost, doubled, blanked, moved or made of noise."""
    data = data or b"\0"
    size = len(data)
    start, length = dice.randrange(size), dice.choice((1, 1, 8, 100, size))
    before, piece, after = data[:start], data[start : start + length], data[start + length :]
    return dice.choice(
        (
            lambda: one_bit(data, dice),
            lambda: before,
            lambda: before + after,
            lambda: before + piece + piece + after,
            lambda: before + bytes(len(piece)) + after,
            lambda: after + piece + before,
            lambda: before + dice.randbytes(len(piece)) + after,
            lambda: data + dice.randbytes(length % 1000),
        )
    )()


def one_bit(data: bytes, dice: Random) -> bytes:
    """One bit of the file is flipped."""
    place = dice.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :]


# ---------------------------------------------------------------------- JSON
def of_json(data: bytes, dice: Random) -> bytes:
    """One value of a JSON text is changed, or its bytes are."""
    if dice.random() < 0.2:
        return of_bytes(data, dice)
    if dice.random() < 0.03:
        return dice.choice((b"[", b'{"a":')) * 100_000
    return json.dumps(changed(json.loads(data), dice)).encode()


def changed(value: Any, dice: Random) -> Any:
    """A JSON value in which one place is another: another value, none, twice, or a neighbour's."""
    places = list(_places(value))
    if not places:
        return dice.choice(VALUES)
    holder, key = dice.choice(places)
    kind = dice.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[dice.choice(("x", "name", "shape", "__metadata__", "nbytes"))] = dice.choice(VALUES)
    elif kind == 1:
        holder.insert(key, holder[key])
    elif kind == 2:
        other, place = dice.choice(places)
        holder[key], other[place] = other[place], holder[key]
    elif kind == 3 and type(holder[key]) is int:
        holder[key] += dice.choice((-4096, -64, -1, 1, 64, 4096))
    else:
        holder[key] = dice.choice(VALUES)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of every value inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from _places(inner)


def of_manifest(data: bytes, dice: Random) -> bytes:
    """One value of a store's manifest is changed; its digest may fit all the same."""
    mutant = of_json(data, dice)
    try:
        body = json.loads(mutant)
        fits = dice.random() < 0.7 and isinstance(body, dict) and "format" in body
        return sealed(body).encode() if fits else mutant
    except (ValueError, RecursionError):
        return mutant


# ---------------------------------------------------------------------- safetensors
def of_safetensors(data: bytes, dice: Random) -> bytes:
    """The header is changed, in one value or in the way of another tool, or some bytes are."""
    if dice.random() < 0.3:
        return of_bytes(data, dice)
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    one, other = header[dice.choice(names)], header[dice.choice(names)]
    kind = dice.randrange(8)
    if kind == 0:
        one["data_offsets"] = other["data_offsets"]
    elif kind == 1:
        one["data_offsets"] = [n + dice.choice((-64, -4, 4, 64)) for n in one["data_offsets"]]
    elif kind == 2:
        one["dtype"] = dice.choice(DTYPES)
    elif kind == 3:
        one["shape"] = dice.choice(
            ([*one["shape"], 1], one["shape"][::-1], [-n for n in one["shape"]])
        )
    elif kind == 4:
        header[dice.choice(names)] = header.pop(dice.choice(names))
    elif kind == 5:
        body += dice.randbytes(dice.choice((1, 4, 4096)))
    else:
        changed(header, dice)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


# ---------------------------------------------------------------------- lines
def of_lines(data: bytes, dice: Random) -> bytes:
    """One line is lost, doubled, moved, cut, or has another number; or some bytes change."""
    if dice.random() < 0.2:
        return of_bytes(data, dice)
    lines = data.split(b"\n")
    one, other = dice.randrange(len(lines)), dice.randrange(len(lines))
    kind = dice.randrange(5)
    if kind == 0:
        del lines[one]
    elif kind == 1:
        lines.insert(other, lines[one])
    elif kind == 2:
        lines[one], lines[other] = lines[other], lines[one]
    elif kind == 3:
        lines[one] = lines[one][: dice.randrange(1 + len(lines[one]))]
    else:
        lines[one] = _other_field(lines[one], dice)
    return b"\n".join(lines)


def _other_field(line: bytes, dice: Random) -> bytes:
    separator = dice.choice((b",", b" ", b"=", b'"'))
    fields = line.split(separator)
    fields[dice.randrange(len(fields))] = str(dice.choice(NUMBERS)).encode()
    return separator.join(fields)


def of_journal(data: bytes, dice: Random) -> bytes:
    """A line of a store's journal is lost or changed; its crc32 may fit all the same."""
    if dice.random() < 0.6:
        return of_lines(data, dice)
    lines = [line for line in data.split(b"\n") if line]
    one = dice.randrange(len(lines))
    note = json.dumps(changed(json.loads(lines[one][9:]), dice)).encode()
    lines[one] = f"{zlib.crc32(note):08x} ".encode() + note
    return b"\n".join(lines) + b"\n"


# ---------------------------------------------------------------------- archives
def of_archive(data: bytes, dice: Random) -> bytes:
    """An array of an .npz file has other values, another dtype or shape, or is gone; the header in
    the member `moe_colab` has another value; or some bytes change."""
    if dice.random() < 0.3:
        return of_bytes(data, dice)
    with np.load(io.BytesIO(data)) as file:
        arrays = dict(file)
    name = dice.choice(list(arrays))
    array, kind = arrays[name], dice.randrange(6)
    if name == "moe_colab" or kind == 0:
        header = changed(json.loads(arrays["moe_colab"].tobytes()), dice)
        arrays["moe_colab"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    elif kind == 1:
        del arrays[name]
    elif kind == 2:
        with np.errstate(all="ignore"):
            arrays[name] = array.astype(dice.choice(("i8", "f4", "u1", "U5", "bool", "c8")))
    elif kind == 3:
        arrays[name] = dice.choice((array[:-1], array[None], array.reshape(-1), array[:0]))
    elif kind == 4 and array.size:
        array = array.copy()
        array.flat[dice.randrange(array.size)] = dice.choice((0, 1, 100))
        arrays[name] = array
    else:
        arrays["x." + name] = array
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def claims(data: bytes, dice: Random) -> bytes:
    """An .npz file of which one array claims another shape than it has bytes for."""
    out, member = io.BytesIO(), None
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        members = old.infolist()
        member = dice.choice(members).filename
        for info in members:
            content = old.read(info)
            if info.filename == member:
                size = dice.choice((b"(9999999999,)", b"(-1,)", b"(99999, 99999, 99999)"))
                at = content.index(b"(")
                end = content.index(b")", at) + 1
                rest = content[end : content.index(b"\n", end)]
                padded = size + rest[: max(0, len(rest) - len(size) + end - at)]
                content = content[:at] + padded + content[at + len(padded) :]
            new.writestr(info.filename, content)
    return out.getvalue()
