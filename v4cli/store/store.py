"""The store: one model's weights in files made for running, as store/parts.py says, with a manifest of them."""

import hashlib
import json
import os
import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from v4kernels.formats import FORMATS, Format

from v4cli import files, jsonfile, paths
from v4cli.errors import ModelError
from v4cli.files import write_atomically
from v4cli.model.config import V4Config
from v4cli.model.schema import expected_tensors
from v4cli.store.checkpoint import Checkpoint
from v4cli.store.header import TensorPlace
from v4cli.store.mapped import MappedTensors
from v4cli.store.parts import Part, lay_out
from v4cli.store.recipe import LAYOUT_1, RECIPES, Named, check, formats_by, parse
from v4cli.store.record import from_record, recorded

FORMAT = "v4cli store"
LAYOUT = 2
MANIFEST = "manifest.json"
MANIFEST_COPY = "manifest.copy.json"
SMALL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")  # copied from the source
NEEDED = ("config.json", "tokenizer.json")  # those of them without which no model runs


@dataclass
class Manifest:
    """What `manifest.json` says; saved after every finished part, so that a killed pull can go on."""

    quant: str
    with_mtp: bool
    source: dict  # repo, revision, files: name -> {bytes, sha256} of the official files used, perhaps calibration
    layout: int = LAYOUT
    complete: bool = False
    formats: dict[str, str | list[str]] = field(default_factory=dict)  # of all matrices; empty until they are known
    recipe: dict = field(default_factory=dict)  # that of `quant`, as data; empty of stores that had only its name
    files: dict[str, dict] = field(default_factory=dict)  # file -> {bytes, sha256}, of parts also errors
    measured: dict = field(default_factory=dict)  # what the weights are worth (store/price.py)

    @classmethod
    def load(cls, folder: Path, name: str = MANIFEST) -> "Manifest":
        """Read and validate. ModelError names the file and the key, or says that not every byte is as written."""
        path = folder / name
        raw = files.contents(path, jsonfile.MAX_BYTES)
        data = jsonfile.parse(raw, str(path))
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ModelError(f"{path}: not a manifest of a v4cli store")
        checks = (
            ("layout", isinstance(data.get("layout"), int)),
            ("quant", _is_name(data.get("quant")) and (data.get("layout") != 1 or data["quant"] in LAYOUT_1)),
            ("with_mtp", isinstance(data.get("with_mtp"), bool)),
            ("complete", isinstance(data.get("complete"), bool)),
            ("source", isinstance(data.get("source"), dict) and _is_source(data["source"])),
            ("formats", isinstance(data.get("formats"), dict) or ("formats" not in data and data.get("layout") == 1)),
            ("recipe", "recipe" not in data or _is_recipe(data["recipe"])),
            ("files", isinstance(data.get("files"), dict) and all(map(_is_record, data["files"].items()))),
            ("measured", isinstance(data.get("measured", {}), dict)),
        )
        for key, ok in checks:
            if not ok:
                raise ModelError(f"{path}: {key} is missing or not valid")
        try:
            intact = raw == _manifest_bytes(data)
        except RecursionError:
            intact = False
        if not intact:
            raise ModelError(f"{path}: its digest does not match")
        return cls(**{key: data[key] for key, _ in checks if key in data})

    def parts(self, config: V4Config, where: Path) -> dict[str, Part]:
        """Every part by name, in file order. ModelError, about folder `where`, if the formats are not those of such a
        model. Of layout 1, and as long as the formats are not known, what the recipe would make."""
        official = expected_tensors(config, self.with_mtp)
        if self.formats:
            try:
                return lay_out(official, from_record(self.formats, official))
            except ModelError as problem:
                raise ModelError(f"{where / MANIFEST}: {problem}") from None
        if self.named is None:
            raise ModelError(f"{where / MANIFEST}: formats is missing, and {self.quant!r} is no known recipe")
        return lay_out(official, formats_by(self.named.rules, official))

    @property
    def named(self) -> Named | None:
        """The recipe; None if all that is known is a name that means nothing here."""
        return parse(self.recipe, MANIFEST, ModelError) if self.recipe else RECIPES.get(self.quant)

    def choose(self, config: V4Config) -> None:
        """Write down the formats of the recipe. ModelError if it is not known, UsageError if it does not suit such a
        model."""
        if self.named is None:
            raise ModelError(f"{self.quant!r} is no known recipe")
        official = expected_tensors(config, self.with_mtp)
        check(self.named, official)
        self.formats = recorded(formats_by(self.named.rules, official))

    def save(self, folder: Path) -> None:
        """Write whole or not at all, and through to the disk; the copy after the first is safe."""
        for name in (MANIFEST, MANIFEST_COPY):
            write_atomically(folder / name, _manifest_bytes({"format": FORMAT, **vars(self)}))


def _manifest_bytes(data: dict) -> bytes:
    """The one way to write a manifest; `digest` is the sha256 of the same text without that key."""

    def text(values: dict) -> bytes:
        return (json.dumps(values, indent=1, sort_keys=True) + "\n").encode()

    rest = {key: value for key, value in data.items() if key != "digest"}
    return text({**rest, "digest": hashlib.sha256(text(rest)).hexdigest()})


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 100 and value.isprintable()


def _is_recipe(data: object) -> bool:
    """Whether it is none, or one that this version understands."""
    if data == {}:
        return True
    try:
        return bool(parse(data, MANIFEST, ModelError))
    except ModelError:
        return False


def _is_source(source: dict) -> bool:
    texts = [source.get(key) for key in ("repo", "revision")]
    calibration = source.get("calibration", {"file": "", "sha256": "", "tokens": 0})
    if not isinstance(calibration, dict) or not isinstance(calibration.get("tokens"), int):
        return False
    texts += [calibration.get(key) for key in ("file", "sha256")]
    return all(isinstance(text, str) and text.isprintable() for text in texts) and isinstance(source.get("files"), dict)


def _is_record(item: tuple) -> bool:
    name, record = item
    return (
        Path(name).name == name
        and name not in ("", "..")
        and name.isprintable()
        and isinstance(record, dict)
        and isinstance(record.get("bytes"), int)
        and isinstance(record.get("sha256"), str)
        and isinstance(record.get("errors", {}), dict)
        and all(map(_is_error, record.get("errors", {}).values()))
    )


def _is_error(pair) -> bool:
    """Sum of squared errors and sum of squares."""
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(v, float) and v >= 0 for v in pair)


def source_name(source: dict) -> str:
    """A manifest's source as `v4 pull` takes it: REPO@REVISION, or the path of a folder."""
    repo, revision = source["repo"], source["revision"]
    return repo if os.path.isabs(repo) or not revision else f"{repo}@{revision}"


def repair_command(folder: Path, manifest: Manifest, part: str | None = None) -> str:
    """What to type to make one part or small file again; what is missing, and the manifest, if `part` is None.

    A store of a folder that is not among the pulled models comes from `v4 quantize`.
    """
    source = shlex.quote(source_name(manifest.source))
    command = f"v4 pull {source} --name {shlex.quote(folder.name)}"
    if os.path.isabs(manifest.source["repo"]) and folder.resolve().parent != paths.models_dir().resolve():
        command = f"v4 quantize {source} {shlex.quote(str(folder))}"
    return command + (f" --part {shlex.quote(part)}" if part else "")


def layout_hint(manifest: Manifest, again: str) -> str:
    """What to do about another layout; `again` is the command that pulls the store."""
    return f"{again} repacks it" if manifest.layout < LAYOUT else "it was made by a newer v4cli: upgrade"


def is_store(path: Path) -> bool:
    """Whether a folder is a store, be it damaged."""
    return any((path / name).exists() for name in (MANIFEST, MANIFEST_COPY))


class Store(MappedTensors):
    """An opened store. Tensors are views of the mapped files."""

    def __init__(self, path: Path, config: V4Config, manifest: Manifest, parts: dict[str, Part]):
        places = {
            name: TensorPlace(path / part.file, len(part.header) + t.offset, t.spec)
            for part in parts.values()
            for name, t in part.tensors.items()
            if t.format != "pad"
        }
        super().__init__(path, config, places)
        self.manifest = manifest
        self.parts = parts
        self.formats = {name: t.format for part in parts.values() for name, t in part.tensors.items()}
        self._official = expected_tensors(config, manifest.with_mtp)

    @property
    def trunk(self) -> dict[str, Part]:
        """The parts that are not draft blocks."""
        return {name: part for name, part in self.parts.items() if not name.startswith("mtp-")}

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Read manifest, config and headers. ModelError names the file and what to do; no weight is read."""
        path = Path(path)
        manifest = Manifest.load(path)
        again = repair_command(path, manifest)
        if manifest.layout != LAYOUT:
            message = f"{path}: store layout {manifest.layout}, this version reads {LAYOUT}"
            raise ModelError(message, layout_hint(manifest, again))
        if not manifest.complete and not manifest.files:
            raise ModelError(f"{path}: incomplete, just begun", f"{again} goes on")
        config = V4Config.load(path)
        parts = manifest.parts(config, path)
        if not manifest.complete:
            done = sum(part.file in manifest.files for part in parts.values())
            raise ModelError(f"{path}: incomplete, {done} of {len(parts)} parts are there", f"{again} goes on")
        hint = f"v4 verify {path.name} tells what is damaged"
        for name, record in manifest.files.items():
            if not name.endswith(".safetensors"):
                _check_small(path / name, record, hint)
        for part in parts.values():
            _check_file(path / part.file, part, hint)
        return cls(path, config, manifest, parts)

    @cached_property
    def fingerprint(self) -> dict:
        """That of the tensors, and the checksums that the manifest has of the files."""
        recorded = {name: record["sha256"] for name, record in sorted(self.manifest.files.items())}
        return super().fingerprint | {"recorded": recorded}

    def official_dtype(self, name: str) -> str:
        return self._official[name].dtype

    def form(self, name: str) -> Format:
        stored = self.formats[name]
        return FORMATS[stored] if stored in FORMATS else super().form(name)


def _check_small(path: Path, record: dict, hint: str) -> None:
    """A file that says how the weights are used, to the byte."""
    try:
        data = files.contents(path, jsonfile.MAX_BYTES)
    except ModelError as problem:
        raise ModelError(str(problem), hint) from None
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        raise ModelError(f"{path}: not as the manifest says (its checksum differs)", hint)


def _check_file(path: Path, part: Part, hint: str) -> None:
    """A part, as far as size and header tell."""
    try:
        with files.open_regular(path) as file:
            size, header = os.fstat(file.fileno()).st_size, file.read(len(part.header))
    except ModelError as problem:
        raise ModelError(str(problem), hint) from None
    except OSError as problem:
        raise ModelError(f"{path}: cannot be read ({problem.strerror})", hint) from None
    if size != part.n_bytes:
        raise ModelError(f"{path}: {size} bytes, expected {part.n_bytes}", hint)
    if header != part.header:
        raise ModelError(f"{path}: the header is not that of part {part.name}", hint)


def open_model(path: Path) -> Checkpoint | Store:
    """The store or official checkpoint in folder `path`. ModelError if it is neither, or damaged."""
    return Store.open(path) if (Path(path) / MANIFEST).exists() else Checkpoint.open(path)
