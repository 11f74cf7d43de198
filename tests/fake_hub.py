"""A hub on 127.0.0.1: serves folders as models, notes what it is asked, and can break or refuse."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

COMMIT = "c0ffee" + "0" * 34
LARGE = ("tokenizer.json",)  # beside all weights
HEADER = "bytes=0-100000"  # what huggingface_hub asks for to read a safetensors header


class FakeHub:
    """`models`: folder of each repo id. `gated`: repo ids whose files need `token`; everybody may
    list them, as on the real hub. `strangers`: tokens of accounts that may not read these;
    `narrow`: tokens without the right to do so; other tokens are unknown. `break_at[file]`: how
    many bytes of it are sent before the connection is cut, once per entry of the list. `sent` and
    `peeked`: bytes sent of each file, as a whole or in parts, and for its header. `begun[file]`:
    the first byte of every such part. `watch` is called before every `piece` bytes of weights,
    `pause` seconds apart. `instead[file]`: what is sent for it, but not for its header.
    `elsewhere`: address of another such hub, which weights are fetched from. `parts`: whether it
    sends parts of files, other than headers. `tokens`: what it was shown."""

    def __init__(self):
        self.models: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.token = "hf_secret"
        self.strangers: set[str] = set()
        self.narrow: set[str] = set()
        self.break_at: dict[str, list[int]] = {}
        self.asked: list[tuple[str, str]] = []
        self.sent: Counter[str] = Counter()
        self.peeked: Counter[str] = Counter()
        self.begun: dict[str, list[int]] = defaultdict(list)
        self.instead: dict[str, bytes] = {}
        self.watch: Callable[[], object] = lambda: None
        self.piece, self.pause = 4000, 0.0
        self.elsewhere, self.parts = "", True
        self.tokens: set[str | None] = set()
        self.down = False

    @contextmanager
    def reachable(self, monkeypatch, folder: Path):
        """This process and its children use this hub, with a new cache in `folder` and no token."""
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
        monkeypatch.setenv("MOE_COLAB_CACHE", str(folder / "stores"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        with self.serving() as address:
            monkeypatch.setenv("HF_ENDPOINT", address)
            yield self

    @contextmanager
    def serving(self):
        handler = type("Handler", (Handler,), {"hub": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Say nothing."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        self.hub.tokens.add(self.headers.get("Authorization"))
        if self.hub.down:
            return self.refuse(503, "")
        api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models").strip("/").split("/")
        repo, rest = "/".join(parts[:2]), parts[2:]
        if repo not in self.hub.models:
            return self.refuse(401, "RepoNotFound")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", self.hub.token, *self.hub.strangers, *self.hub.narrow):
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        if repo in self.hub.gated and not api and token != self.hub.token:
            if token in self.hub.narrow:
                return self.refuse(403, "", "Please enable access to public gated repositories")
            return self.refuse(403 if token else 401, "GatedRepo")
        if rest and rest[0] in ("revision", "tree", "resolve") and rest[1] not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        folder = self.hub.models[repo]
        if api:
            gated = repo in self.hub.gated
            listing = tree(folder) if rest[:1] == ["tree"] else info(repo, folder, gated)
            return self.send(
                json.dumps(listing).encode(), {"Content-Type": "application/json"}, body
            )
        file = folder / "/".join(rest[2:])
        if not file.is_file():
            return self.refuse(404, "EntryNotFound")
        if self.hub.elsewhere and file.suffix == ".safetensors":
            return self.start(302, 0, {"Location": self.hub.elsewhere + self.path})
        self.send_file(file, body)

    def send_file(self, file: Path, body: bool) -> None:
        wanted = self.headers.get("Range")
        header = wanted == HEADER
        data = file.read_bytes() if header else self.hub.instead.get(file.name, file.read_bytes())
        etag = large(file)["lfs"]["sha256"] if large(file) else digest(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        start, end = 0, len(data)
        if not header and not self.hub.parts:
            wanted = None
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(len(data), int(last or len(data)) + 1)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        counted = self.hub.peeked if header else self.hub.sent
        cuts = self.hub.break_at.get(file.name) if body and not header else None
        cut = start + cuts.pop(0) if cuts else end
        self.start(206 if wanted else 200, end - start, headers)
        if not body:
            return
        if not header:
            self.hub.begun[file.name].append(start)
        try:
            for at in range(start, min(cut, end), self.hub.piece):
                if file.suffix == ".safetensors" and not header:
                    self.hub.watch()
                    time.sleep(self.hub.pause)
                piece = data[at : min(at + self.hub.piece, cut, end)]
                self.wfile.write(piece)
                counted[file.name] += len(piece)
        except ConnectionError:  # who asked was killed
            cut = 0
        if cut < end:
            self.close_connection = True
            self.connection.close()

    def send(self, data: bytes, headers: dict, body: bool, code: int = 200) -> None:
        self.start(code, len(data), headers)
        if body:
            self.wfile.write(data)

    def refuse(self, code: int, reason: str, message: str = "") -> None:
        headers = {"X-Error-Code": reason} if reason else {}
        self.start(code, 0, {**headers, "X-Error-Message": message or reason})

    def start(self, code: int, length: int, headers: dict) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": length}.items():
            self.send_header(name, str(value))
        self.end_headers()


def digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def info(repo: str, folder: Path, gated: bool) -> dict:
    siblings = [
        {
            "rfilename": path.relative_to(folder).as_posix(),
            "size": path.stat().st_size,
            "blobId": digest(path.read_bytes()),
            **large(path),
        }
        for path in files(folder)
    ]
    facts = {"private": False, "gated": "manual" if gated else False, "tags": []}
    return {"id": repo, "sha": COMMIT, "siblings": siblings, **facts}


def large(path: Path) -> dict:
    """What the hub adds for a large file, whose bytes lie in another place than its git history."""
    if path.suffix != ".safetensors" and path.name not in LARGE:
        return {}
    size, sha256 = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    return {"lfs": {"sha256": sha256, "size": size, "pointerSize": 134}}


def tree(folder: Path) -> list[dict]:
    return [
        {
            "type": "file",
            "path": path.relative_to(folder).as_posix(),
            "size": path.stat().st_size,
            "oid": digest(path.read_bytes()),
        }
        for path in files(folder)
    ]
