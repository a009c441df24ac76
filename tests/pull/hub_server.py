"""A hub on loopback: what the real huggingface_hub client asks of one, and every way it can fail.

Files of git come from the resolve address itself; LFS files are redirected to another port (the "CDN"), which, like
the real ones, refuses requests that carry the hub's token.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LFS_FROM = 16 << 10  # bytes; and every .safetensors


@dataclass
class Fault:
    """What goes wrong with one file's bytes, `times` times in a row.

    kind: status (answer `value`, with `headers`), stall or cut (after `value` bytes of the answer), corrupt (the byte
    at `value` of the file), size (`value` bytes more, or fewer, than listed), whole (a range is answered with 200),
    drip (headers without end).
    """

    kind: str
    value: int = 0
    times: float = 1
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Repo:
    """One repository at one commit."""

    files: dict[str, bytes]
    token: str | None = None  # needed to see it
    gated: bool = False

    @cached_property
    def commit(self) -> str:
        names = "".join(f"{name}{hashlib.sha1(data).hexdigest()}" for name, data in sorted(self.files.items()))
        return hashlib.sha1(names.encode()).hexdigest()

    def is_lfs(self, name: str) -> bool:
        return name.endswith(".safetensors") or len(self.files[name]) >= LFS_FROM

    def etag(self, name: str) -> str:
        data = self.files[name]
        if self.is_lfs(name):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    """Repositories, faults waiting to happen, and a log of requests."""

    def __init__(self):
        self.repos: dict[str, Repo] = {}  # as they are now
        self.commits: dict[tuple[str, str], Repo] = {}  # repository and commit -> as it was
        self.faults: dict[str, list[Fault]] = {}  # file name, or "api" -> in the order they happen
        self.log: list[tuple[str, bool]] = []  # path asked for, with a token or without
        self.asked: list[tuple[str, str]] = []  # file whose bytes were asked for, range
        self.looked: list[str] = []  # file whose first bytes were asked for, and no more
        self.rate = float("inf")  # bytes per second and connection
        self.sent = 0
        self.stalled = threading.Event()  # set when the server closes: frees stalled connections
        self.front, self.cdn = (_Server(("127.0.0.1", 0), _handler(self, cdn)) for cdn in (False, True))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.front.server_port}"

    def add(self, repo: str, folder: Path, **options) -> Repo:
        """Serve a folder as a repository; if there is one of that name, as its next commit."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self.repos[repo] = Repo(files, **options)
        self.commits[repo, self.repos[repo].commit] = self.repos[repo]
        return self.repos[repo]

    def fault(self, name: str) -> Fault | None:
        """The fault to act out now, counted down."""
        waiting = self.faults.get(name, [])
        if not waiting:
            return None
        waiting[0].times -= 1
        return waiting.pop(0) if waiting[0].times <= 0 else waiting[0]

    def gets(self, name: str) -> list[str]:
        """The ranges asked of a file's bytes, in order."""
        return [span for file, span in self.asked if file == name]

    def environment(self, home: Path) -> dict[str, str]:
        """Variables with which a process talks to this hub and to nothing else."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home / "hf"),
            "V4_HOME": str(home / "v4"),
            "HF_TOKEN": "",
            "HF_HUB_DOWNLOAD_TIMEOUT": "30",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_):
        """Clients that hang up are part of the tests."""


@contextmanager
def serving() -> Iterator[Hub]:
    """A running hub."""
    hub = Hub()
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in (hub.front, hub.cdn)]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        hub.stalled.set()
        for server in (hub.front, hub.cdn):
            server.shutdown()
            server.server_close()


def quick_client(monkeypatch, home: Path, timeout: float = 30.0) -> None:
    """Let huggingface_hub in this process use an empty cache, no token and short waits between tries."""
    from huggingface_hub import constants

    from v4cli.pull import transfer

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", timeout)
    monkeypatch.setattr(transfer, "BACKOFF_S", 0.02)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def _handler(hub: Hub, is_cdn: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        pass

    Handler.hub, Handler.is_cdn = hub, is_cdn
    return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    is_cdn: bool

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization", "")
        self.hub.log.append((path, bool(authorization)))
        try:
            if self.is_cdn:
                repo, commit, name = re.fullmatch(r"/cdn/([\w.-]+/[\w.-]+)/([0-9a-f]+)/(.+)", path).groups()
                if authorization:
                    return self.reply(400, b"only one kind of signature is allowed")
                return self.send_file(self.hub.commits[repo, commit], name)
            self.front(path, authorization)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def front(self, path: str, authorization: str) -> None:
        """Everything but the CDN."""
        match = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/(revision|tree)/([^/]+))?", path) or re.fullmatch(
            r"/([\w.-]+/[\w.-]+)/(resolve)/([^/]+)/(.+)", path
        )
        if match is None:
            return self.reply(404, b"Not Found")
        repo = self.hub.repos.get(match[1])
        is_api = match[2] != "resolve"
        fault = self.hub.fault("api") if is_api else None
        if fault is not None:
            return self.act_out(fault)
        if repo is None or (repo.token and authorization != f"Bearer {repo.token}"):
            return self.refuse(401 if authorization == "" else 404, "RepoNotFound")
        if match[3] not in (None, "main", repo.commit):
            repo = self.hub.commits.get((match[1], match[3]))
        if repo is None:
            return self.refuse(404, "RevisionNotFound")
        if is_api:
            info = self.listing(repo) if match[2] == "tree" else self.info(match[1], repo)
            return self.reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        if repo.gated:
            return self.refuse(403, "GatedRepo")
        if match[4] not in repo.files:
            return self.refuse(404, "EntryNotFound", {"X-Repo-Commit": repo.commit})
        self.resolve(match[1], repo, match[4])

    def info(self, name: str, repo: Repo) -> dict:
        siblings = [
            {"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"]}
            | ({"lfs": {"sha256": entry["lfs"]["oid"], "size": entry["size"], "pointerSize": 134}}
               if "lfs" in entry else {})
            for entry in self.listing(repo)
        ]  # fmt: skip
        return {"_id": "1", "id": name, "sha": repo.commit, "private": bool(repo.token), "siblings": siblings}

    def listing(self, repo: Repo) -> list[dict]:
        return [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            | ({"lfs": {"oid": repo.etag(name), "size": len(data), "pointerSize": 134}} if repo.is_lfs(name)
               else {"oid": repo.etag(name)})
            for name, data in sorted(repo.files.items())
        ]  # fmt: skip

    def resolve(self, repo_name: str, repo: Repo, name: str) -> None:
        headers = {"X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes", "ETag": f'"{repo.etag(name)}"'}
        if not repo.is_lfs(name):
            return self.send_file(repo, name, headers)
        headers |= {"X-Linked-Etag": f'"{repo.etag(name)}"', "X-Linked-Size": str(len(repo.files[name]))}
        headers["Location"] = f"http://127.0.0.1:{self.hub.cdn.server_port}/cdn/{repo_name}/{repo.commit}/{name}"
        self.reply(302, b"", headers)

    def send_file(self, repo: Repo, name: str, headers: dict | None = None) -> None:
        """The bytes, or the range asked for, with whatever fault is due."""
        data, headers = repo.files[name], dict(headers or {})
        look = re.fullmatch(r"bytes=0-(\d+)", self.headers.get("Range", ""))
        if look:  # at the beginning only: nothing goes wrong
            self.hub.looked.append(name)
            end = min(int(look[1]) + 1, len(data))
            return self.reply(206, data[:end], headers | {"Content-Range": f"bytes 0-{end - 1}/{len(data)}"})
        if self.command == "GET":
            self.hub.asked.append((name, self.headers.get("Range", "")))
        fault = self.hub.fault(name) if self.command == "GET" else None
        if fault is not None and fault.kind in ("status", "drip"):
            return self.act_out(fault)
        if fault is not None and fault.kind == "corrupt":
            data = data[: fault.value] + bytes([data[fault.value] ^ 1]) + data[fault.value + 1 :]
        if fault is not None and fault.kind == "size":
            data = data + bytes(fault.value) if fault.value > 0 else data[: fault.value]
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and not (fault is not None and fault.kind == "whole"):
            start, status = int(asked[1]), 206
            if start >= len(data):
                return self.reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        limit = fault.value if fault is not None and fault.kind in ("stall", "cut") else None
        self.reply(status, data[start:], headers, limit)
        if limit is not None and self.command == "GET":
            if fault.kind == "stall":
                self.hub.stalled.wait(30)
            self.close_connection = True

    def act_out(self, fault: Fault) -> None:
        if fault.kind == "status":
            return self.reply(fault.value, b"no", fault.headers)
        if fault.kind == "stall":
            self.hub.stalled.wait(30)
        if fault.kind == "drip":
            self.send_response(200)
            self.flush_headers()
            while not self.hub.stalled.wait(0.1):
                self.wfile.write(b"X-More: to come\r\n")
        self.close_connection = True

    def refuse(self, status: int, code: str, headers: dict | None = None) -> None:
        self.reply(status, b"", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})

    def reply(self, status: int, body: bytes, headers: dict | None = None, limit: int | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.trickle(body[:limit])

    def trickle(self, body: bytes) -> None:
        """Send at the hub's rate."""
        step = len(body) if self.hub.rate == float("inf") else max(1, int(self.hub.rate / 50))
        for at in range(0, len(body), max(step, 1)):
            self.wfile.write(body[at : at + step])
            self.hub.sent += len(body[at : at + step])
            if step < len(body):
                time.sleep(0.02)
