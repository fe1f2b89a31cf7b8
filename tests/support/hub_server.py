"""A hub with its CDN, on two ports of this machine: it lists repositories, redirects, serves ranges, and fails as told."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from attrs import Factory, define, field

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE_BYTES = 65536
# A scripted server must end by itself where its client does not.
LONGEST_S = 120.0


@define(kw_only=True)
class Fault:
    """What goes wrong with one request for a file.

    Attributes:
        status: answer with it instead, with these headers and this body.
        cut_after: reset the connection after so many bytes of the body.
        stall_after: send nothing more after so many.
        content: serve other bytes.
        no_range: answer with the whole file, whatever was asked for.
        shifted: send another range than was asked for.
        extra: bytes behind the body, which its length includes.
    """

    status: int = 0
    headers: dict[str, str] = Factory(dict)
    body: bytes = b""
    cut_after: int | None = None
    stall_after: int | None = None
    content: bytes | None = None
    no_range: bool = False
    shifted: bool = False
    extra: bytes = b""
    etag: str = ""


@define(eq=False)
class HubServer:
    """The hub. Its attributes may be changed while it runs.

    Attributes:
        repos: the files of each repository.
        in_git: paths of files that are kept in Git itself, and not in LFS.
        tokens: who may read gated repositories.
        gated, private: repositories.
        faults: for each path, what goes wrong with the next requests; by turns.
        requests: what was asked for, as (server, path, headers).
        sent: bytes of the bodies of files, by path.
        may_send: waits until more of a file may be sent.
        cdn_etag: whether the CDN says which version it sends.
        piece_bytes: bytes of one write.
    """

    url: str = ""
    cdn_url: str = ""
    repos: dict[str, dict[str, bytes]] = field(factory=dict)
    in_git: set[str] = field(factory=set)
    tokens: set[str] = field(factory=set)
    gated: set[str] = field(factory=set)
    private: set[str] = field(factory=set)
    faults: dict[str, list[Fault]] = field(factory=lambda: defaultdict(list))
    listing_faults: list[Fault] = field(factory=list)
    requests: list[tuple[str, str, dict[str, str]]] = field(factory=list)
    sent: Counter[str] = field(factory=Counter)
    may_send: Callable[[str, int], None] = lambda _path, _at: None
    cdn_etag: bool = True
    commit: str = COMMIT
    piece_bytes: int = PIECE_BYTES
    over: threading.Event = field(factory=threading.Event)

    def add(self, repo: str, files: Mapping[str, bytes], *, in_git: bool = False) -> None:
        """Add files to a repository."""
        self.repos.setdefault(repo, {}).update(files)
        if in_git:
            self.in_git.update(files)

    def asked(self, server: str = "") -> list[str]:
        """Return the paths that were asked for."""
        return [path for where, path, _ in self.requests if server in ("", where)]

    @contextlib.contextmanager
    def running(self) -> Iterator[HubServer]:
        """Serve until the block ends."""
        servers = []
        for name in ("hub", "cdn"):
            server = _Server(("127.0.0.1", 0), _Handler)
            server.hub, server.name = self, name
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            servers.append(server)
        self.url, self.cdn_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
        try:
            yield self
        finally:
            self.over.set()
            for server in servers:
                server.shutdown()
                server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    hub: HubServer
    name: str

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are no fault."""


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        path = unquote(url.path)
        hub.requests.append(
            (self.server.name, path, {name.lower(): value for name, value in self.headers.items()})
        )
        if self.server.name == "cdn":
            self._file(
                path.lstrip("/").partition("/")[2], path.lstrip("/").partition("/")[0].replace("--", "/")
            )
        elif (found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)) is not None:
            self._list(found[1], found[2] or "main", has_blobs="blobs=" in url.query)
        elif (found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path)) is not None:
            self._tree(found[1])
        elif (found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)) is not None:
            self._resolve(found[1], found[2], found[3])
        else:
            self._json(404, {"error": "not here"})

    def _has_access(self, repo: str) -> bool:
        hub = self.server.hub
        has_token = self.headers.get("Authorization", "").removeprefix("Bearer ") in hub.tokens
        if repo in hub.private and not has_token:
            self._json(401, {"error": "Invalid username or password."}, {"X-Error-Code": "RepoNotFound"})
            return False
        if repo not in hub.repos:
            self._json(
                401 if not has_token else 404,
                {"error": "Repository not found"},
                {"X-Error-Code": "RepoNotFound"},
            )
            return False
        return True

    def _list(self, repo: str, revision: str, *, has_blobs: bool) -> None:
        hub = self.server.hub
        if hub.listing_faults:
            fault = hub.listing_faults.pop(0)
            self._raw(fault.status, fault.body, fault.headers)
            return
        repo = next((name for name in hub.repos if name.lower() == repo.lower()), repo)
        if not self._has_access(repo):
            return
        if revision not in ("main", hub.commit, "v1"):
            self._json(404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [
            self._sibling(path, data) if has_blobs else {"rfilename": path}
            for path, data in hub.repos[repo].items()
        ]
        self._json(
            200,
            {
                "id": repo,
                "sha": hub.commit,
                "private": False,
                "gated": repo in hub.gated,
                "siblings": siblings,
                "modelId": repo,
                "tags": [],
                "downloads": 0,
                "likes": 0,
            },
        )

    def _sibling(self, path: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": git_id(data)}
        if path not in self.server.hub.in_git:
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

    def _tree(self, repo: str) -> None:
        if self._has_access(repo):
            self._json(200, [self._node(path, data) for path, data in self.server.hub.repos[repo].items()])

    def _node(self, path: str, data: bytes) -> dict[str, Any]:
        node: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_id(data)}
        if path not in self.server.hub.in_git:
            node["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return node

    def _resolve(self, repo: str, revision: str, path: str) -> None:
        hub = self.server.hub
        if not self._has_access(repo):
            return
        has_token = self.headers.get("Authorization", "").removeprefix("Bearer ") in hub.tokens
        if repo in hub.gated and not has_token:
            status = 403 if "Authorization" in self.headers else 401
            self._json(
                status, {"error": f"Access to model {repo} is restricted."}, {"X-Error-Code": "GatedRepo"}
            )
            return
        data = hub.repos[repo].get(path)
        if data is None:
            self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": hub.commit}
        if path in hub.in_git:
            self._file(path, repo, {**headers, "ETag": f'"{git_id(data)}"'})
            return
        fault = hub.faults[path][0] if hub.faults.get(path) else Fault()
        etag = fault.etag or hashlib.sha256(data).hexdigest()
        headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        place = f"{hub.cdn_url}/{repo.replace('/', '--')}/{path}?Signature=secret"
        self._raw(302, b"Found", {**headers, "Location": place, "ETag": '"of-the-redirect"'})

    def _file(self, path: str, repo: str, headers: Mapping[str, str] | None = None) -> None:
        hub = self.server.hub
        data = hub.repos.get(repo, {}).get(path)
        if data is None:
            self._raw(404, b"<Error/>", {})
            return
        fault = hub.faults[path].pop(0) if hub.faults.get(path) else Fault()
        if fault.status:
            self._raw(fault.status, fault.body, fault.headers)
            return
        data = data if fault.content is None else fault.content
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        sent_headers = dict(headers or {})
        if hub.cdn_etag and "ETag" not in sent_headers:
            sent_headers["ETag"] = etag
        begin, end, status = 0, len(data), 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        is_same = self.headers.get("If-Range") in (None, sent_headers.get("ETag"))
        if asked is not None and is_same and not fault.no_range:
            begin, end, status = int(asked[1]), min(end, int(asked[2] or len(data)) + 1), 206
            if begin >= len(data):
                self._raw(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            begin -= 1 if fault.shifted and begin else 0
            sent_headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        self._body(path, data, begin, end, status, sent_headers, fault)

    def _body(
        self,
        path: str,
        data: bytes,
        begin: int,
        end: int,
        status: int,
        headers: Mapping[str, str],
        fault: Fault,
    ) -> None:
        hub = self.server.hub
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(end - begin + len(fault.extra)))
        self.end_headers()
        if self.command == "HEAD":
            return
        at = begin
        stop = end if fault.cut_after is None else min(end, begin + fault.cut_after)
        pause = None if fault.stall_after is None else begin + fault.stall_after
        while at < stop:
            if pause is not None and at >= pause:
                hub.over.wait(LONGEST_S)
                return
            piece = data[at : min(stop, at + hub.piece_bytes, pause or stop)]
            hub.may_send(path, at)
            self.wfile.write(piece)
            hub.sent[path] += len(piece)
            at += len(piece)
        if fault.cut_after is not None:
            self._reset()
            return
        self.wfile.write(fault.extra)

    def _reset(self) -> None:
        self.wfile.flush()
        time.sleep(0.05)  # what was sent must arrive before the reset throws it away
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _json(self, status: int, data: object, headers: Mapping[str, str] | None = None) -> None:
        self._raw(status, json.dumps(data).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _raw(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
