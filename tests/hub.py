"""A Hub on the loopback interface, for the real huggingface_hub client to talk to.

    with Hub() as hub:
        # in a process started with hub.environment(), for the client reads it when imported:
        HfApi().create_repo("someone/model"); HfApi().upload_folder(...); hf_hub_download(...)

It keeps repositories in memory: commits with 40-digit names, branches, files that are either in the
commit or, like *.safetensors, in large-file storage, which another host name serves as on the Hub.
`Hub.inject` makes the next answers go wrong. What the server does not know, it answers with 501 and
the route, so that a client that asks for more is noticed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REGULAR_AT_MOST = 10_000_000


@dataclass(frozen=True)
class Blob:
    """A file's content, and whether it lies in large-file storage."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """Git's name of it; of large files the Hub never shows the pointer's, so any will do."""
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    oid: str
    parent: str | None
    title: str
    files: dict[str, Blob]


@dataclass
class Repo:
    """A repository: its commits by name, and where its branches and tags point."""

    id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        return self.commits.get(self.refs.get(revision, revision))

    def commit(self, branch: str, title: str, files: dict[str, Blob]) -> Commit:
        parent = self.refs.get(branch)
        tree = sorted((path, blob.etag) for path, blob in files.items())
        identity = json.dumps([self.id, parent, title, tree, len(self.commits)])
        commit = Commit(hashlib.sha1(identity.encode()).hexdigest(), parent, title, files)
        self.commits[commit.oid] = commit
        self.refs[branch] = commit.oid
        return commit


@dataclass
class Fault:
    """What goes wrong with the next `times` requests for a file.

    Attributes:
        times: how many answers are affected; the next ones are fine again.
        method: HEAD, GET, or None for both.
        status: answer this instead of the file.
        retry_after: seconds, sent along with `status`.
        cut: close the connection after so many bytes of the body.
        reset: with `cut`, by a TCP reset rather than an orderly end.
        keep: answer only so many bytes, with a Content-Length that agrees.
        flip: change the byte at this offset, the length stays right.
        etag: answer with this ETag.
    """

    times: int = 1
    method: str | None = None
    status: int | None = None
    retry_after: int | None = None
    cut: int | None = None
    reset: bool = False
    keep: int | None = None
    flip: int | None = None
    etag: str | None = None


@dataclass(frozen=True)
class Seen:
    """A request the server got."""

    method: str
    path: str
    range: str | None
    token: str | None


class Hub:
    """The server; a context manager that serves from a thread while entered.

    Args:
        token: if given, writing and private repositories need it.
        pattern: of the paths that faults apply to.
    """

    def __init__(self, token: str | None = None, pattern: str = r"\.safetensors$|^/cdn/") -> None:
        self.token = token
        self.pattern = re.compile(pattern)
        self.repos: dict[str, Repo] = {}
        self.storage: dict[str, bytes] = {}
        self.requests: list[Seen] = []
        self.lock = threading.RLock()
        self._faults: list[Fault] = []
        self._vanished: dict[str, Repo] = {}
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.port = int(self._server.server_address[1])
        self.endpoint = f"http://127.0.0.1:{self.port}"
        # another name of this machine: the client must take it for a foreign host
        self.cdn = f"http://localhost:{self.port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self) -> dict[str, str]:
        """The variables that send a client here."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            **({"HF_TOKEN": self.token} if self.token else {}),
        }

    def inject(self, *faults: Fault) -> None:
        """Let the next requests for files go wrong, one fault after the other."""
        with self.lock:
            self._faults.extend(faults)

    def vanish(self, repo: str) -> None:
        """Answer as if there had never been such a repository."""
        with self.lock:
            self._vanished[repo] = self.repos.pop(repo)

    def reset(self) -> None:
        """Everything is fine again: faults are forgotten, vanished repositories are back."""
        with self.lock:
            self._faults.clear()
            self.requests.clear()
            self.repos.update(self._vanished)
            self._vanished.clear()

    def add(self, repo: str, files: dict[str, bytes], private: bool = False) -> str:
        """Commit files without a client, and return the name of the commit."""
        with self.lock:
            kept = self.repos.setdefault(repo, Repo(repo, private))
            head = kept.at("main")
            blobs = {
                path: Blob(data, lfs=path.endswith(".safetensors")) for path, data in files.items()
            }
            self.storage.update({blob.sha256: blob.data for blob in blobs.values() if blob.lfs})
            files_before = head.files if head else {}
            return kept.commit("main", "add files", {**files_before, **blobs}).oid

    def downloads(self) -> list[Seen]:
        """The requests so far for the bodies of large files."""
        with self.lock:
            return [s for s in self.requests if s.method == "GET" and s.path.startswith("/cdn/")]

    def fault_for(self, method: str, path: str) -> Fault | None:
        """Take the fault that this request is to meet, if any."""
        if not self.pattern.search(path):
            return None
        with self.lock:
            for fault in self._faults:
                if fault.method in (None, method):
                    fault.times -= 1
                    if fault.times <= 0:
                        self._faults.remove(fault)
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        # clients that give up in the middle are what the tests are about
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"hub": hub})


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    # a body right behind its headers would otherwise wait 40 ms for their acknowledgement
    wbufsize = 1 << 16
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._dispatch()

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD

    # ------------------------------------------------------------------------------- routes

    def _dispatch(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self._read_body()
        path = unquote(url.path)
        header = self.headers.get("Authorization") or ""
        self.sent_token = header.removeprefix("Bearer ") or None
        with self.hub.lock:
            self.hub.requests.append(
                Seen(self.command, path, self.headers.get("Range"), self.sent_token)
            )
        repo = r"(?P<id>[\w.-]+/[\w.-]+)"
        routes: tuple[tuple[str, str, Callable[..., None]], ...] = (
            ("POST", r"/api/repos/create", self._create),
            ("DELETE", r"/api/repos/delete", self._delete),
            ("POST", r"/api/validate-yaml", self._validate),
            ("GET", r"/api/whoami-v2", self._whoami),
            ("GET", r"/api/agent-harnesses", self._harnesses),
            ("POST", rf"/api/models/{repo}/preupload/(?P<revision>.+)", self._preupload),
            ("POST", rf"/{repo}\.git/info/lfs/objects/batch", self._batch),
            ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", self._put),
            ("POST", rf"/api/models/{repo}/commit/(?P<revision>.+)", self._commit),
            ("GET", rf"/api/models/{repo}/commits/(?P<revision>.+)", self._log),
            ("GET", rf"/api/models/{repo}/tree/(?P<revision>[^/]+)", self._tree),
            ("GET", rf"/api/models/{repo}/revision/(?P<revision>.+)", self._info),
            ("GET", rf"/api/models/{repo}", self._info),
            ("*", rf"/{repo}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", self._resolve),
            ("*", r"/cdn/(?P<oid>[0-9a-f]{64})", self._cdn),
        )
        for method, pattern, route in routes:
            match = re.fullmatch(pattern, path)
            if match and (method == self.command or method == "*"):
                route(**match.groupdict())
                return
        self._json({"error": f"tests/hub.py has no route {self.command} {path}"}, 501)

    def _read_body(self) -> bytes:
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _create(self) -> None:
        if not self._may_write():
            return
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'user'}/{asked['name']}"
        url = f"{self.hub.endpoint}/{name}"
        with self.hub.lock:
            if name in self.hub.repos:
                error = "You already created this model repo"
                self._json({"error": error, "url": url}, 409)
                return
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            repo = self.hub.repos[name] = Repo(name, private)
            attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
            repo.commit("main", "initial commit", {".gitattributes": Blob(attributes, lfs=False)})
        self._json({"url": url, "name": name, "id": name})

    def _delete(self) -> None:
        asked = json.loads(self.body)
        if self._may_write():
            with self.hub.lock:
                self.hub.repos.pop(f"{asked.get('organization') or 'user'}/{asked['name']}", None)
            self._json({})

    def _validate(self) -> None:
        self._json({"errors": [], "warnings": []})

    def _whoami(self) -> None:
        if self._may_write():
            self._json({"type": "user", "name": "user", "orgs": [], "auth": {}})

    def _harnesses(self) -> None:
        self._json({"standardEnvVars": [], "harnesses": {}})

    def _preupload(self, id: str, revision: str) -> None:
        commit = self._find(id, revision)
        if commit is None or not self._may_write():
            return
        files = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            lfs = path.endswith(".safetensors") or asked["size"] > REGULAR_AT_MOST
            known = commit.files.get(path)
            files.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if lfs else "regular",
                    "shouldIgnore": False,
                    "oid": known.etag if known else None,
                }
            )
        self._json({"files": files, "commitOid": commit.oid})

    def _batch(self, id: str) -> None:
        if self._find(id, "main") is None or not self._may_write():
            return
        objects = []
        for asked in json.loads(self.body)["objects"]:
            answer: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.storage:
                answer["actions"] = {"upload": {"href": f"{self.hub.cdn}/lfs/{asked['oid']}"}}
            objects.append(answer)
        answer = {"transfer": "basic", "objects": objects}
        self._json(answer, kind="application/vnd.git-lfs+json")

    def _put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._json({"error": "the content is not the object that was announced"}, 400)
            return
        with self.hub.lock:
            self.hub.storage[oid] = self.body
        self._send(200, {"ETag": f'"{oid}"'})

    def _commit(self, id: str, revision: str) -> None:
        parent = self._find(id, revision)
        if parent is None or not self._may_write():
            return
        files, title = dict(parent.files), ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            path = value.get("path", "")
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit", parent.oid) != parent.oid:
                    self._json({"error": "A commit has happened since"}, 412)
                    return
            elif key == "file":
                files[path] = Blob(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile" and value["oid"] in self.hub.storage:
                files[path] = Blob(self.hub.storage[value["oid"]], lfs=True)
            elif key == "deletedFile" and path in files:
                del files[path]
            elif key == "deletedFolder":
                files = {p: b for p, b in files.items() if not p.startswith(path.rstrip("/") + "/")}
            else:
                self._json({"error": f"cannot apply {key} of {path}"}, 400)
                return
        with self.hub.lock:
            commit = self.hub.repos[id].commit(revision, title, files)
        url = f"{self.hub.endpoint}/{id}/commit/{commit.oid}"
        self._json({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})

    def _log(self, id: str, revision: str) -> None:
        commit = self._find(id, revision)
        commits: list[dict[str, Any]] = []
        if commit is None:
            return
        while commit is not None:
            entry = {"id": commit.oid, "title": commit.title, "message": "", "authors": []}
            commits.append({**entry, "date": "2026-01-01T00:00:00.000Z"})
            commit = self.hub.repos[id].commits.get(commit.parent or "")
        self._json(commits)

    def _tree(self, id: str, revision: str) -> None:
        commit = self._find(id, revision)
        if commit is None:
            return
        entries: list[dict[str, Any]] = []
        for path, blob in sorted(commit.files.items()):
            entry: dict[str, Any] = {"type": "file", "path": path, "oid": blob.oid}
            entry["size"] = len(blob.data)
            if blob.lfs:
                entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 134}
            entries.append(entry)
        self._json(entries)

    def _info(self, id: str, revision: str = "main") -> None:
        commit = self._find(id, revision)
        if commit is not None:
            siblings = [{"rfilename": path} for path in sorted(commit.files)]
            private = self.hub.repos[id].private
            described = {"id": id, "modelId": id, "sha": commit.oid, "siblings": siblings}
            self._json({**described, "private": private, "tags": [], "downloads": 0, "likes": 0})

    # -------------------------------------------------------------------------------- files

    def _resolve(self, id: str, revision: str, file: str) -> None:
        fault = self.hub.fault_for(self.command, self.path)
        if fault and fault.status:
            self._fail(fault)
            return
        commit = self._find(id, revision)
        if commit is None:
            return
        headers = {"X-Repo-Commit": commit.oid}
        blob = commit.files.get(file)
        if blob is None:
            self._json({"error": "Entry not found"}, 404, "EntryNotFound", headers)
            return
        etag = fault.etag if fault and fault.etag else blob.etag
        if not blob.lfs:
            self._content(blob.data, {**headers, "ETag": f'"{etag}"'}, fault)
            return
        size = fault.keep if fault and fault.keep is not None else len(blob.data)
        headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(size), "ETag": f'"{etag}"'}
        self._send(302, {**headers, "Location": f"{self.hub.cdn}/cdn/{blob.sha256}"})

    def _cdn(self, oid: str) -> None:
        fault = self.hub.fault_for(self.command, self.path)
        if fault and fault.status:
            self._fail(fault)
        elif oid in self.hub.storage:
            self._content(self.hub.storage[oid], {"ETag": f'"{oid}"'}, fault)
        else:
            self._json({"error": "no such object"}, 404)

    def _content(self, data: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        headers = {**headers, "Accept-Ranges": "bytes"}
        if fault and fault.flip is not None:
            changed = bytearray(data)
            changed[fault.flip] ^= 0xFF
            data = bytes(changed)
        if fault and fault.keep is not None:
            data = data[: fault.keep]
        status, total = 200, len(data)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            start, stop = int(asked[1]), int(asked[2] or total - 1) + 1
            if start >= total:
                self._send(416, {"Content-Range": f"bytes */{total}"})
                return
            data = data[start:stop]
            headers["Content-Range"] = f"bytes {start}-{start + len(data) - 1}/{total}"
            status = 206
        self._send(status, headers, data, fault)

    def _fail(self, fault: Fault) -> None:
        assert fault.status is not None
        headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        self._json({"error": "injected"}, fault.status, headers=headers)

    # ------------------------------------------------------------------------------ answers

    def _find(self, id: str, revision: str) -> Commit | None:
        """The commit, or None after saying that there is none."""
        repo = self.hub.repos.get(id)
        if repo is None or (repo.private and self.sent_token != self.hub.token):
            # what is private looks like what is not there
            self._json({"error": "Repository not found"}, 404, "RepoNotFound")
            return None
        commit = repo.at(revision)
        if commit is None:
            self._json({"error": f"Invalid rev id: {revision}"}, 404, "RevisionNotFound")
        return commit

    def _may_write(self) -> bool:
        if self.hub.token is None or self.sent_token == self.hub.token:
            return True
        self._json({"error": "Invalid username or password."}, 401)
        return False

    def _json(
        self,
        content: object,
        status: int = 200,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        kind: str = "application/json",
    ) -> None:
        about = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        headers = {**(headers or {}), **about, "Content-Type": kind}
        self._send(status, headers, json.dumps(content).encode())

    def _send(
        self,
        status: int,
        headers: dict[str, str],
        data: bytes = b"",
        fault: Fault | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.cut is not None:
            self.wfile.write(data[: fault.cut])
            self.wfile.flush()
            self.close_connection = True
            if fault.reset:
                # closing at zero linger time throws away what is queued and sends a reset
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                os.close(self.connection.detach())
            return
        self.wfile.write(data)
