"""The models pulled to this machine: one folder each under one roof, and what state each is in. Reads no weights."""

import contextlib
import difflib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from v4cli import paths
from v4cli.errors import ModelError
from v4cli.model.config import V4Config
from v4cli.store import kinds
from v4cli.store.checkpoint import INDEX, SINGLE
from v4cli.store.store import LAYOUT, NEEDED, Manifest, is_store, source_name

COMPLETE = "complete"
LEFTOVER = "leftover of an interrupted pull"
CHECKPOINT = "official checkpoint"
STRANGE = "not a model that v4 made"
OURS = (".safetensors", ".json", ".tmp")  # how the names of a store's files end


@dataclass(frozen=True)
class Entry:
    """A store and its state: complete, or else what is wrong. What could not be read is None."""

    path: Path
    state: str
    n_bytes: int  # on disk
    manifest: Manifest | None
    config: V4Config | None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def source(self) -> str:
        """As `v4 pull` takes it; empty if unknown."""
        return source_name(self.manifest.source) if self.manifest else ""


def weight_errors(manifest: Manifest) -> dict[str, float]:
    """Relative root mean square error of quantization by class of tensor, over all parts that are there."""
    sums: dict[str, list[float]] = {}
    for record in manifest.files.values():
        for name, pair in record.get("errors", {}).items():
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += pair[0]
            total[1] += pair[1]
    return {name: (error / size) ** 0.5 for name, (error, size) in sorted(sums.items()) if size}


def entries(roof: Path) -> list[Entry]:
    """Every store under `roof`, by name, unfinished ones and leftovers of a pull too; hidden folders are none."""
    if not roof.is_dir():
        return []
    return [inspect(path) for path in sorted(roof.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def inspect(path: Path) -> Entry:
    """The state of one store, from its manifest, its config and the sizes of its files."""
    manifest = config = None
    if not is_store(path):
        state = CHECKPOINT if (path / INDEX).exists() or (path / SINGLE).exists() else LEFTOVER
        shown = [item for item in path.iterdir() if not item.name.startswith(".")]
        if state == LEFTOVER and any(item.suffix not in OURS for item in shown):
            state = STRANGE
        return Entry(path, state, disk_bytes(path), None, None)
    try:
        manifest = Manifest.load(path)
        if not manifest.files and not manifest.complete:
            return Entry(path, "incomplete, just begun", disk_bytes(path), manifest, None)
        config = V4Config.load(path)
        state = _state(path, manifest, config)
    except ModelError as error:
        state = f"damaged: {str(error).removeprefix(str(path) + '/')}"
    return Entry(path, state, disk_bytes(path), manifest, config)


def _state(path: Path, manifest: Manifest, config: V4Config) -> str:
    if manifest.layout != LAYOUT:
        return f"layout {manifest.layout}, this version reads {LAYOUT}"
    for name in (*manifest.files, *(NEEDED if manifest.complete else ())):
        if not (path / name).is_file():
            return f"damaged: {name} is missing"
        if name in manifest.files and (path / name).stat().st_size != manifest.files[name]["bytes"]:
            return f"damaged: {name} has the wrong size"
    if not manifest.complete:
        n_done = sum(name.endswith(".safetensors") for name in manifest.files)
        return f"incomplete, {n_done} of {n_parts(config, manifest.with_mtp)} parts"
    return COMPLETE


def n_parts(config: V4Config, with_mtp: bool) -> int:
    """How many parts a store of this model has, without laying them out."""
    return 2 + 2 * (config.num_hidden_layers + (config.n_mtp_blocks if with_mtp else 0))


def disk_bytes(path: Path) -> int:
    """Bytes of all files below a folder; links are not followed, and what vanishes meanwhile counts nothing."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def only_model(roof: Path) -> str | None:
    """Name of the complete store if there is exactly one."""
    whole = [entry.name for entry in entries(roof) if entry.state == COMPLETE]
    return whole[0] if len(whole) == 1 else None


def model_folder(model: str) -> Path:
    """Folder of a model: nano, a name under paths.models_dir(), or a path (./NAME where both exist).

    ModelError if there is none.
    """
    if model == "nano":
        return paths.NANO
    for path in (named_folder(model), os.path.expanduser(model)):
        if path is not None and os.path.isdir(path):
            return kinds.resolved(Path(path))
    from v4cli.model.known import MODELS  # 8 ms, which the REPL has no time for

    if os.path.exists(os.path.expanduser(model)):
        raise kinds.not_a_folder(Path(model).expanduser())
    raise ModelError(f"model {model!r} not found", _what_else(model, MODELS))


def _what_else(model: str, releases: Collection[str]) -> str:
    """The next command of who has named a model that is not here."""
    here = ["nano", *(entry.name for entry in entries(paths.models_dir()))]
    close = [model] if model in releases else difflib.get_close_matches(model, [*here, *releases], 1)
    if not close:
        return "v4 ls lists the models that are here; v4 pull brings others"
    ask = "" if close[0] == model else f"did you mean {close[0]}?"
    return " ".join(filter(None, [ask, "" if close[0] in here else f"v4 pull {close[0]}"]))


def named_folder(name: str) -> Path | None:
    """Where a pulled model of this name is or would be; None if it cannot be a name: a path, hidden, nano."""
    if name in ("", "nano") or name.startswith(".") or Path(name).name != name:
        return None
    return paths.models_dir() / name
