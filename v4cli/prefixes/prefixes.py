"""Computed prefixes on disk: the KV of token sequences in files that conversations share.

Entries of a token depend on the tokens before it only, and never change. So they are kept in chunks of CHUNK tokens,
each under a key that stands for all tokens up to its end: conversations with the same beginning share its chunks, and
going on writes only what is new. A *snapshot* marks a place where computing can go on: the small parts of the state
there, the entries behind the last whole chunk, and the logits. One folder per model and numerics:

    PARENT-KEY.chunk     entries of CHUNK tokens; KEY is a hash of PARENT and the tokens, the first PARENT the folder's
    KEY.N.ID.snapshot    a place N tokens long, some of them behind chunk KEY; ID is a hash of KEY and those

Files appear whole (prefixes/kvfile.py) and a snapshot after its chunks, so a crash costs at most the one being written.
There is no index to repair: names say everything, and the time of last use is the file's.
"""

import contextlib
import datetime
import hashlib
import json
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from v4cli import jsonfile, system
from v4cli.errors import SnapshotError
from v4cli.files import write_atomically
from v4cli.model.state import Checkpoint, State
from v4cli.prefixes import kvfile

CHUNK = 1024  # tokens, a multiple of every compression ratio
WORKERS = 4  # files in flight
ORPHAN_AGE = 600.0  # seconds
SETTLED_NS = 1_000_000_000
CHUNK_NAME = re.compile(r"([0-9a-f]{32})-([0-9a-f]{32})\.chunk")
SNAPSHOT_NAME = re.compile(r"([0-9a-f]{32})\.(\d{1,9})\.([0-9a-f]{16})\.snapshot")
IDENTITY, WRITTEN = "identity.json", "written.json"


@dataclass(frozen=True)
class Chunk:
    """A file of entries."""

    path: Path
    parent: str
    size: int
    made: float  # seconds since the epoch


@dataclass(frozen=True)
class Snapshot:
    """A place to go on from: `n_tokens` tokens, the last whole chunk of which has key `chunk`."""

    path: Path
    chunk: str
    n_tokens: int
    id: str
    size: int
    used: float  # seconds since the epoch


class Folder:
    """The files of one model: what is there at this moment."""

    def __init__(self, path: Path):
        self.path = path
        self.chunks: dict[str, Chunk] = {}
        self.snapshots: dict[str, list[Snapshot]] = {}
        for entry in os.scandir(path) if path.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):  # another process is removing it
                self._add(entry)

    def _add(self, entry: os.DirEntry) -> None:
        if not entry.is_file(follow_symlinks=False):
            return  # nothing that we wrote
        if match := CHUNK_NAME.fullmatch(entry.name):
            stat = entry.stat(follow_symlinks=False)
            self.chunks[match[2]] = Chunk(Path(entry.path), match[1], stat.st_size, stat.st_mtime)
        elif match := SNAPSHOT_NAME.fullmatch(entry.name):
            stat = entry.stat(follow_symlinks=False)
            found = Snapshot(Path(entry.path), match[1], int(match[2]), match[3], stat.st_size, stat.st_mtime)
            self.snapshots.setdefault(match[1], []).append(found)

    def all_snapshots(self) -> list[Snapshot]:
        return [snapshot for some in self.snapshots.values() for snapshot in some]

    def path_of(self, snapshot: Snapshot) -> list[str]:
        """Keys of its chunks from the last to the first."""
        keys: dict[str, None] = {}
        key = snapshot.chunk
        while key in self.chunks and key not in keys:  # no name is its own ancestor's unless someone made it so
            keys[key] = None
            key = self.chunks[key].parent
        return list(keys)


class Prefixes:
    """The stored prefixes of one model. Budgets are bytes: on disk over all models, and written per day."""

    def __init__(self, root: Path, identity: dict, disk_budget: int, write_budget: int):
        """`identity`: everything the stored numbers depend on. Nothing is made before something is stored."""
        self.root, self.identity = root, identity
        self.disk_budget, self.write_budget = disk_budget, write_budget
        self.key = _hash(json.dumps(identity, sort_keys=True).encode(), 16)
        self.folder = root / self.key
        self._seen: tuple[int, Folder] | None = None  # when the folder changed last, and what was in it then

    # -- reading ----------------------------------------------------------------------------------------------

    def longest(self, tokens: list[int], above: int) -> Snapshot | None:
        """The longest stored prefix of `tokens` that has more than `above` of them."""
        files, ids = self._files(), np.asarray(tokens, np.int32)
        if not files.snapshots:
            return None
        keys = self._keys(ids)
        depth = next((i for i, key in enumerate(keys[1:]) if key not in files.chunks), len(keys) - 1)
        for i in range(depth, above // CHUNK - 1, -1):
            fitting = (
                snapshot
                for snapshot in files.snapshots.get(keys[i], ())
                if above < snapshot.n_tokens <= len(tokens)
                and snapshot.id == _snapshot_id(keys[i], ids[i * CHUNK : snapshot.n_tokens])
            )
            if found := max(fitting, key=lambda snapshot: snapshot.n_tokens, default=None):
                return found
        return None

    def _files(self) -> Folder:
        """What there is, without reading the folder again where nothing has come or gone: for every short prompt that
        would take longer than to compute it. A change that is too new may have another of the same time behind it."""
        try:
            changed = self.folder.stat().st_mtime_ns
        except OSError:  # whatever hinders, Folder sees nothing there
            return Folder(self.folder)
        if self._seen and self._seen[0] == changed:
            return self._seen[1]
        files = Folder(self.folder)
        if time.time_ns() - changed > SETTLED_NS:
            self._seen = changed, files
        return files

    def load(self, snapshot: Snapshot, state: State, have: int) -> np.ndarray:
        """Bring `state`, whose first `have` tokens are those of the snapshot, to its place; the logits there.

        SnapshotError names a file that cannot be used; the state is then as it was.
        """
        files, n = Folder(self.folder), snapshot.n_tokens
        keys = files.path_of(snapshot)[::-1]
        whole, first = len(keys) * CHUNK, have // CHUNK
        if whole != n // CHUNK * CHUNK:
            raise SnapshotError(f"{snapshot.path}: {n // CHUNK - len(keys)} of its chunks are missing", snapshot.path)
        about, arrays = kvfile.read(snapshot.path)
        try:
            small, rest, logits = snapshot_parts(arrays)
            state.reserve(n)
            with ThreadPoolExecutor(WORKERS) as pool:
                chunks = _ahead(pool, _entries, [(key, files.chunks[key]) for key in keys[first:]])
                for i, entries in enumerate(chunks, first):
                    state.put(i * CHUNK, (i + 1) * CHUNK, entries)
            if _snapshot_id(snapshot.chunk, np.asarray(tokens_of(about), np.int32)) != snapshot.id:
                raise ValueError("its name is of other tokens")
            state.put(whole, n, rest)
            state.restore(Checkpoint.of(n, len(state.layers), small))
        except (ValueError, TypeError) as error:
            raise SnapshotError(f"{snapshot.path}: does not fit this model ({error})", snapshot.path) from None
        with contextlib.suppress(OSError):
            os.utime(snapshot.path)
        return logits

    def tokens(self, snapshot: Snapshot) -> list[int]:
        """Its token ids. SnapshotError."""
        files = Folder(self.folder)
        paths = [files.chunks[key].path for key in files.path_of(snapshot)[::-1]]
        return [token for path in (*paths, snapshot.path) for token in _tokens_in(path)]

    def about(self, snapshot: Snapshot) -> dict:
        """What was remembered of it: title, the snapshot it went on from. SnapshotError."""
        return kvfile.read_about(snapshot.path)

    # -- writing ----------------------------------------------------------------------------------------------

    def save(self, tokens: list[int], state: State, point: Checkpoint, logits: np.ndarray, about: dict) -> Snapshot:
        """Store the place `point` of a timeline of `tokens`, which `state` has the entries of.

        `about`: what to remember of it besides. SnapshotError if a budget does not allow it; OSError if the disk
        does not.
        """
        n, whole = point.n_tokens, point.n_tokens // CHUNK * CHUNK
        rest = {f"rest.{name}": array for name, array in state.entries(whole, n).items()}
        per_chunk = sum(array.nbytes for array in state.entries(0, CHUNK).values()) if whole else 0

        def chunk(i: int) -> bytearray:
            first, last = i * CHUNK, (i + 1) * CHUNK
            return kvfile.encoded(state.entries(first, last), {"tokens": tokens[first:last]})

        return self.adopt(tokens[:n], chunk, per_chunk, point.arrays | rest | {"logits": logits}, about)

    def adopt(
        self, tokens: list[int], chunk: Callable[[int], bytearray], per_chunk: int, small: dict, about: dict
    ) -> Snapshot:
        """Store files of chunks, of `per_chunk` bytes at most, and the arrays of a snapshot. As `save`."""
        files, n, ids = Folder(self.folder), len(tokens), np.asarray(tokens, np.int32)
        keys, behind = self._keys(ids), ids[n // CHUNK * CHUNK :]
        path = self.folder / f"{keys[-1]}.{n}.{_snapshot_id(keys[-1], behind)}.snapshot"
        missing = [i for i in range(n // CHUNK) if keys[i + 1] not in files.chunks]
        found = next((s for s in files.snapshots.get(keys[-1], ()) if s.path == path), None)
        if found and not missing:
            os.utime(path)
            return found
        self._allow(len(missing) * per_chunk + sum(array.nbytes for array in small.values()))
        self._make_folder()

        def write(i: int) -> int:
            data = chunk(i)
            write_atomically(self.folder / f"{keys[i]}-{keys[i + 1]}.chunk", data, 0o600)
            return len(data)

        with ThreadPoolExecutor(WORKERS) as pool:
            written = sum(pool.map(write, missing))
        data = kvfile.encoded(small, about | {"tokens": behind.tolist()})
        write_atomically(path, data, 0o600)
        self._count(written + len(data))
        trim(self.root, self.disk_budget)
        if not path.exists():
            raise SnapshotError(f"a context of {n} tokens takes more than the disk budget of stored prefixes")
        return next(s for s in Folder(self.folder).snapshots[keys[-1]] if s.path == path)

    def _make_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (self.folder / IDENTITY).exists():
            write_atomically(self.folder / IDENTITY, json.dumps(self.identity, indent=1).encode(), 0o600)

    def _allow(self, n_bytes: int) -> None:
        if n_bytes > self.disk_budget:
            raise SnapshotError(f"{n_bytes} bytes exceed the disk budget of stored prefixes, {self.disk_budget}")
        if self.written_today() + n_bytes > self.write_budget:
            raise SnapshotError(
                f"the {self.write_budget} bytes of stored prefixes that may be written per day are written"
            )

    def written_today(self) -> int:
        """Bytes written since midnight, all models."""
        try:
            ledger = jsonfile.read(self.root / WRITTEN, SnapshotError, jsonfile.SMALL)
            return int(ledger["bytes"]) if ledger["day"] == _today() else 0
        except (SnapshotError, ValueError, KeyError, TypeError, OverflowError):
            return 0

    def _count(self, n_bytes: int) -> None:
        ledger = {"day": _today(), "bytes": self.written_today() + n_bytes}
        write_atomically(self.root / WRITTEN, json.dumps(ledger).encode(), 0o600)

    def _keys(self, ids: np.ndarray) -> list[str]:
        """Keys of the beginning and of every whole chunk."""
        keys = [self.key]
        for first in range(0, len(ids) // CHUNK * CHUNK, CHUNK):
            keys.append(_hash(bytes.fromhex(keys[-1]) + ids[first : first + CHUNK].tobytes(), 16))
        return keys


def remove(files: Folder, snapshots: list[Snapshot]) -> None:
    """Delete snapshots, and the chunks that no other of this model goes through."""
    rest = [snapshot for snapshot in files.all_snapshots() if snapshot not in snapshots]
    needed = {key for snapshot in rest for key in files.path_of(snapshot)}
    for snapshot in snapshots:
        system.remove(snapshot.path)
        for key in files.path_of(snapshot):
            if key not in needed:
                system.remove(files.chunks[key].path)


def stored(root: Path) -> list[Prefixes]:
    """All models that have something stored under `root`. Folders that say nothing of themselves are left out."""
    found = []
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        with contextlib.suppress(SnapshotError):
            identity = jsonfile.read(path / IDENTITY, SnapshotError, jsonfile.SMALL)
            prefixes = Prefixes(root, identity, 0, 0)
            if prefixes.folder == path and isinstance(identity, dict) and isinstance(identity.get("model"), str):
                found.append(prefixes)
    return found


def trim(root: Path, budget: int) -> None:
    """Keep the snapshots used last, and their chunks, within `budget` bytes; delete the others.

    Chunks of no snapshot may be of one that is just being saved: they go when they are old.
    """
    folders = [Folder(path) for path in root.iterdir() if path.is_dir()]
    snapshots = [(snapshot, files) for files in folders for snapshot in files.all_snapshots()]
    kept: set[Path] = set()
    doomed: set[Path] = set()
    for snapshot, files in sorted(snapshots, key=lambda pair: -pair[0].used):
        sizes = {snapshot.path: snapshot.size}
        sizes |= {files.chunks[key].path: files.chunks[key].size for key in files.path_of(snapshot)}
        new = sum(size for path, size in sizes.items() if path not in kept)
        if new <= budget:
            budget -= new
            kept |= sizes.keys()
        else:
            doomed |= sizes.keys()
    old = time.time() - ORPHAN_AGE
    for files in folders:
        doomed |= {chunk.path for chunk in files.chunks.values() if chunk.made < old}
        doomed |= {path for path in files.path.glob("*.tmp") if _age(path) > ORPHAN_AGE}
    for path in doomed - kept:
        system.remove(path)


def _ahead(pool: ThreadPoolExecutor, work: Callable, arguments: list[tuple]) -> Iterator[Any]:
    """Results in order, a few of them made before they are asked for."""
    pending: deque[Future] = deque()
    for some in arguments:
        pending.append(pool.submit(work, *some))
        if len(pending) > 2 * WORKERS:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _entries(key: str, chunk: Chunk) -> dict[str, np.ndarray]:
    """Contents of a chunk. SnapshotError."""
    about, entries = kvfile.read(chunk.path)
    try:
        tokens = np.asarray(tokens_of(about), np.int32)
    except ValueError as error:
        raise SnapshotError(f"{chunk.path}: corrupt ({error})", chunk.path) from None
    if _hash(bytes.fromhex(chunk.parent) + tokens.tobytes(), 16) != key:
        raise SnapshotError(f"{chunk.path}: its name is of other tokens", chunk.path)
    return entries


def tokens_of(about: dict) -> list[int]:
    """Token ids of a file. ValueError if it names none."""
    tokens = about.get("tokens")
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < 1 << 31 for token in tokens):
        raise ValueError("its tokens are no token ids")
    return tokens


def _tokens_in(path: Path) -> list[int]:
    """SnapshotError."""
    try:
        return tokens_of(kvfile.read_about(path))
    except ValueError as error:
        raise SnapshotError(f"{path}: corrupt ({error})", path) from None


def snapshot_parts(arrays: dict[str, np.ndarray]) -> tuple[dict, dict, np.ndarray]:
    """Of a snapshot: the small parts of the state, the entries behind the last whole chunk, the logits. ValueError."""
    rest = {name.removeprefix("rest."): array for name, array in arrays.items() if name.startswith("rest.")}
    small = {name: array for name, array in arrays.items() if not name.startswith("rest.") and name != "logits"}
    logits = arrays.get("logits")
    if logits is None or logits.dtype != np.float32 or logits.ndim != 1 or not np.isfinite(logits).all():
        raise ValueError("no logits, or none that are finite")
    return small, rest, logits


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _snapshot_id(key: str, behind: np.ndarray) -> str:
    return _hash(bytes.fromhex(key) + behind.tobytes(), 8)


def _hash(data: bytes, size: int) -> str:
    return hashlib.blake2b(data, digest_size=size).hexdigest()


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()
