"""A model hub on the loopback address: what huggingface_hub asks of the real one, and faults where a test sets them.

Files of weights are LFS files: they are asked for on the hub's own address, which redirects to a second one, as the
real hub redirects to its CDN. All else is served by the hub itself.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

FaultKind = Literal[
    "gated", "forbidden", "no_repository", "no_revision", "no_file", "rate_limited", "unavailable", "slow", "cut",
    "wrong", "reset",
]  # fmt: skip
# Status, code and message of the refusals, as the hub words them.
_REFUSALS: Mapping[str, tuple[int, str | None, str]] = {
    "gated": (401, "GatedRepo", "Access to model {repo} is restricted. You must be authenticated to access it."),
    "forbidden": (403, None, "Authorization error."),
    "no_repository": (404, "RepoNotFound", "Repository not found"),
    "no_revision": (404, "RevisionNotFound", "Invalid rev id: {revision}"),
    "no_file": (404, "EntryNotFound", "Entry not found"),
    "rate_limited": (429, None, "Too Many Requests"),
    "unavailable": (503, None, "Service Unavailable"),
}
_OF_BODIES = frozenset({"slow", "cut", "wrong", "reset"})
_LFS = (".safetensors", ".bin", ".pt", ".gguf", ".h5", ".msgpack")
_PAGE = 100
_CHUNK = 1 << 14


@dataclass
class Fault:
    """What goes wrong with the requests that it is of.

    `revision` and `file` are patterns; a revision is matched by each of its names and by its commit. `file` None: the
    API, not the files. `times` None: for ever. `after`: bytes of the body before it is slow, cut or reset; None: half.
    """

    kind: FaultKind
    repo: str = "*"
    revision: str = "*"
    file: str | None = "*"
    times: int | None = None
    after: int | None = None
    retry_after: int = 0
    status: int | None = None


@dataclass(frozen=True)
class Request:
    """A request that the server has read. `revision` and `file` as it names them; None where it names none."""

    method: str
    path: str
    revision: str | None = None
    file: str | None = None
    range: str | None = None


@dataclass
class _Repository:
    name: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit_of(self, revision: str) -> str | None:
        names = {**self.tags, **self.branches}
        return names.get(revision) or (revision if revision in self.commits else None)

    def names_of(self, revision: str) -> set[str]:
        commit = self.commit_of(revision)
        return {revision} | {name for name, at in {**self.tags, **self.branches}.items() if at == commit}


class HubServer:
    """A hub in this process. Close it, or use it in a `with`.

    `requests` are those that it has read, `bytes_sent` counts those of files. `pace` is in bytes per second for each
    file; None: as fast as it goes. `before` is called with each request before it is answered.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.bytes_sent = 0
        self.pace: float | None = None
        self.before: Callable[[Request], None] = lambda request: None
        self.closing = threading.Event()
        self.blobs: dict[str, bytes] = {}
        self._repositories: dict[str, _Repository] = {}
        self._renamed: dict[str, str] = {}
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._servers = [_serve(self), _serve(self)]
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> HubServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop to serve; a slow body ends at once."""
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def put(self, repo: str, revision: str, files: Path | Mapping[str, bytes], *, is_tag: bool = False) -> str:
        """Point a branch or tag at a commit of its own with these files, or those of a folder; return the commit."""
        if isinstance(files, Path):
            files = {str(f.relative_to(files)): f.read_bytes() for f in sorted(files.rglob("*")) if f.is_file()}
        repository = self._repositories.setdefault(repo, _Repository(repo))
        listed = json.dumps([repo, len(repository.commits), [(name, blob_of(name, files[name])) for name in files]])
        commit = hashlib.sha1(listed.encode()).hexdigest()
        repository.commits[commit] = dict(files)
        self.blobs.update({blob_of(name, body): body for name, body in files.items() if is_lfs(name)})
        (repository.tags if is_tag else repository.branches)[revision] = commit
        return commit

    def point(self, repo: str, revision: str, commit: str) -> None:
        """Point a branch at a commit of the repository."""
        self._repositories[repo].branches[revision] = commit

    def remove(self, repo: str, revision: str) -> None:
        """Remove a branch or tag; its commit stays."""
        repository = self._repositories[repo]
        repository.branches.pop(revision, None)
        repository.tags.pop(revision, None)

    def rename(self, repo: str, to: str) -> None:
        """Rename a repository; its former name redirects, as the hub's does."""
        repository = self._repositories.pop(repo)
        repository.name = to
        self._repositories[to] = repository
        self._renamed[repo] = to

    def fault(self, kind: FaultKind, **of: Any) -> Fault:
        """Add a fault; the fields are those of `Fault`."""
        self._faults.append(Fault(kind, **of))
        return self._faults[-1]

    def heal(self) -> None:
        """Remove every fault."""
        self._faults.clear()

    def gets(self, file: str = "*") -> list[Request]:
        """The requests for the bodies of files."""
        return [r for r in self.requests if r.method == "GET" and r.file and fnmatch.fnmatch(r.file, file)]

    def repository(self, name: str) -> _Repository | str | None:
        """The repository of a name, or the name that it has now; None if there is none."""
        return self._repositories.get(name) or self._renamed.get(name)

    def search(self, author: str, words: str) -> list[str]:
        """The names of the repositories of an author with words in them."""
        owned = (n for n in self._repositories if not author or n.split("/")[0] == author)
        return sorted(name for name in owned if words.lower() in name.lower())

    def take_fault(self, repository: _Repository, revision: str, file: str | None, *, of_body: bool) -> Fault | None:
        """The first fault of a request, which counts as shown."""
        names = repository.names_of(revision)
        with self._lock:
            for fault in self._faults:
                is_of_file = (file is None) == (fault.file is None) and fnmatch.fnmatch(file or "", fault.file or "")
                is_of_revision = any(fnmatch.fnmatch(name, fault.revision) for name in names)
                is_of = is_of_file and is_of_revision and fnmatch.fnmatch(repository.name, fault.repo)
                if is_of and (fault.kind in _OF_BODIES) == of_body and fault.times != 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None

    def count(self, request: Request) -> None:
        """Note a request."""
        with self._lock:
            self.requests.append(request)

    def count_bytes(self, n: int) -> None:
        """Count bytes of a file that are sent."""
        with self._lock:
            self.bytes_sent += n


def is_lfs(name: str) -> bool:
    """Whether the hub keeps a file of this name outside git."""
    return name.endswith(_LFS)


def blob_of(name: str, body: bytes) -> str:
    """The blob of a file: its sha256 if it is an LFS file, else its git blob."""
    if is_lfs(name):
        return hashlib.sha256(body).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def _serve(hub: HubServer) -> ThreadingHTTPServer:
    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for the client's word on the headers

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing."""

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client went away, or was killed
            super().handle()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        if url.path.startswith("/cdn/"):
            self._cdn(*url.path.removeprefix("/cdn/").split("/", 2))
        elif url.path == "/api/models":
            self.hub.count(Request(self.command, self.path))
            names = self.hub.search(query.get("author", ""), query.get("search", ""))
            self._json([{"id": name, "modelId": name, "tags": [], "private": False} for name in names])
        elif at := re.fullmatch(
            r"/api/models/((?:[^/]+/(?!(?:refs|revision|tree)(?:/|$)))?[^/]+?)(?:/(refs|revision|tree)(?:/([^/]+)(?:/(.*))?)?)?",
            url.path,
        ):
            repo, what, revision, under = (None if part is None else unquote(part) for part in at.groups())
            self._api(str(repo), what or "revision", revision or "main", {**query, "under": under or ""})
        elif at := re.fullmatch(r"/((?:[^/]+/)?[^/]+)/resolve/([^/]+)/(.+)", url.path):
            self._file(*map(unquote, at.groups()))
        else:
            self._status(404, None, "Not Found")

    def _api(self, repo: str, what: str, revision: str, query: dict[str, str]) -> None:
        request = Request(self.command, self.path, None if what == "refs" else revision)
        repository = self._repository(repo, request)
        if repository is None:
            return None
        if fault := self.hub.take_fault(repository, revision, None, of_body=False):
            return self._refuse(fault, revision)
        if what == "refs":
            refs = {"branches": repository.branches, "tags": repository.tags}
            prefix = {"branches": "refs/heads/", "tags": "refs/tags/"}
            return self._json(
                {"converts": [], "pullRequests": []}
                | {
                    kind: [{"name": n, "ref": prefix[kind] + n, "targetCommit": c} for n, c in named.items()]
                    for kind, named in refs.items()
                }
            )
        commit = repository.commit_of(revision)
        if commit is None:
            return self._refuse(Fault("no_revision"), revision)
        files = repository.commits[commit]
        if what == "revision":
            siblings = [{"rfilename": name} for name in files]
            if query.get("blobs"):
                siblings = [_sibling(name, body) for name, body in files.items()]
            return self._json(
                {"_id": commit, "id": repository.name, "modelId": repository.name, "sha": commit, "siblings": siblings}
                | {"tags": [], "private": False, "gated": False, "downloads": 0, "likes": 0}
            )
        entries = [_entry(name, body) for name, body in files.items()]
        start = int(query.get("cursor", "0"))
        headers = {}
        if start + _PAGE < len(entries):
            address = f"{self.hub.url}/api/models/{repository.name}/tree/{commit}?recursive=True"
            headers["Link"] = f'<{address}&cursor={start + _PAGE}>; rel="next"'
        return self._json(entries[start : start + _PAGE], headers)

    def _file(self, repo: str, revision: str, file: str) -> None:
        request = Request(self.command, self.path, revision, file, self.headers.get("Range"))
        repository = self._repository(repo, request)
        if repository is None:
            return None
        if fault := self.hub.take_fault(repository, revision, file, of_body=False):
            return self._refuse(fault, revision)
        commit = repository.commit_of(revision)
        if commit is None:
            return self._refuse(Fault("no_revision"), revision)
        body = repository.commits[commit].get(file)
        if body is None:
            return self._status(*_REFUSALS["no_file"], headers={"X-Repo-Commit": commit})
        blob = blob_of(file, body)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob}"', "Accept-Ranges": "bytes"}
        if not is_lfs(file):
            return self._body(body, headers, (repository, revision, file))
        headers |= {"X-Linked-ETag": f'"{blob}"', "X-Linked-Size": str(len(body))}
        headers["Location"] = f"{self.hub.cdn}/cdn/{repository.name.replace('/', '%2F')}/{commit}/{file}"
        return self._status(302, None, "", headers=headers)

    def _cdn(self, repo: str, commit: str, file: str) -> None:
        repository = self.hub.repository(unquote(repo))
        assert isinstance(repository, _Repository)
        file = unquote(file)
        self.hub.count(Request(self.command, self.path, commit, file, self.headers.get("Range")))
        self._body(repository.commits[commit][file], {"Accept-Ranges": "bytes"}, (repository, commit, file))

    def _repository(self, repo: str, request: Request) -> _Repository | None:
        """The repository that a request names; where there is none, or it has another name, the answer is sent."""
        self.hub.count(request)
        self.hub.before(request)
        repository = self.hub.repository(repo)
        if isinstance(repository, _Repository):
            return repository
        if repository is None:
            self._status(401, None, "Invalid username or password.")  # as the real hub answers without a token
        else:
            self._status(307, None, "", headers={"Location": self.path.replace(repo, repository, 1)})
        return None

    def _body(self, body: bytes, headers: dict[str, str], of: tuple[_Repository, str, str]) -> None:
        start, end = 0, len(body)
        if at := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(at[1]), min(int(at[2]) + 1 if at[2] else len(body), len(body))
            if start >= len(body):
                return self._status(416, None, "Range Not Satisfiable")
            headers = headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(body)}"}
        self.send_response(206 if at else 200)
        for name, value in {**headers, "Content-Length": str(end - start)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        fault = self.hub.take_fault(*of, of_body=True)
        if fault is None:
            return self._send(body[start:end])
        if fault.kind == "wrong":
            return self._send(bytes(255 - byte for byte in body[start:end]))
        self._send(body[start : start + ((end - start) // 2 if fault.after is None else fault.after)])
        self.wfile.flush()
        if fault.kind == "slow":
            self.hub.closing.wait(60)
        if fault.kind == "reset":  # a linger of zero sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        if fault.kind == "reset":
            self.connection.close()
        return None

    def _send(self, body: bytes) -> None:
        for at in range(0, len(body), _CHUNK):
            chunk = body[at : at + _CHUNK]
            self.wfile.write(chunk)
            self.hub.count_bytes(len(chunk))
            if self.hub.pace is not None and self.hub.closing.wait(len(chunk) / self.hub.pace):
                self.close_connection = True
                return

    def _refuse(self, fault: Fault, revision: str) -> None:
        status, code, message = _REFUSALS[fault.kind]
        headers = {"Retry-After": str(fault.retry_after)} if fault.kind == "rate_limited" else {}
        self._status(fault.status or status, code, message.format(repo="", revision=revision), headers=headers)

    def _status(self, status: int, code: str | None, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps({"error": message}).encode()
        reason = {"X-Error-Code": code, "X-Error-Message": message or None, "Content-Type": "application/json"}
        self.send_response(status)
        for name, value in {**reason, **(headers or {}), "Content-Length": str(len(body))}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, answer: object, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        for name, value in {
            **(headers or {}),
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entry(name: str, body: bytes) -> dict[str, Any]:
    """A file as the hub's API lists it: `oid` is the git blob, which of an LFS file is that of its pointer."""
    if not is_lfs(name):
        return {"type": "file", "path": name, "size": len(body), "oid": blob_of(name, body)}
    sha256 = blob_of(name, body)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(body)}\n".encode()
    lfs = {"oid": sha256, "size": len(body), "pointerSize": len(pointer)}
    return {"type": "file", "path": name, "size": len(body), "oid": blob_of("pointer", pointer), "lfs": lfs}


def _sibling(name: str, body: bytes) -> dict[str, Any]:
    """A file as the hub lists it with its revision, where blobs are asked for."""
    entry = _entry(name, body)
    sibling = {"rfilename": name, "size": entry["size"], "blobId": entry["oid"]}
    if "lfs" in entry:
        lfs = entry["lfs"]
        sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
    return sibling
