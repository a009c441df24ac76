"""Where official files come from: a folder on disk, or a hub through huggingface_hub.

huggingface_hub (read: 2.4.0) lists repositories, finds the user's cache, tokens and endpoint, and owns the HTTP
client; the bytes are received here. Its own download writes to a file with a random name that it deletes on failure,
so a killed one begins at zero; it compares sizes but no checksums; it sleeps and retries where nothing can interrupt
it. Here a file grows in `staging` under its own name, and what lies there is never trusted: it is hashed before the
rest is asked for with a Range request, and the whole must match the hub's checksum. Plain HTTP from the resolve
address works for every kind of storage, Xet included.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from v4cli import jsonfile, paths
from v4cli.errors import ModelError, NetworkError, UsageError
from v4cli.files import contents, size
from v4cli.model.known import MODELS
from v4cli.pull import environment
from v4cli.pull.transfer import (
    AGAIN,
    Broken,
    Cancelled,
    Mismatch,
    OnBytes,
    Pace,
    Partial,
    RemoteFile,
    extent,
    in_time,
    one_line,
    patiently,
    timeout,
)
from v4cli.store import kinds
from v4cli.store.fingerprint import content
from v4cli.store.header import read_header
from v4cli.store.store import SMALL

COMMIT = "[0-9a-f]{40}"
MAX_BYTES = 1 << 50  # no file is larger
OPTIONAL = [name for name in SMALL if name != "config.json"]
LIST_TRIES = 3  # of the first request: without any network the answer should not take half a minute


class Source(Protocol):
    """A checkpoint in the official format, file by file."""

    repo: str  # "org/name", or the folder's path
    revision: str  # commit; of a folder a fingerprint of names, sizes and times
    files: dict[str, RemoteFile]

    def pin(self, revision: str) -> None:
        """Stay at this revision, unless the user named another."""

    def missing(self, name: str, staging: Path) -> int:
        """Bytes of the file that would have to be transferred."""

    def fetch(self, name: str, staging: Path, on_bytes: OnBytes, cancelled: Cancelled) -> Path:
        """The file on this disk, size and checksum verified. What a killed run left in `staging` is gone on with.

        `on_bytes` hears of every byte, those already there included; of minus as many when they are thrown away.
        """

    def beginning(self, name: str, n_bytes: int, staging: Path, cancelled: Cancelled) -> bytes:
        """The first bytes of a file, unverified, without the rest; at once, or NetworkError."""

    def drop(self, name: str, staging: Path) -> None:
        """Forget the local copy if it is ours."""

    def foreign(self, config: dict | None, tensors: Collection[str]) -> ModelError | None:
        """What it is, if it is something else than an official checkpoint; see `kinds`."""


class FolderSource:
    """An official checkpoint folder. Nothing in it is ever changed."""

    def __init__(self, path: Path):
        if not os.path.isdir(path):
            if os.path.exists(path):
                raise kinds.not_a_folder(Path(path))
            raise ModelError(f"{path}: no such folder", "give a folder with an official checkpoint")
        self.path = kinds.resolved(Path(path)).resolve()
        self.repo = str(self.path)
        self.files = {}
        fingerprint = hashlib.sha256()
        for file in sorted(self.path.iterdir()):
            if file.is_file():
                about = file.stat()
                self.files[file.name] = RemoteFile(file.name, about.st_size)
                # a store has small files with their checksums: one that was missing may be added
                if file.suffix in (".json", ".safetensors") and file.name not in OPTIONAL:
                    fingerprint.update(os.fsencode(file.name) + b" %d %d " % (about.st_size, about.st_mtime_ns))
                    fingerprint.update(_content(file))
            elif file.name in SMALL:
                raise ModelError(f"{file}: not a regular file", "put the release's there")
        self.revision = "folder-" + fingerprint.hexdigest()[:16]

    def pin(self, revision: str) -> None:
        pass

    def missing(self, name: str, staging: Path) -> int:
        return 0

    def fetch(self, name: str, staging: Path, on_bytes: OnBytes, cancelled: Cancelled) -> Path:
        path, want = self.path / name, self.files[name].n_bytes
        if not path.is_file() or path.stat().st_size != want:
            raise ModelError(f"{path}: changed while in use, expected {want} bytes")
        on_bytes(want)
        return path

    def beginning(self, name: str, n_bytes: int, staging: Path, cancelled: Cancelled) -> bytes:
        with (self.path / name).open("rb") as file:
            return file.read(n_bytes)

    def drop(self, name: str, staging: Path) -> None:
        pass

    def foreign(self, config: dict | None, tensors: Collection[str]) -> ModelError | None:
        return kinds.of_folder(self.path)


def _content(file: Path) -> bytes:
    """What tells a file from another of its size and time, without reading all of a large one."""
    try:
        if file.suffix == ".safetensors":
            return content(read_header(file)).encode()
        return hashlib.sha256(contents(file, jsonfile.MAX_BYTES)).digest()
    except ModelError:  # whoever opens it says what is wrong
        return b""


class HubSource:
    """A repository on the hub at one commit. The hub is asked when `files`, or a commit not known yet, is needed:
    NetworkError if that fails, ModelError if it has no such repository or revision. Offline (HF_HUB_OFFLINE) the
    user's Hugging Face cache is asked instead."""

    def __init__(self, repo: str, revision: str | None = None, token: str | None = None, endpoint: str | None = None):
        """`revision`: branch, tag or commit; None is the default branch."""
        self.repo, self.asked, self.token, self.endpoint = repo, revision, token, endpoint

    def pin(self, revision: str) -> None:
        self.asked = self.asked or revision

    @property
    def revision(self) -> str:
        return self.asked if self.asked and re.fullmatch(COMMIT, self.asked) else self._listing[0]

    @property
    def files(self) -> dict[str, RemoteFile]:
        return self._listing[1]

    @cached_property
    def headers(self) -> dict[str, str]:
        from huggingface_hub.utils import build_hf_headers

        from v4cli import __version__

        headers = build_hf_headers(token=self.token, library_name="v4cli", library_version=__version__)
        headers["Accept-Encoding"] = "identity"  # ranges count the bytes of the file, not of a compressed one
        return headers

    @cached_property
    def _listing(self) -> tuple[str, dict[str, RemoteFile], Collection[str]]:
        """Commit, files, and all names."""
        environment.check()
        from huggingface_hub import is_offline_mode

        return self._list_cache() if is_offline_mode() else self._list_hub()

    def _list_hub(self) -> tuple[str, dict[str, RemoteFile], Collection[str]]:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.repo)
        except HFValidationError as problem:
            raise UsageError(f"{self.repo}: not a repository name ({one_line(problem)})") from None
        where = self.repo + (f"@{self.asked}" if self.asked else "")
        text = patiently(lambda: in_time(self._ask), where, tries=LIST_TRIES)
        try:
            info = jsonfile.parse(text, where, NetworkError)
            listed = [_listed(sibling) for sibling in info["siblings"]]
            names = [str(sibling["rfilename"]) for sibling in info["siblings"]]
            commit = str(info["sha"])
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, NetworkError):
            raise NetworkError(f"{where}: the answer is not that of a hub", "check HF_ENDPOINT and proxies") from None
        if not re.fullmatch(COMMIT, commit):
            raise NetworkError(f"{where}: the hub names no commit", "check HF_ENDPOINT and proxies")
        return commit, {file.name: file for file in listed if file is not None}, names

    def _ask(self) -> bytes:
        """The hub's description of the repository, in one request."""
        from huggingface_hub import constants

        revision = f"/revision/{quote(self.asked, safe='')}" if self.asked else ""
        url = f"{self.endpoint or constants.ENDPOINT}/api/models/{self.repo}{revision}?blobs=true"
        with self._get(url) as response:
            return _bounded(response, jsonfile.MAX_BYTES)

    def _get(self, url: str, **headers: str):
        """A GET as a stream: a context manager that gives the response. What may raise, `patiently` understands."""
        from huggingface_hub.utils import get_session

        headers = self.headers | headers
        return get_session().stream("GET", url, headers=headers, timeout=timeout(), follow_redirects=True)

    def _address(self, name: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo, name, revision=self.revision, endpoint=self.endpoint)

    def _list_cache(self) -> tuple[str, dict[str, RemoteFile], Collection[str]]:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo, "config.json", revision=self.asked)
        if not isinstance(found, str):
            raise NetworkError(f"{self.repo}: not in the Hugging Face cache, and HF_HUB_OFFLINE is set",
                               "unset HF_HUB_OFFLINE")  # fmt: skip
        files = {}
        for path in Path(found).parent.iterdir():
            if path.is_file():
                blob = path.resolve().name  # named after its checksum
                sha256, oid = (blob if re.fullmatch(f"[0-9a-f]{{{n}}}", blob) else None for n in (64, 40))
                files[path.name] = RemoteFile(path.name, path.stat().st_size, sha256, oid)
        return Path(found).parent.name, files, list(files)

    def missing(self, name: str, staging: Path) -> int:
        if self._cached(name) is not None:
            return 0
        here = staging / name
        return self.files[name].n_bytes - min(here.stat().st_size if here.exists() else 0, self.files[name].n_bytes)

    def fetch(self, name: str, staging: Path, on_bytes: OnBytes, cancelled: Cancelled) -> Path:
        file = self.files[name]
        cached = self._cached(name)
        if cached is not None:
            with Partial(file, cached, on_bytes, cancelled, "rb") as whole:
                if whole.good():
                    return cached
                on_bytes(-whole.have)  # damaged, but not ours to delete
        staging.mkdir(parents=True, exist_ok=True)
        problem = ""
        for _ in range(2):  # damage may sit in what an earlier run left: begin once more before giving up
            with Partial(file, staging / name, on_bytes, cancelled) as partial:
                try:
                    self._complete(file, partial)
                    if partial.good():
                        return staging / name
                    problem = "its checksum differs"
                except Mismatch as mismatch:
                    problem = str(mismatch)
                partial.restart()
        (staging / name).unlink(missing_ok=True)
        raise NetworkError(f"{self.repo}: {name} does not arrive as the hub lists it: {problem}",
                           "a proxy or mirror may alter it (HF_ENDPOINT); " + AGAIN)  # fmt: skip

    def drop(self, name: str, staging: Path) -> None:
        (staging / name).unlink(missing_ok=True)

    def foreign(self, config: dict | None, tensors: Collection[str]) -> ModelError | None:
        return kinds.foreign(self.repo, self._listing[2], config, tensors)

    def _cached(self, name: str) -> Path | None:
        """The file in the user's Hugging Face cache, if it is there in full length."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo, name, revision=self.revision)
        if not isinstance(found, str) or Path(found).stat().st_size != self.files[name].n_bytes:
            return None
        return Path(found)

    def _complete(self, file: RemoteFile, partial: "Partial") -> None:
        """Receive until the file has its length."""

        def receive():
            if partial.have < file.n_bytes:
                self._receive(file, partial)
            if partial.have < file.n_bytes:
                raise Broken("the connection ended early")

        patiently(receive, f"{self.repo}: {file.name}", partial.cancelled, lambda: partial.have)
        partial.flush()

    def _receive(self, file: RemoteFile, partial: "Partial") -> None:
        """One connection: append what comes from the first missing byte on."""
        from huggingface_hub.utils import hf_raise_for_status

        asked = {"Range": f"bytes={partial.have}-"} if partial.have else {}
        stream = self._get(self._address(file.name), **asked)
        response = in_time(stream.__enter__, partial.cancelled, late=lambda response: response.close())
        with contextlib.closing(response):
            if response.status_code == 416:
                raise Mismatch("it is shorter")
            hf_raise_for_status(response)
            start, total = extent(response)
            if total not in (None, file.n_bytes):
                raise Mismatch(f"{total} bytes instead of {file.n_bytes}")
            if start not in (0, partial.have):
                raise Broken(f"asked for bytes from {partial.have}, got them from {start}")
            if start != partial.have:
                partial.restart()  # the range was not honoured: this is the whole file
            pace = Pace()
            for data in response.iter_bytes():
                partial.append(data)
                pace.count(len(data))

    def beginning(self, name: str, n_bytes: int, staging: Path, cancelled: Cancelled) -> bytes:
        here = self._cached(name) or staging / name
        if size(here) >= n_bytes:
            with here.open("rb") as file:
                return file.read(n_bytes)

        def receive() -> bytes:
            with self._get(self._address(name), Range=f"bytes=0-{n_bytes - 1}") as response:
                return _bounded(response, n_bytes)

        return patiently(lambda: in_time(receive, cancelled), f"{self.repo}: {name}", cancelled, tries=1)


def _bounded(response, limit: int) -> bytes:
    """The body of an answer; its first bytes where it is longer than `limit`."""
    from huggingface_hub.utils import hf_raise_for_status

    hf_raise_for_status(response)
    data = bytearray()
    for piece in response.iter_bytes():
        data += piece
        if len(data) >= limit:
            break
    return bytes(data[:limit])


def _listed(sibling) -> RemoteFile | None:
    """One entry of a listing; None for files in folders and names that are not plain."""
    name, lfs = sibling["rfilename"], sibling.get("lfs")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][\w.+-]*", name):
        return None
    n_bytes = int((lfs or sibling)["size"])
    if not 0 <= n_bytes < MAX_BYTES:
        raise ValueError("no size of a file")
    if lfs:
        return RemoteFile(name, n_bytes, sha256=str(lfs["sha256"]))
    return RemoteFile(name, n_bytes, git_oid=str(sibling["blobId"]))


@dataclass(frozen=True)
class Target:
    """What the user asked to pull."""

    name: str  # of the store, unless the user gives another
    place: str | Path  # repository, or folder or GGUF file
    revision: str | None = None

    def open(self) -> Source:
        return FolderSource(self.place) if isinstance(self.place, Path) else HubSource(self.place, self.revision)


def parse_target(text: str, revision: str | None = None) -> Target:
    """NAME, ORG/REPO[@REV], a folder (./NAME where both exist) or a GGUF file. UsageError if it is none of them."""
    short, at, given = text.partition("@")
    if given and revision and given != revision:
        raise UsageError(f"two revisions, {given} and {revision}", "drop --revision")
    if short in MODELS and (not at or given):
        return Target(short, MODELS[short][0], given or revision)
    folder = paths.NANO if text == "nano" else paths.expanded(text)
    if folder.is_dir():
        if revision:
            raise UsageError("a folder has no revisions", "drop --revision")
        return Target("nano-store" if text == "nano" else kinds.model_name(folder), folder)
    if folder.suffix == ".gguf" and folder.is_file():
        return Target(folder.stem, folder)
    if folder.exists():
        raise kinds.not_a_folder(folder)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", short) and (not at or given):
        known = next((name for name, (repo, _) in MODELS.items() if repo == short), None)
        return Target(known or short.partition("/")[2], short, given or revision)
    raise UsageError(f"{text!r} is neither a model, a repository nor a folder", f"models: {', '.join(MODELS)}, nano")
