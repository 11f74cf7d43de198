"""How a user names a model: "shipped", a folder, org/name, or an address on the hub.

Knows names and addresses. Asks the disk only whether a path exists, and the hub nothing.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from huggingface_hub import constants

from ..errors import MoEColabError

SHIPPED = "shipped"  # the name of load()'s None in a form field
HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
HUB = f"https://{HOSTS[0]}"
REPO_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
NO_MODELS = {
    "datasets": "a data set",
    "spaces": "a space",
    "collections": "a collection",
    "papers": "a paper",
}


class Named(NamedTuple):
    """What a user named: `source` is None, "shipped", a path or org/name."""

    source: str | os.PathLike[str] | None
    revision: str | None


def is_repo_id(source: object) -> bool:
    """Whether `source` looks like org/name."""
    return isinstance(source, str) and REPO_ID.fullmatch(source) is not None


def named(source: str | os.PathLike[str] | None, revision: str | None = None) -> Named:
    """`source` without spaces around it, and as org/name where it is the address of a model on the
    hub or on the mirror of HF_ENDPOINT: https://huggingface.co/org/name, also with a revision
    (…/tree/v1) or a file of it. Other sources stay as they are. Raises MoEColabError for other
    addresses, and where the address has another revision than `revision`."""
    if not isinstance(source, str) or os.path.exists(source):
        return Named(source, revision)
    text = source.strip()
    page = page_of(text)
    if page is None:
        name = text.rstrip("/")
        return Named(name if is_repo_id(name) else text, revision)
    parts = [unquote(part) for part in re.split("[?#]", page)[0].split("/") if part]
    name = "/".join(parts[:2]).removesuffix(".git")
    if parts and parts[0] in NO_MODELS:
        raise MoEColabError(f"{text} is {NO_MODELS[parts[0]]}: name a model, as org/name.")
    if not is_repo_id(name):
        raise MoEColabError(f"{text} is not the page of a model: name a model, as org/name.")
    if len(parts) < 4 or parts[2] not in ("tree", "blob", "resolve", "raw", "commit"):
        return Named(name, revision)
    if revision not in (None, parts[3]):
        raise MoEColabError(
            f"the address has the revision {parts[3]!r}, and revision={revision!r} is another: "
            f"give {name!r} with one of them."
        )
    return Named(name, revision or (None if parts[3] == "main" else parts[3]))


def folder_name(folder: Path) -> str:
    """The name of the model in a checkpoint's folder: org/name for one in the hub's cache folder,
    where it is …/models--org--name/snapshots/REVISION; else the folder's own name."""
    folder = folder.resolve()
    kind, *name = folder.parent.parent.name.split("--")
    if folder.parent.name == "snapshots" and kind == "models" and len(name) >= 2:
        return f"{name[0]}/{'--'.join(name[1:])}"
    return folder.name


def page_of(text: str) -> str | None:
    """The path of a page on the hub; None for what is no address. Raises MoEColabError for the
    address of another host."""
    scheme, found, rest = text.partition("://")
    if not found:
        rest = text
    elif scheme.lower() not in ("http", "https"):
        return None
    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).partition("://")[2]
    for start in (*HOSTS, endpoint.rstrip("/")):
        if f"{rest}/".lower().startswith(f"{start}/".lower()):
            return rest[len(start) :]
    if found:
        raise MoEColabError(
            f"{text} is not an address on {HOSTS[0]}: name a folder on this machine, or a model of "
            "the hub as org/name."
        )
    return None


def source_of(choice: str | os.PathLike[str] | None) -> str | os.PathLike[str] | None:
    """The source that a form field names: None for "shipped" or "", which is the small model, and
    other text as in `named`. Raises MoEColabError as `named` does, and for a revision."""
    source, revision = named(choice)
    if revision is not None:
        raise MoEColabError(
            f"sizes are known for the main branch only, not for {revision!r}: give {source!r}."
        )
    return None if source in ("", SHIPPED) else source
