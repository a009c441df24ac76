"""`v4 ls` and `v4 show`: which models there are, what they are, what they cost."""

from dataclasses import dataclass
from pathlib import Path

from v4cli import paths
from v4cli.cli import output
from v4cli.errors import ModelError
from v4cli.model.config import V4Config
from v4cli.model.known import MODELS, known_config
from v4cli.model.schema import TensorSpec, expected_tensors
from v4cli.plan import cost
from v4cli.store import library
from v4cli.store.checkpoint import Checkpoint
from v4cli.store.library import COMPLETE, disk_bytes, entries, inspect, weight_errors
from v4cli.store.recipe import RECIPES
from v4cli.store.store import NEEDED, Manifest, is_store, layout, open_model, source_name

OFFICIAL = "official"
FORMAT_NAMES = {
    OFFICIAL: "FP4 experts, FP8 dense (official)",
    "native": "native: FP4 experts as in the official checkpoint, the rest int8",
    "q4": "q4: FP4 experts as in the official checkpoint, dense int4",
}
NOT_HERE = "not on this machine"


@dataclass(frozen=True)
class Subject:
    """A model to tell about: on this disk, or a release known by name."""

    name: str
    folder: Path | None
    state: str
    config: V4Config
    quant: str
    with_mtp: bool
    manifest: Manifest | None = None

    @classmethod
    def find(cls, model: str) -> "Subject":
        """By name or folder; a release that is not here is told from its config. ModelError if there is nothing."""
        try:
            folder = library.model_folder(model)
        except ModelError:
            if model not in MODELS:
                raise
            return cls(model, None, NOT_HERE, known_config(model), OFFICIAL, True)
        if not is_store(folder):
            checkpoint = Checkpoint.open(folder)
            with_mtp = any(name.startswith("mtp.") for name in checkpoint.places)
            absent = next((name for name in NEEDED if not (folder / name).is_file()), None)
            state = f"incomplete: {absent} is missing" if absent else COMPLETE
            return cls(model, folder, state, checkpoint.config, OFFICIAL, with_mtp)
        entry = inspect(folder)
        if entry.config is None or entry.manifest is None:
            raise ModelError(f"{folder}: {entry.state}", f"v4 verify {model} tells how to repair it")
        manifest = entry.manifest
        return cls(model, folder, entry.state, entry.config, manifest.quant, manifest.with_mtp, manifest)

    def weights(self, quant: str) -> tuple[dict[str, TensorSpec], int]:
        """Its tensors as a quantization stores them, and the bytes of the files (of the official one: the payload)."""
        if quant == OFFICIAL:
            tensors = expected_tensors(self.config, self.with_mtp)
            return tensors, cost.payload_bytes(tensors).total
        ours = self.manifest is not None and self.folder is not None and quant == self.manifest.quant
        parts = self.manifest.parts(self.config, self.folder) if ours else layout(self.config, quant, self.with_mtp)
        return cost.stored_tensors(parts), sum(part.n_bytes for part in parts.values())

    @property
    def source(self) -> str:
        if self.manifest is not None:
            return source_name(self.manifest.source)
        if self.folder is None:
            return MODELS[self.name][0]
        return "embedded" if self.folder == paths.NANO else "folder"


def ls(as_json: bool) -> None:
    """nano, and every model under models_dir()."""
    nano = Checkpoint.open(paths.NANO)
    rows = [_row("nano", COMPLETE, OFFICIAL, nano.nbytes, nano.config, "embedded", paths.NANO)]
    for entry in entries(paths.models_dir()):
        quant = entry.manifest.quant if entry.manifest else None
        rows.append(_row(entry.name, entry.state, quant, entry.n_bytes, entry.config, entry.source, entry.path))
    if as_json:
        output.json_page(rows)
        return
    cells = [("NAME", "STATE", "QUANT", "ON DISK", "PARAMETERS", "SOURCE")]
    for row in rows:
        parameters = _count(row["parameters"]) if row["parameters"] else None
        texts = (row["name"], row["state"], row["quant"], output.size(row["bytes"]), parameters, row["source"])
        cells.append(tuple(text or "?" for text in texts))
    output.table(cells)


def _row(name: str, state: str, quant: str | None, n_bytes: int, config, source: str, path: Path) -> dict:
    return {
        "name": name,
        "state": state,
        "complete": state == COMPLETE,
        "quant": quant,
        "bytes": n_bytes,
        "parameters": cost.parameters(config).total if config else None,
        "source": source,
        "path": str(path),
    }


def _count(n: int) -> str:
    """Parameters for people."""
    return f"{n / 1e9:,.1f} B" if n >= 1e9 else f"{n / 1e6:.1f} M"


def describe(model: str) -> dict:
    """Everything `v4 show` tells, by name."""
    subject = Subject.find(model)
    config = subject.config
    if subject.folder is not None and subject.state == COMPLETE:
        open_model(subject.folder)  # headers too are as they should be
    counts = cost.parameters(config)
    context = config.max_position_embeddings
    about = {
        "model": model,
        "path": str(subject.folder) if subject.folder else None,
        "state": subject.state,
        "release": config.release,
        "quant": subject.quant,
        "quantization": FORMAT_NAMES.get(subject.quant, subject.quant),
        "parameters": counts.total,
        "active_parameters": counts.active,
        "layers": config.num_hidden_layers,
        **_weights(subject, subject.quant),
        "kv_bytes_per_token": cost.kv_bytes_per_token(config),
        "kv_bytes_at_full_context": cost.kv_bytes(config, context).total,
        "context_tokens": context,
        "source": subject.source,
    }
    if subject.manifest is not None:
        about["weight_errors"] = weight_errors(subject.manifest)
    if subject.folder is None:
        about["stores"] = {quant: _weights(subject, quant) for quant in RECIPES}
    else:
        about["bytes_on_disk"] = disk_bytes(subject.folder)
    return about


def _weights(subject: Subject, quant: str) -> dict:
    """Bytes of the weights in one quantization, and those a token reads."""
    tensors, file_bytes = subject.weights(quant)
    payload = cost.payload_bytes(tensors)
    return {
        "bytes": {name: getattr(payload, name) for name in ("experts", "dense", "embed", "head", "mtp", "total")},
        "file_bytes": file_bytes,
        "read_bytes_per_token": cost.read_bytes_per_token(subject.config, tensors),
    }


def show_model(model: str, as_json: bool) -> None:
    """Print the description, then the weights by component."""
    about = describe(model)
    if as_json:
        output.json_page(about)
        return
    rows = [
        ("model", f"{model}, prompt contract {about['release']}, {about['layers']} layers"),
        ("path", about["path"] or f"{NOT_HERE}; v4 pull {model} brings it"),
        ("state", about["state"]),
        ("source", about["source"]),
        ("parameters", f"{_count(about['parameters'])}, {_count(about['active_parameters'])} active"),
        ("quantization", about["quantization"]),
        ("context", f"{about['context_tokens']:,} tokens"),
        ("KV per token", f"{about['kv_bytes_per_token']:,.1f} B in the official compressed layout"),
        ("KV, full context", output.size(about["kv_bytes_at_full_context"])),
    ]
    if about.get("weight_errors"):
        errors = ", ".join(f"{name} {error:.2%}" for name, error in about["weight_errors"].items())
        rows.append(("weight error", f"{errors} (root mean square, relative)"))
    output.table(rows)
    output.answer("\n")
    output.table(_weight_rows({about["quant"]: about, **about.get("stores", {})}))


def _weight_rows(variants: dict[str, dict]) -> list[tuple[str, ...]]:
    """Bytes held and read per token, component by component, of one or more quantizations."""
    rows = [("bytes", *(cell for quant in variants for cell in (quant, "a token reads")))]
    for part in next(iter(variants.values()))["bytes"]:
        cells = []
        for weights in variants.values():
            read = weights["read_bytes_per_token"]
            cells.append(output.size(weights["bytes"][part]))
            cells.append(output.size(sum(read.values()) if part == "total" else read.get(part, 0)))
        rows.append((part, *cells))
    return rows
