"""Downloads from the hub: a model's small files, the headers of its weights, and its weights file
by file.

Knows huggingface_hub, access tokens, and the files of a checkpoint. Does not know when a file is
needed or deleted: shards.py does.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from ..errors import MoEColabError
from ..files import one_line
from ..planner.access import hub_access
from ..planner.sizes import hub_entries, progress_bars
from ..store.safetensors import INDEX, SINGLE, TensorEntry, weight_files
from ..store.side_files import is_side_file
from .digests import check_digest
from .hub_errors import hub_errors

COLAB_SECRET = "HF_TOKEN"
PART = ".part"  # the suffix of a file that is not complete
PIECE, REQUEST = 1 << 20, 1 << 30  # bytes of one write, and of one request
TRIES, PAUSE = 5, 1.0  # tries without any new byte; seconds between two tries


@dataclass(frozen=True)
class Snapshot:
    """One revision of a model on the hub: `revision` is its commit, `folder` has its small files,
    in the hub's cache folder. `weights`: {safetensors file: bytes}, 0 in offline mode. `access`:
    with the token that may read it. `sha256`: of the files of which the hub tells it."""

    repo_id: str
    revision: str
    folder: Path
    weights: dict[str, int]
    access: HfApi
    sha256: Mapping[str, str] = field(default_factory=dict)

    def cached(self, name: str) -> Path | None:
        """The path of a file in the hub's cache folder, None where it is not there."""
        path = try_to_load_from_cache(self.repo_id, name, revision=self.revision)
        return Path(path) if isinstance(path, str) else None


def fetch(repo_id: str, revision: str | None = None, progress: bool = True) -> Snapshot:
    """A snapshot of a model: downloads its configuration and tokenizer, no weights. Raises
    MoEColabError where the model does not exist, or this user may not read it."""
    with hub_errors(repo_id, revision), progress_bars(progress):
        if constants.HF_HUB_OFFLINE:
            return from_cache(repo_id, revision)
        listing, access = with_colab_token(lambda hub: small_files(hub, repo_id, revision))
        sizes, sha256, folder = listing
        names = weight_files(folder, sizes)
        missing = [name for name in names if name not in sizes or "/" in name]
        if missing:
            raise MoEColabError(
                f"{repo_id} has no {missing[0]}: moe_colab needs its weights as {SINGLE} or in "
                f"shards with {INDEX}."
            )
        weights = {name: sizes[name] for name in names}
        return Snapshot(repo_id, folder.name, folder, weights, access, sha256)


def fetch_small(repo_id: str, revision: str | None, progress: bool = True) -> Path:
    """The folder of a repository's small files, such as a tokenizer, which are downloaded. Raises
    MoEColabError where it does not exist, or this user may not read it."""
    with hub_errors(repo_id, revision), progress_bars(progress):
        if constants.HF_HUB_OFFLINE:
            return Path(hub_access().snapshot_download(repo_id, revision=revision))
        return with_colab_token(lambda hub: small_files(hub, repo_id, revision))[0][2]


def small_files(
    hub: HfApi, repo_id: str, revision: str | None
) -> tuple[dict[str, int], dict[str, str], Path]:
    """(bytes of each file of a model by name, the sha256 of its large files, the folder of its
    small files), which are downloaded. Raises the hub's errors where its files may not be read: the
    hub lists those of a gated model to everybody, and the small ones may be here already, so one of
    them is asked for."""
    info = hub.model_info(repo_id, revision=revision, files_metadata=True)
    if info.gated:
        url = hf_hub_url(repo_id, "config.json", revision=info.sha, endpoint=hub.endpoint)
        hub.get_hf_file_metadata(url=url)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings}
    sha256 = {
        file.rfilename: file.lfs.sha256 for file in info.siblings if file.lfs and file.lfs.sha256
    }
    small = [name for name in sizes if is_side_file(name) or name == INDEX]
    # By the name that the user gave, which offline mode looks up again.
    folder = Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=small))
    for name in small:
        check_digest(folder / name, sha256.get(name))
    return sizes, sha256, folder


def from_cache(repo_id: str, revision: str | None) -> Snapshot:
    """The snapshot that an earlier download left. Its weights may be missing."""
    config = try_to_load_from_cache(repo_id, "config.json", revision=revision)
    if not isinstance(config, str):
        raise not_here(repo_id)
    folder = Path(config).parent
    weights = dict.fromkeys(weight_files(folder), 0)
    return Snapshot(repo_id, folder.name, folder, weights, hub_access())


def not_here(repo_id: str) -> MoEColabError:
    """The error for what offline mode does not allow to download."""
    return MoEColabError(
        f"{repo_id} is not on this machine, and offline mode is on: switch it off "
        "(HF_HUB_OFFLINE=0) to download the model."
    )


# ---------------------------------------------------------------------- weights
def announced(snapshot: Snapshot, name: str) -> dict[str, TensorEntry]:
    """The tensors of a file on the hub, by its header. Moves no weights."""
    with hub_errors(snapshot.repo_id, snapshot.revision):
        if constants.HF_HUB_OFFLINE:
            raise not_here(snapshot.repo_id)
        try:
            header = snapshot.access.parse_safetensors_file_metadata(
                snapshot.repo_id, name, revision=snapshot.revision
            )
        except (TypeError, AttributeError, ValueError, RecursionError) as error:
            raise MoEColabError(
                f"{name} of {snapshot.repo_id} is not a complete safetensors file: "
                f"{one_line(error)}."
            ) from error
        return hub_entries(header, snapshot.folder / name)


def download(
    snapshot: Snapshot,
    name: str,
    folder: Path,
    stop: threading.Event,
    arrived: Callable[[int], object],
) -> Path:
    """Download one file of the weights to `folder`, compare its sha256 with the hub's, and return
    its path. Goes on where an earlier download of it was stopped, failed or killed. Calls `arrived`
    with the bytes of every piece; raises CancelledError once `stop` is set, and MoEColabError.

    This is not huggingface_hub's own download: since 1.18 that starts an interrupted file again and
    leaves the first part on the disk, and its xet transfer can keep a cache of chunks. Both take
    disk that nobody counts.
    """
    path, part, size = folder / name, folder / (name + PART), snapshot.weights[name]
    with hub_errors(snapshot.repo_id, snapshot.revision, folder):
        folder.mkdir(parents=True, exist_ok=True)
        if os.path.exists(path):
            arrived(size)
            return path
        with open(part, "a+b") as file:
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256")  # and to the end
            arrived(file.tell())
            idle = 0
            while file.tell() < size:
                before = file.tell()
                try:
                    for piece in pieces(snapshot, name, before, size):
                        if stop.is_set():
                            raise CancelledError
                        file.write(piece)
                        digest.update(piece)
                        arrived(len(piece))
                    if file.tell() == before:
                        break
                except HTTPError:
                    idle = 0 if file.tell() > before else idle + 1
                    if idle == TRIES:
                        raise
                    if stop.wait(PAUSE):
                        raise CancelledError from None
            file.flush()
            os.fsync(file.fileno())
        if part.stat().st_size != size:
            part.unlink()
            raise MoEColabError(
                f"{name} of {snapshot.repo_id} is not of the size that the hub announced: try "
                "again later."
            )
        if digest.hexdigest() != snapshot.sha256.get(name, digest.hexdigest()):
            part.unlink()
            raise MoEColabError(
                f"{name} of {snapshot.repo_id} was damaged on its way: its sha256 is not the one "
                "that the hub has. It was deleted: try again."
            )
        return part.rename(path)


def pieces(snapshot: Snapshot, name: str, start: int, size: int) -> Iterator[bytes]:
    """The bytes of a file from `start` on, as many as one request asks for."""
    hub = snapshot.access
    url = hf_hub_url(snapshot.repo_id, name, revision=snapshot.revision, endpoint=hub.endpoint)
    headers = {
        **build_hf_headers(token=hub.token),
        "Range": f"bytes={start}-{min(start + REQUEST, size) - 1}",
        "Accept-Encoding": "identity",  # else the range could be one of a compressed file
    }
    with get_session().stream(
        "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
    ) as response:
        hf_raise_for_status(response)
        skip = start if response.status_code == 200 else 0  # the server ignores ranges
        for piece in response.iter_bytes(PIECE):
            yield piece[skip:]
            skip = max(0, skip - len(piece))


# ---------------------------------------------------------------------- access
def with_colab_token(call: Callable[[HfApi], Any]) -> tuple[Any, HfApi]:
    """(the call's result, the access that it worked with): the user's own access, or, if the hub
    refuses it on Colab, access with the token in Colab's secrets. Reading a secret asks the user,
    so it is read only then."""
    try:
        return call(hub_access()), hub_access()
    except (GatedRepoError, RepositoryNotFoundError):
        token = colab_token()
        if token is None:
            raise
        return call(hub_access(token)), hub_access(token)


def colab_token() -> str | None:
    """The token in Colab's secrets, None where there is none."""
    try:
        from google.colab import userdata
    except ImportError:
        return None
    try:
        return userdata.get(COLAB_SECRET) or None
    except Exception:  # Colab has three: not granted, not there, no answer
        return None
