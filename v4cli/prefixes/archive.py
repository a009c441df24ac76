"""One stored context as a file to carry elsewhere: a tar of its chunks and its snapshot, each with its own checksum.

Members, in this order: `identity.json`, `0000.chunk`, `0001.chunk`, ..., `snapshot`. The numbers may be used with any
weights of the same configuration: the reader asks for that, and tells whether the weights are the same ones. Nothing
else a file says is believed: a member is as long as it is there, its arrays are those that the model's state has.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from v4cli import files, jsonfile, system
from v4cli.errors import SnapshotError, UsageError
from v4cli.model.config import V4Config
from v4cli.model.state import Checkpoint, State
from v4cli.prefixes import kvfile
from v4cli.prefixes.prefixes import CHUNK, IDENTITY, Folder, Prefixes, Snapshot, snapshot_parts, tokens_of

SKIPPED = (tarfile.XHDTYPE, tarfile.XGLTYPE)  # headers that say more of the next member: nothing we ask for
MAX_SKIPPED = 1 << 16
SNAPSHOT = "snapshot"


def write(to: Path, prefixes: Prefixes, snapshot: Snapshot) -> int:
    """Write `to`, which must not exist, for its owner only; its bytes. SnapshotError for a damaged context, OSError,
    UsageError."""
    if os.path.lexists(to):
        raise UsageError(f"{to}: exists already", "give another name")
    if not to.parent.is_dir():
        raise UsageError(f"{to.parent}: no such folder", f"mkdir -p {to.parent}")
    found = Folder(prefixes.folder)
    paths = [found.chunks[key].path for key in found.path_of(snapshot)[::-1]]
    with files.replacing(to, 0o600) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        _add(tar, IDENTITY, json.dumps(prefixes.identity).encode())
        for i, path in enumerate([*paths, snapshot.path]):
            data = kvfile.contents(path)
            kvfile.decoded(data, path)  # nothing damaged leaves the house
            _add(tar, f"{i:04}.chunk" if i < len(paths) else SNAPSHOT, data)
    return to.stat().st_size


def read(source: Path, prefixes: Prefixes, config: V4Config, state: State) -> tuple[Snapshot, bool]:
    """Store the context of a file under `prefixes`; and whether it was computed with the very same weights. `state`: an
    empty one of the model, which has this config.

    SnapshotError if the file is damaged or of a model of another shape.
    """
    try:
        with files.open_regular(source, SnapshotError) as file:
            members = _members(file)
            identity = _identity(next(members, ("", 0, 0)), file)
            if _shape(identity) != _shape(prefixes.identity):
                raise SnapshotError(f"{source}: of a model of another shape or numerics")
            chunks: list[tuple[int, int]] = []
            tokens: list[int] = []
            for i, (name, at, size) in enumerate(members):
                if name not in (SNAPSHOT, f"{i:04}.chunk"):
                    raise ValueError(f"{jsonfile.shown(name)} where {i:04}.chunk or {SNAPSHOT} should be")
                about, arrays = kvfile.decoded(_piece(file, at, size), source)
                some = _tokens(about, config)
                tokens += some
                if len(tokens) > config.max_position_embeddings:
                    raise ValueError("more tokens than the model's context")
                if name == SNAPSHOT:
                    _check_snapshot(arrays, len(tokens), len(some), config, state)
                    return _adopted(file, prefixes, tokens, chunks, arrays, about), _same(identity, prefixes.identity)
                _check_entries(arrays, len(some), state)
                chunks.append((at, size))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise SnapshotError(f"{source}: not a stored context, or damaged ({error})") from None
    raise SnapshotError(f"{source}: not a stored context, or damaged (its snapshot is missing)")


def _members(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Name, place and size of every regular member. ValueError for anything else: tarfile would believe in holes that
    are not in the file, and in headers of any length."""
    end, at = os.fstat(file.fileno()).st_size, 0
    while at + tarfile.BLOCKSIZE <= end:
        block = bytearray(tarfile.BLOCKSIZE)
        if system.read_at(file.fileno(), block, at) < len(block):
            raise ValueError("a header is cut off")
        if not any(block):
            return
        try:
            info = tarfile.TarInfo.frombuf(bytes(block), "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise ValueError(str(error)) from None
        start = at + tarfile.BLOCKSIZE
        at = start + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if info.size < 0 or start + info.size > end:
            raise ValueError(f"{jsonfile.shown(info.name)} is cut off")
        if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            yield info.name, start, info.size
        elif info.type not in SKIPPED or info.size > MAX_SKIPPED:
            raise ValueError(f"{jsonfile.shown(info.name)} is no plain file")


def _piece(file: BinaryIO, at: int, size: int) -> bytearray:
    if size > kvfile.MAX_BYTES:
        raise ValueError(f"a member of {size} bytes")
    data = bytearray(size)
    if system.read_at(file.fileno(), data, at) != size:
        raise ValueError("a member is cut off")
    return data


def _identity(member: tuple[str, int, int], file: BinaryIO) -> dict:
    name, at, size = member
    if name != IDENTITY or size > jsonfile.SMALL:
        raise ValueError(f"no {IDENTITY} where it should be")
    identity = jsonfile.parse(bytes(_piece(file, at, size)), IDENTITY, SnapshotError)
    if not isinstance(identity, dict):
        raise ValueError(f"{IDENTITY} is no object")
    return identity


def _shape(identity: dict) -> tuple:
    return identity.get("config"), identity.get("numerics")


def _same(identity: dict, other: dict) -> bool:
    """Whether numbers computed there and here are the same: of weights the content counts, not where they lie."""
    weights = [one.get("weights") for one in (identity, other)]
    contents = [some.get("content") if isinstance(some, dict) else None for some in weights]
    versions = [(one.get("version"), one.get("kernels")) for one in (identity, other)]
    return contents[0] is not None and contents[0] == contents[1] and versions[0] == versions[1]


def _tokens(about: dict, config: V4Config) -> list[int]:
    tokens = tokens_of(about)
    if tokens and max(tokens) >= config.vocab_size:
        raise ValueError("a token outside the vocabulary")
    return tokens


def _check_entries(arrays: dict, n_tokens: int, state: State) -> None:
    """ValueError unless these are finite entries of a whole chunk."""
    if n_tokens != CHUNK:
        raise ValueError(f"a chunk of {n_tokens} tokens")
    state.put(0, CHUNK, arrays)
    if not state.finite(arrays):
        raise ValueError("it holds values that are not finite")


def _check_snapshot(arrays: dict, n: int, n_rest: int, config: V4Config, state: State) -> None:
    """ValueError unless a session can go on from here: small parts at n tokens, entries of the last ones, logits."""
    if not n or n_rest != n % CHUNK:
        raise ValueError(f"a snapshot of {n_rest} of {n} tokens")
    small, rest, logits = snapshot_parts(arrays)
    if logits.shape != (config.vocab_size,):
        raise ValueError("logits of another vocabulary")
    state.put(0, n_rest, rest)
    state.restore(Checkpoint.of(n, len(state.layers), small))
    if not state.finite(rest) or not state.finite(small):
        raise ValueError("it holds values that are not finite")


def _adopted(
    file: BinaryIO,
    prefixes: Prefixes,
    tokens: list[int],
    chunks: list[tuple[int, int]],
    small: dict[str, np.ndarray],
    about: dict,
) -> Snapshot:
    """Stored under `prefixes`, its chunks read once more: all of them may be too many to hold."""
    if sum(size for _, size in chunks) > prefixes.disk_budget:
        raise ValueError("larger than the disk budget of stored prefixes")

    def chunk(i: int) -> bytearray:
        data = _piece(file, *chunks[i])
        about, _ = kvfile.decoded(data, Path(f"{i:04}.chunk"))
        if about["tokens"] != tokens[i * CHUNK : (i + 1) * CHUNK]:
            raise ValueError("it changed while it was read")
        return data

    title = about.get("title")
    says = {"title": title if isinstance(title, str) else "", "after": ""}
    return prefixes.adopt(tokens, chunk, max((size for _, size in chunks), default=0), small, says)


def _add(tar: tarfile.TarFile, name: str, data: bytes | bytearray) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o600
    tar.addfile(info, io.BytesIO(data))
