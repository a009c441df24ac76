"""Checking a store byte by byte: every file against the checksums in its manifest, and the manifest against its own."""

import hashlib
import os
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from v4cli.errors import ModelError
from v4cli.hardware import BLOCK, READERS
from v4cli.model.config import V4Config
from v4cli.store.store import LAYOUT, MANIFEST, MANIFEST_COPY, NEEDED, Manifest, Store, layout_hint, repair_command
from v4cli.system import uncached

# By name of a small file: what opens it as whoever runs the model will. ModelError for one that cannot be used.
Readers = Mapping[str, Callable[[Path, V4Config], object]]
NO_READERS: Readers = MappingProxyType({})


@dataclass(frozen=True)
class Damage:
    """One file that is not as recorded: what `v4 pull --part` calls it, and the command that mends just this."""

    file: str
    part: str | None
    problem: str
    repair: str


@dataclass(frozen=True)
class Report:
    """What checking a store found, and how much was read for it."""

    damage: list[Damage]
    n_files: int
    n_bytes: int


def recorded_bytes(folder: Path) -> int:
    """How much there is to read. ModelError as for verify_store."""
    return sum(record["bytes"] for record in _manifest(folder)[0].files.values())


def verify_store(
    folder: Path,
    on_bytes: Callable[[int], None] = lambda n: None,
    readers: Readers = NO_READERS,
) -> Report:
    """Read every recorded file once, READERS at a time, past the page cache, and what is as recorded as a model: small
    files with `readers` (by name; ModelError if one cannot be used), headers of parts. `on_bytes` is told what was
    read, from any thread. An interrupt stops the readers. ModelError if manifest and copy are both damaged, so that
    nothing can be trusted, or of another layout."""
    manifest, problems = _manifest(folder)
    again = repair_command(folder, manifest)
    if manifest.layout != LAYOUT:
        message = f"{folder}: layout {manifest.layout}, this version reads {LAYOUT}"
        raise ModelError(message, layout_hint(manifest, again))
    damage = [Damage(name, None, problem, again) for name, problem in problems]
    files = sorted(manifest.files.items())
    found = [(name, problem) for (name, _), problem in zip(files, _problems(folder, files, on_bytes)) if problem]
    for name, problem in found + _unrecorded(folder, manifest):
        part = name.removesuffix(".safetensors")
        damage.append(Damage(name, part, problem, repair_command(folder, manifest, part)))
    if not damage:
        damage += _out_of_order(folder, again, manifest, readers)
    for path in _extra(folder, manifest, {item.file for item in damage}):
        remedy = f"rm -r {shlex.quote(str(path))}"
        damage.append(Damage(path.name, None, "does not belong to this store", remedy))
    return Report(damage, len(files), sum(record["bytes"] for _, record in files))


def _manifest(folder: Path) -> tuple[Manifest, list[tuple[str, str]]]:
    """The manifest, or its copy, and what is wrong with either."""
    loaded, problems = [], []
    for name in (MANIFEST, MANIFEST_COPY):
        try:
            loaded.append(Manifest.load(folder, name))
        except ModelError as error:
            problems.append((name, str(error).removeprefix(f"{folder / name}: ")))
    if not loaded:
        message = f"{folder}: {MANIFEST} and its copy are both damaged, so no file can be trusted"
        raise ModelError(message, f"v4 rm {folder.name}, then v4 pull it again")
    if loaded[0] != loaded[-1]:
        problems.append((MANIFEST_COPY, f"differs from {MANIFEST}"))
    if not loaded[0].complete:
        problems.append((MANIFEST, "the store is incomplete"))
    return loaded[0], problems


def _problems(folder: Path, files: list[tuple[str, dict]], on_bytes: Callable[[int], None]) -> list[str]:
    """What is wrong with each file."""
    stop = threading.Event()

    def check(item: tuple[str, dict]) -> str:
        return _problem(folder / item[0], item[1], on_bytes, stop)

    with ThreadPoolExecutor(READERS) as pool:
        try:
            return list(pool.map(check, files))
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _problem(path: Path, record: dict, on_bytes: Callable[[int], None], stop: threading.Event) -> str:
    """What is wrong with one file; empty if nothing."""
    if path.exists() and not path.is_file():
        return "is no regular file"
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size != record["bytes"]:
                return f"{size} bytes, expected {record['bytes']}"
            uncached(file.fileno(), size)
            digest, buffer = hashlib.sha256(), memoryview(bytearray(BLOCK))
            while (n := file.readinto(buffer)) and not stop.is_set():
                digest.update(buffer[:n])
                on_bytes(n)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if digest.hexdigest() == record["sha256"] else "checksum differs"


def _unrecorded(folder: Path, manifest: Manifest) -> list[tuple[str, str]]:
    """Files a finished store must have and this manifest does not know, with the problem."""
    if not manifest.complete:
        return []
    missing = [
        (name, "has no checksum" if (folder / name).is_file() else "is missing")
        for name in NEEDED
        if name not in manifest.files
    ]
    try:
        parts = manifest.parts(V4Config.load(folder), folder).values()
    except ModelError:
        parts = ()  # found by the checksum of config.json, or when the store is opened
    return missing + [(part.file, "is not recorded") for part in parts if part.file not in manifest.files]


def _out_of_order(folder: Path, again: str, manifest: Manifest, readers: Readers) -> Iterator[Damage]:
    """Files that are as recorded, and no model."""
    try:
        config = Store.open(folder).config
    except ModelError as error:
        yield Damage(MANIFEST, None, f"does not describe a model that can be used ({error})", again)
        return
    for name, problem in unusable(folder, config, readers):
        yield Damage(name, name, problem, repair_command(folder, manifest, name))


def unusable(folder: Path, config: V4Config, readers: Readers) -> Iterator[tuple[str, str]]:
    """Small files of a model that are missing, or that their reader does not take, with the problem."""
    for name, read in readers.items():
        try:
            read(folder / name, config)
        except ModelError as error:
            yield name, str(error).removeprefix(f"{folder / name}: ")


def _extra(folder: Path, manifest: Manifest, told: set[str]) -> list[Path]:
    """Files that nobody wrote down. Hidden ones, a kept source among them, and an unfinished store are not judged."""
    if not manifest.complete:
        return []
    known = {MANIFEST, MANIFEST_COPY, *manifest.files, *told}
    return sorted(path for path in folder.iterdir() if path.name not in known and not path.name.startswith("."))
