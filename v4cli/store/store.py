"""The store: one model's weights in files made for running. This file is the specification of its layout, version 2.

A store is a folder with `manifest.json`, the source's small files (config.json, tokenizer.json, ...) and parts. The
manifest records size and sha256 of every other file, and in `digest` that of its own text without this key: no byte
can change unnoticed. `manifest.copy.json` is the same once more, because without it the rest could not be trusted. A
part is a safetensors file; byte by byte:

    8 bytes    length of the header, little endian
    header     JSON (tensor name -> dtype, shape, data_offsets), padded with blanks so that data starts at a
               multiple of 4,096
    data       tensors in header order without holes; where alignment asks for one, a U8 tensor `pad.N` of zeros

| part                  | holds                                                   | alignment              |
|-----------------------|---------------------------------------------------------|------------------------|
| `embed`               | embed.weight                                            | each tensor 64         |
| `layer-LLL`           | all of layers.L but the routed experts                  | each tensor 64         |
| `layer-LLL-experts`   | layers.L.ffn.experts, expert by expert: w1.weight,      | each expert 4,096,     |
|                       | w1.scale, w3.weight, w3.scale, w2.weight, w2.scale      | its tensors packed     |
| `head`                | norm.weight, hc_head_*, head.weight                     | each tensor 64         |
| `mtp-M`, `...-experts`| the draft blocks, like layers                           |                        |

Names are the official ones. Every matrix has a number format, which `formats` in the manifest names
(store/recipe.py): for each matrix, by its name without `.weight`, and for a layer's experts together, as
`layers.L.ffn.experts.*.w1`, one name, or a list in the order of their numbers where they differ. One that has its
official format is kept, as is every tensor that is no matrix: official dtype, shape and bytes. Of the others [out, in]:

| format | `X.weight`                                                                  | `X.scale`                |
|--------|-----------------------------------------------------------------------------|--------------------------|
| int8   | I8 [out, in]                                                                | BF16 [out, in/32]        |
| int4   | U8 [out, in/2], even input in the low nibble, value = nibble - 8            | BF16 [out, in/32]        |
| fp4    | I8 [out, in/2], even input in the low nibble, e2m1 (official for experts)   | F8_E8M0 [out, in/32]     |

weight = value * scale. An expert is one aligned, contiguous read, whatever its formats (as in the official checkpoint
13,369,344 bytes in Flash, 35,094,528 in Pro, no padding).

Layout 1 had no `formats`: its `quant`, native or q4, said them. Its parts are the same to the byte.
"""

import hashlib
import json
import os
import shlex
import struct
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from v4kernels.formats import FORMATS, OFFICIAL, Format

from v4cli import files, jsonfile, paths
from v4cli.errors import ModelError
from v4cli.files import write_atomically
from v4cli.model.config import V4Config
from v4cli.model.schema import TensorSpec, expected_tensors, stored_as
from v4cli.store.checkpoint import Checkpoint
from v4cli.store.header import TensorPlace
from v4cli.store.mapped import MappedTensors
from v4cli.store.recipe import EXPERTS, KEEP, RECIPES, formats_by, from_record, recorded

FORMAT = "v4cli store"
LAYOUT = 2
MANIFEST = "manifest.json"
MANIFEST_COPY = "manifest.copy.json"
SMALL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")  # copied from the source
NEEDED = ("config.json", "tokenizer.json")  # those of them without which no model runs
PAGE = 4096
ALIGN = 64
EXPERT_ORDER = ("w1.weight", "w1.scale", "w3.weight", "w3.scale", "w2.weight", "w2.scale")


@dataclass(frozen=True)
class Stored:
    """One tensor of a part: its spec in the file, its byte offset there, and the official tensor it comes from."""

    spec: TensorSpec
    offset: int
    format: str  # of the matrix whose codes or scales it is; else keep; pad
    source: str  # official tensor; "" of a pad. Of scales the official ones, or X.weight if there are none


@dataclass
class Part:
    """One file of the store, completely known from config and recipe."""

    name: str
    tensors: dict[str, Stored] = field(default_factory=dict)
    end: int = 0  # of the data, counted from its start

    @property
    def file(self) -> str:
        return self.name + ".safetensors"

    @cached_property
    def header(self) -> bytes:
        """Everything before the data."""
        entries = {
            name: {
                "dtype": t.spec.dtype,
                "shape": list(t.spec.shape),
                "data_offsets": [t.offset, t.offset + t.spec.nbytes],
            }
            for name, t in self.tensors.items()
        }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % PAGE)
        return struct.pack("<Q", len(text)) + text

    @property
    def n_bytes(self) -> int:
        """Size of the finished file."""
        return len(self.header) + self.end

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Official tensors needed to make it."""
        return tuple(dict.fromkeys(t.source for t in self.tensors.values() if t.source))

    def add(self, name: str, spec: TensorSpec, form: str, source: str, align: int) -> None:
        """Append a tensor at the next multiple of `align`."""
        gap = -self.end % align
        if gap:
            pad = f"pad.{sum(t.format == 'pad' for t in self.tensors.values())}"
            self.tensors[pad] = Stored(TensorSpec("U8", (gap,)), self.end, "pad", "")
            self.end += gap
        self.tensors[name] = Stored(spec, self.end, form, source)
        self.end += spec.nbytes


def layout(config, quant: str, with_mtp: bool) -> dict[str, Part]:
    """Every part of a store that a recipe would make, by name, in file order."""
    official = expected_tensors(config, with_mtp)
    return lay_out(official, formats_by(RECIPES[quant], official))


def lay_out(official: dict[str, TensorSpec], formats: dict[str, Format]) -> dict[str, Part]:
    """The same for a format of every matrix."""
    tensors: dict[str, tuple[TensorSpec, str, str]] = {}  # as stored: spec, format, source
    for name, spec in official.items():
        matrix = name.removesuffix("scale") + "weight" if name.endswith(".scale") else name
        if matrix not in formats:
            tensors[name] = spec, KEEP, name
        elif name == matrix:
            form = formats[name]
            for half, half_spec in stored_as(form, spec.shape[0], OFFICIAL[spec.dtype].cols(spec.shape[1])):
                stored = name.removesuffix("weight") + half
                tensors[stored] = half_spec, form.name, stored if stored in official else name
    parts: dict[str, Part] = {}
    for name in sorted(tensors, key=_rank):
        part = _part_of(name)
        if part not in parts:
            parts[part] = Part(part)
        parts[part].add(name, *tensors[name], _alignment(name))
    return parts


def _alignment(name: str) -> int:
    if EXPERTS not in name:
        return ALIGN
    return PAGE if name.endswith(EXPERT_ORDER[0]) else 1


def _part_of(name: str) -> str:
    words = name.split(".")
    if words[0] == "embed":
        return "embed"
    if words[0] not in ("layers", "mtp"):
        return "head"
    block = f"layer-{int(words[1]):03d}" if words[0] == "layers" else f"mtp-{words[1]}"
    return block + ("-experts" if words[2:4] == ["ffn", "experts"] else "")


def _rank(name: str):
    """Sort key: embed, layers, head, mtp; experts in EXPERT_ORDER; else the order of the schema (sort is stable)."""
    words = name.split(".")
    kind = {"embed": 0, "layers": 1, "mtp": 3}.get(words[0], 2)
    block = int(words[1]) if kind in (1, 3) else 0
    if words[2:4] == ["ffn", "experts"]:
        return kind, block, 1, int(words[4]), EXPERT_ORDER.index(".".join(words[5:]))
    return kind, block, 0, 0, 0


@dataclass
class Manifest:
    """What `manifest.json` says; saved after every finished part, so that a killed pull can go on."""

    quant: str
    with_mtp: bool
    source: dict  # repo, revision, and files: name -> {bytes, sha256} of the official files used
    layout: int = LAYOUT
    complete: bool = False
    formats: dict[str, str | list[str]] = field(default_factory=dict)  # of all matrices; empty until they are known
    files: dict[str, dict] = field(default_factory=dict)  # file -> {bytes, sha256}, of parts also errors

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
            ("quant", _is_name(data.get("quant")) and (data.get("layout") != 1 or data["quant"] in RECIPES)),
            ("with_mtp", isinstance(data.get("with_mtp"), bool)),
            ("complete", isinstance(data.get("complete"), bool)),
            ("source", isinstance(data.get("source"), dict) and _is_source(data["source"])),
            ("formats", isinstance(data.get("formats"), dict) or ("formats" not in data and data.get("layout") == 1)),
            ("files", isinstance(data.get("files"), dict) and all(map(_is_record, data["files"].items()))),
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
        if self.quant not in RECIPES:
            raise ModelError(f"{where / MANIFEST}: formats is missing, and {self.quant!r} is no known recipe")
        return lay_out(official, formats_by(RECIPES[self.quant], official))

    def choose(self, config: V4Config) -> None:
        """Write down the formats of the recipe. ModelError if it is not known."""
        if self.quant not in RECIPES:
            raise ModelError(f"{self.quant!r} is no known recipe")
        self.formats = recorded(formats_by(RECIPES[self.quant], expected_tensors(config, self.with_mtp)))

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


def _is_source(source: dict) -> bool:
    texts = [source.get(key) for key in ("repo", "revision")]
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
