"""One stored context as a file to carry elsewhere: a tar of its chunks and its snapshot, each with its own checksum.

Members, in this order: `identity.json`, `0000.chunk`, `0001.chunk`, ..., `snapshot`. The numbers may be used with any
weights of the same configuration: the reader asks for that, and tells whether the weights are the same ones.
"""

import contextlib
import io
import json
import os
import tarfile
import tempfile
from pathlib import Path

from v4cli.cache import kvfile
from v4cli.cache.prefixes import CHUNK, IDENTITY, Folder, Prefixes, Snapshot
from v4cli.errors import SnapshotError, UsageError

MOST_BYTES = 1 << 34  # of one member


def write(to: Path, prefixes: Prefixes, snapshot: Snapshot) -> int:
    """Write `to`, which must not exist; its bytes. SnapshotError for a damaged context, OSError, UsageError."""
    if to.exists():
        raise UsageError(f"{to}: exists already", "give another name")
    files = Folder(prefixes.folder)
    keys = files.path_of(snapshot)[::-1]
    temporary = to.with_name(to.name + ".tmp")
    try:
        with tarfile.open(temporary, "w") as tar:
            _add(tar, IDENTITY, json.dumps(prefixes.identity).encode())
            for i, path in enumerate([files.chunks[key].path for key in keys] + [snapshot.path]):
                kvfile.read(path)  # nothing damaged leaves the house
                tar.add(path, f"{i:04}.chunk" if i < len(keys) else "snapshot")
        os.replace(temporary, to)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    return to.stat().st_size


def read(source: Path, prefixes: Prefixes) -> tuple[Snapshot, bool]:
    """Store the context of a file under `prefixes`; and whether it was computed with the very same weights.

    SnapshotError if the file is damaged or of a model of another shape.
    """
    try:
        with tarfile.open(source, "r:") as tar, tempfile.TemporaryDirectory() as scratch:
            members = iter(tar)
            identity = json.loads(_contents(tar, next(members, None), IDENTITY, 1 << 20))
            if not isinstance(identity, dict) or _shape(identity) != _shape(prefixes.identity):
                raise SnapshotError(f"{source}: of a model of another shape or numerics")
            tokens, entries = [], []
            for i, member in enumerate(members):
                name = f"{i:04}.chunk" if member.name != "snapshot" else "snapshot"
                path = Path(scratch) / name
                path.write_bytes(_contents(tar, member, name, MOST_BYTES))
                about, arrays = kvfile.read(path)
                tokens += about["tokens"]
                if name == "snapshot":
                    return prefixes.adopt(tokens, entries, arrays, about), identity == prefixes.identity
                entries.append(path)
                if len(about["tokens"]) != CHUNK:
                    break
    except (tarfile.TarError, ValueError, KeyError, TypeError, OSError) as error:
        raise SnapshotError(f"{source}: not a stored context, or damaged ({error})") from None
    raise SnapshotError(f"{source}: not a stored context, or damaged (its snapshot is missing)")


def _shape(identity: dict) -> tuple:
    return identity.get("config"), identity.get("backend"), identity.get("numerics")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _contents(tar: tarfile.TarFile, member: tarfile.TarInfo | None, name: str, most: int) -> bytes:
    if member is None or member.name != name or not member.isreg() or member.size > most:
        raise ValueError(f"no {name} where it should be")
    return tar.extractfile(member).read()
