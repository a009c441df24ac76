"""Receiving files over a network that fails: partial files, patience, errors in plain words."""

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path

from v4cli.errors import Interrupted, ModelError, NetworkError, V4Error
from v4cli.pull import environment

BLOCK = 1 << 20
TRIES = 6  # failures in a row without PROGRESS bytes between them
PROGRESS = 1 << 20
BACKOFF_S = 1.0  # doubles with every failure
MAX_WAIT_S = 300.0  # longer demands of a server end the pull
SILENCES = 3  # times the timeout, which is between two bytes: how long an answer may take to begin
PACE_S, PACE_BYTES = 60.0, 64 << 10  # of a body at least so many bytes in so many seconds
AGAIN = "run the same command again to go on"
ACCESS = "set HF_TOKEN and accept the licence on the model's page; a repository that does not exist answers so too"

OnBytes = Callable[[int], None]
Cancelled = Callable[[], bool]


@dataclass(frozen=True)
class RemoteFile:
    """One official file; either checksum may be unknown."""

    name: str
    n_bytes: int
    sha256: str | None = None
    git_oid: str | None = None  # of files kept in git itself: sha1 of a blob header and the bytes

    def hasher(self):
        """A running checksum that `matches` understands."""
        if self.git_oid and not self.sha256:
            return hashlib.sha1(b"blob %d\0" % self.n_bytes, usedforsecurity=False)
        return hashlib.sha256()

    def matches(self, hasher) -> bool:
        """Whether the bytes fed to `hasher` are this file's, as far as that can be known."""
        return hasher.hexdigest() == (self.sha256 or self.git_oid or hasher.hexdigest())


class Broken(Exception):
    """A transfer failed in a way that may pass."""


class Mismatch(Exception):
    """The bytes offered are not those of the file listed."""


class Partial:
    """A local file that may be incomplete: its length, its running checksum, progress told."""

    def __init__(self, file: RemoteFile, path: Path, on_bytes: OnBytes, cancelled: Cancelled, mode: str = "a+b"):
        self.file, self.on_bytes, self.cancelled = file, on_bytes, cancelled
        self.have, self.hasher = 0, file.hasher()
        self.handle = path.open(mode)

    def __enter__(self) -> "Partial":
        """Hash what is there."""
        try:
            self.handle.seek(0)
            while data := self.handle.read(BLOCK):
                self._count(data)
            if self.have > self.file.n_bytes and self.handle.writable():
                self.restart()
        except BaseException:
            self.handle.close()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.handle.close()

    def append(self, data: bytes) -> None:
        if self.have + len(data) > self.file.n_bytes:
            raise Mismatch(f"more than {self.file.n_bytes} bytes")
        self.handle.write(data)
        self._count(data)

    def _count(self, data: bytes) -> None:
        if self.cancelled():
            raise Interrupted("download interrupted", AGAIN)
        self.hasher.update(data)
        self.have += len(data)
        self.on_bytes(len(data))

    def flush(self) -> None:
        self.handle.flush()

    def restart(self) -> None:
        """Throw everything away."""
        self.handle.truncate(0)
        self.on_bytes(-self.have)
        self.have, self.hasher = 0, self.file.hasher()

    def good(self) -> bool:
        return self.have == self.file.n_bytes and self.file.matches(self.hasher)


def extent(response) -> tuple[int, int | None]:
    """First byte and total length that a response speaks of."""
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None:
            raise Broken("a range was answered without Content-Range")
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "")
    encoded = response.headers.get("Content-Encoding", "identity") != "identity"
    return 0, int(length) if length.isdigit() and not encoded else None


def in_time(action: Callable, cancelled: Cancelled = lambda: False, late: Callable = lambda value: None):
    """`action()`, which waits for a server, in a thread of its own. Broken if it takes too long altogether, however
    busily the server sends; it is then left alone, and what it still brings goes to `late`."""
    result: Future = Future()

    def run():
        try:
            result.set_result(action())
        except BaseException as problem:
            result.set_exception(problem)

    def leave():
        result.add_done_callback(lambda done: done.exception() or late(done.result()))

    threading.Thread(target=run, daemon=True).start()
    end = time.monotonic() + SILENCES * timeout()
    try:
        while not wait([result], timeout=0.05).done:
            if cancelled():
                raise Interrupted("download interrupted", AGAIN)
            if time.monotonic() > end:
                raise Broken(f"no whole answer within {SILENCES * timeout():g} s")
    except BaseException:
        leave()
        raise
    return result.result()


class Pace:
    """Notices a body that comes, but hardly."""

    def __init__(self):
        self.begin, self.n_bytes = time.monotonic(), 0

    def count(self, n_bytes: int) -> None:
        """Broken if too little came lately."""
        self.n_bytes += n_bytes
        if time.monotonic() - self.begin >= PACE_S:
            if self.n_bytes < PACE_BYTES:
                raise Broken(f"only {self.n_bytes} bytes in {PACE_S:g} s")
            self.begin, self.n_bytes = time.monotonic(), 0


def timeout():
    """The user's HF_HUB_DOWNLOAD_TIMEOUT (10 s) is what a server may stay silent."""
    from huggingface_hub import constants

    return constants.HF_HUB_DOWNLOAD_TIMEOUT


def patiently(
    action: Callable,
    what: str,
    cancelled: Cancelled = lambda: False,
    position: Callable[[], int] = lambda: 0,
    tries: int | None = None,
):
    """`action()`, called again after troubles that may pass, with growing waits; gives up as a V4Error.

    A failure that brought `position` PROGRESS bytes beyond where it ever was counts as the first.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    failures, furthest = 0, position()
    while True:
        try:
            return action()
        except (httpx2.RequestError, httpx2.InvalidURL, HfHubHTTPError, OfflineModeIsEnabled, Broken) as problem:
            error, wait = _explain(problem, what)
        if position() >= furthest + PROGRESS:
            failures, furthest = 0, position()
        failures += 1
        if wait is None or failures >= (tries or TRIES):
            raise error
        _sleep(max(wait, BACKOFF_S * 2 ** (failures - 1)), cancelled)


def _sleep(seconds: float, cancelled: Cancelled) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if cancelled():
            raise Interrupted("download interrupted", AGAIN)
        time.sleep(min(left, 0.1))


def _explain(problem: Exception, what: str) -> tuple[V4Error, float | None]:
    """What to tell the user, and how long to wait at least before the next try; None: there is no point in one."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(problem, HfHubHTTPError):
        return _explain_status(problem.response, what)
    if isinstance(problem, OfflineModeIsEnabled):
        return NetworkError(f"{what}: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"), None
    if isinstance(problem, httpx2.TimeoutException):
        return NetworkError(f"{what}: no answer for {timeout()} s", AGAIN), 0.0
    if isinstance(problem, httpx2.ConnectError | httpx2.ProxyError):
        names = ", ".join(environment.in_force()) or "HF_ENDPOINT, proxies"
        hint = f"check the connection ({names}), then {AGAIN}"
        if "CERTIFICATE_VERIFY_FAILED" in str(problem):
            hint = f"SSL_CERT_FILE names the certificates to trust, a proxy's too (set: {names}); then {AGAIN}"
        return NetworkError(f"{what}: cannot connect ({one_line(problem)})", hint), 0.0
    if isinstance(problem, httpx2.TransportError | Broken) and not isinstance(problem, httpx2.UnsupportedProtocol):
        return NetworkError(f"{what}: the connection broke ({one_line(problem)})", AGAIN), 0.0
    return NetworkError(f"{what}: {one_line(problem)}", "check HF_ENDPOINT and proxies"), None


def _explain_status(response, what: str) -> tuple[V4Error, float | None]:
    """The same for an answer with an error status."""
    from huggingface_hub.utils import parse_ratelimit_headers

    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    if status in (401, 403):
        return NetworkError(f"{what}: the hub refuses access ({status} {code})".replace(" )", ")"), ACCESS), None
    if status == 404:
        kind = {"RevisionNotFound": "revision", "EntryNotFound": "file"}.get(code, "repository")
        return ModelError(f"{what}: the hub has no such {kind}", "check the name; private ones need HF_TOKEN"), None
    error = NetworkError(f"{what}: the hub answers {status}", AGAIN)
    if status not in (408, 429) and status < 500:
        return error, None
    wait = 0.0
    limit = parse_ratelimit_headers(response.headers) if status == 429 else None
    if limit is not None and limit.remaining == 0:
        wait = float(limit.reset_in_seconds)
    with contextlib.suppress(ValueError):
        wait = max(wait, float(response.headers.get("Retry-After", "0")))  # dates, the other form, are not sent by hubs
    if wait > MAX_WAIT_S:
        return NetworkError(f"{what}: the hub answers {status} and asks to wait {wait:.0f} s", AGAIN), None
    return error, wait


def one_line(problem: Exception) -> str:
    """The message on one line."""
    return " ".join(str(problem).split())[:200] or type(problem).__name__
