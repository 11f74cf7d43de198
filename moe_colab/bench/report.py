"""The report of a benchmark: one JSON object, printed and written to a file.

Knows the end of every benchmark; knows nothing of what was measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import MoEColabError
from ..files import write_file


def check_writable(out: str | Path | None) -> None:
    """Raises MoEColabError, before the work begins, where the folder of `out` is missing."""
    if out and not Path(out).absolute().parent.is_dir():
        raise MoEColabError(f"{out} cannot be written: its folder does not exist.")


def publish(report: dict[str, Any], out: str | Path | None = None) -> None:
    """Print the report on one line, the last one; write it to the file `out` too."""
    print(json.dumps(report), flush=True)
    if out:
        text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        write_file(out, text.encode())


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    head, *lines = (f"| {' | '.join(cells)} |" for cells in (heads, *rows))
    return "\n".join([head, "|" + "---|" * len(heads), *lines])


def main(doc: str, measure: Callable[[], dict[str, Any]]) -> None:
    """Run a benchmark that is a script of its own, with the argument --out."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write the JSON to this file too")
    args = parser.parse_args()
    check_writable(args.out)
    publish(measure(), args.out)
