"""Archive: arrays and a header in one compressed .npz file, which is complete or refused.

A record array is stored column by column, which takes half the bytes. Knows files, versions and
damage; knows nothing of what the arrays mean.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import MoEColabError
from ..files import one_line, read_file, write_file
from ..machine.interrupts import deferred_interrupts

MOST = 4 << 30  # bytes of a file, packed or not
HEADER = "moe_colab"  # the member that marks a file as ours


def write(
    path: str | os.PathLike[str], kind: str, version: int, header: Mapping[str, Any], **arrays
) -> None:
    """Write the file, complete or not at all. Raises MoEColabError where it cannot be written."""
    text = json.dumps({"kind": kind, "version": version, **header}, ensure_ascii=False)
    whole = io.BytesIO()
    marked = {HEADER: np.frombuffer(text.encode(), np.uint8), **columns(arrays)}
    with deferred_interrupts():  # zipfile would raise an error of its own
        np.savez_compressed(whole, allow_pickle=False, **marked)
    write_file(path, whole.getbuffer())


def read(
    path: str | os.PathLike[str], kind: str, version: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read (header, arrays by name). Raises MoEColabError for a file that is missing, damaged, of
    another kind or of a later version."""
    try:
        content = io.BytesIO(read_file(path, f"{path} does not exist: name a saved file.", MOST))
        with zipfile.ZipFile(content) as archive:
            if sum(member.file_size for member in archive.infolist()) > MOST:
                raise ValueError("it unpacks to more than any trace")
            damaged = archive.testzip()  # the crc of every member
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} has a wrong checksum")
        content.seek(0)
        with np.load(content, allow_pickle=False) as file:
            arrays = tables({name: file[name] for name in file.files})
        header = json.loads(arrays.pop(HEADER).tobytes())
        file_kind, file_version = str(header.pop("kind")), int(header.pop("version"))
    except MoEColabError:
        raise
    except Exception as error:  # zipfile, zlib, numpy and json share no error class
        raise MoEColabError(
            f"{path} is not a complete {kind} of moe_colab ({one_line(error)}): it "
            "is damaged, or of another program. Use another file."
        ) from error
    if file_kind != kind or file_version > version:
        raise MoEColabError(
            f"{path} is a {file_kind} of version {file_version}, and this moe_colab reads a {kind} "
            f"up to version {version}: install a newer moe_colab, or name another file."
        )
    return header, arrays


def columns(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Record arrays as plain arrays, named "table.column"."""
    out = {}
    for name, array in arrays.items():
        if array.dtype.names is None:
            out[name] = array
        else:
            out |= {f"{name}.{column}": array[column] for column in array.dtype.names}
    return out


def tables(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `columns`: "table.column" arrays as record arrays. Raises ValueError where
    columns differ in length."""
    out, parts_of = {}, {}
    for name, array in arrays.items():
        table, dot, column = name.partition(".")
        if dot:
            parts_of.setdefault(table, {})[column] = array
        else:
            out[name] = array
    for table, parts in parts_of.items():
        length = len(next(iter(parts.values())))
        out[table] = np.empty(length, [(column, array.dtype) for column, array in parts.items()])
        for column, array in parts.items():
            if array.shape != (length,):
                raise ValueError(f"{table}.{column} is {array.shape}, not {(length,)}")
            out[table][column] = array
    return out
