"""A double of the Hugging Face hub on loopback, as far as huggingface_hub asks it, for one process's `HF_ENDPOINT`."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

_FILE = re.compile(r"/(?:resolve/[^/]+|cdn/.+/[0-9a-f]{40})/(.+)")
LARGE = 4096  # bytes from which a file counts as one of LFS


@dataclass
class Repo:
    """A repository: files by revision. `access` is the error code of a repository that is closed to clients without
    `token`."""

    files: dict[str, bytes]
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    access: str | None = None
    token: str = "hf_secret"

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a branch, a tag or a commit."""
        revisions = {"main": self.files, **self.revisions}
        by_commit = {commit_of(files): files for files in revisions.values()}
        files = revisions.get(revision, by_commit.get(revision))
        return None if files is None else (commit_of(files), files)


@dataclass
class Hub:
    """What the double has, and what it was asked: (method, path, Range header). `cut` are files whose next download
    breaks off in the middle, `stuck` those whose download never goes on after it."""

    url: str
    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    cut: set[str] = field(default_factory=set)
    stuck: set[str] = field(default_factory=set)
    half_sent: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)
    answers: int | None = None  # a status that everything gets

    def fetched(self) -> set[str]:
        """Names of the files that were downloaded, wholly or in part."""
        got = (_FILE.search(path) for method, path, _ in self.asked if method == "GET")
        return {match[1] for match in got if match}


def commit_of(files: dict[str, bytes]) -> str:
    """A commit: 40 hexadecimal digits of names and contents."""
    content = b"".join(name.encode() + b"\0" + data for name, data in sorted(files.items()))
    return hashlib.sha1(content).hexdigest()


@contextmanager
def hub_double() -> Iterator[Hub]:
    """A running double."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    @property
    def hub(self) -> Hub:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        return hub

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path, self.headers.get("Range")))
        if self.hub.answers is not None:
            self._send(self.hub.answers, b"")
        elif match := re.fullmatch(r"/api/models/(.+?)(?:/(revision|tree)/(.+?))?/?", path):
            self._api(match[1], match[2], match[3] or "main")
        elif match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/cdn/(.+)/([0-9a-f]{40})/(.+)", path):
            self._content(match[3], self.hub.repos[match[1]].at(match[2])[1][match[3]])  # type: ignore[index]
        else:
            self._send(404, b"")

    def _api(self, name: str, kind: str | None, revision: str) -> None:
        found = self._found(name, revision)
        if found is None:
            return
        commit, files = found
        if kind == "tree":
            answer: object = [_entry(path, data) for path, data in files.items()]
        else:
            answer = {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, revision: str, file: str) -> None:
        found = self._found(name, revision)
        if found is None:
            return
        commit, files = found
        if file not in files:
            self._refuse(404, "EntryNotFound", commit)
            return
        data = files[file]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        if len(data) < LARGE:
            self._content(file, data, headers)
            return
        store = self.hub.url.replace("127.0.0.1", "localhost")  # another host, which gets no token
        headers |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        self._send(302, b"", headers | {"Location": f"{store}/cdn/{name}/{commit}/{file}"})

    def _content(self, file: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(start[1]) if start else 0
        more = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"} if start else {}
        stops = file in self.hub.cut | self.hub.stuck and self.command == "GET" and len(data) - first > 1
        self._head(206 if start else 200, len(data) - first, {**(headers or {}), **more})
        if self.command == "HEAD":
            return
        half = first + (len(data) - first) // 2
        self.wfile.write(data[first:half] if stops else data[first:])
        if stops:
            self.hub.cut.discard(file)
            self.hub.half_sent.set()
            if file in self.hub.stuck:
                self.hub.closing.wait()
            self.close_connection = True

    def _found(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files, or an answer that there are none."""
        repo = self.hub.repos.get(name)
        signed = repo is not None and self.headers.get("Authorization") == f"Bearer {repo.token}"
        if repo is None or (repo.access and not signed):
            self._refuse(401, (repo and repo.access) or "RepoNotFound")
            return None
        found = repo.at(revision)
        if found is None:
            self._refuse(404, "RevisionNotFound")
        return found

    def _refuse(self, status: int, code: str, commit: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code}
        self._send(status, b"", headers | ({"X-Repo-Commit": commit} if commit else {}))

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._head(status, len(body), headers or {})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def _entry(path: str, data: bytes) -> dict[str, object]:
    """A file in a tree."""
    oid = hashlib.sha1(data).hexdigest()
    lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return {"type": "file", "path": path, "size": len(data), "oid": oid} | ({"lfs": lfs} if len(data) >= LARGE else {})
