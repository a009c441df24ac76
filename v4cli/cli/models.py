"""`v4 ls` and `v4 show`: which models there are, what they are, what they cost."""

from dataclasses import dataclass
from pathlib import Path

from v4kernels.formats import FORMATS

from v4cli import hardware, paths
from v4cli.cli import output
from v4cli.errors import ModelError
from v4cli.model.config import V4Config
from v4cli.model.known import MODELS, known_config
from v4cli.model.schema import TensorSpec, expected_tensors
from v4cli.plan import apple, cost
from v4cli.plan.placement import Needs
from v4cli.plan.recipes import offers
from v4cli.store import library, price
from v4cli.store.checkpoint import Checkpoint
from v4cli.store.library import COMPLETE, disk_bytes, entries, inspect, weight_errors
from v4cli.store.parts import lay_out
from v4cli.store.recipe import LAYOUT_1, RECIPES, Named, check, formats_by
from v4cli.store.record import expert_bits
from v4cli.store.store import NEEDED, Manifest, is_store, open_model, source_name

OFFICIAL = "official"
AS_OFFICIAL = Named(OFFICIAL, (), "FP4 experts, FP8 dense")
NOT_HERE = "not on this machine"
REFERENCE = "the official weights, which others are measured against"


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

    def weights(self, recipe: Named | None = None) -> tuple[dict[str, TensorSpec], int]:
        """Its tensors as they are, or as a recipe stores them, and the bytes of the files (of an official checkpoint:
        the payload)."""
        official = expected_tensors(self.config, self.with_mtp)
        if recipe is None and self.manifest is not None and self.folder is not None:
            parts = self.manifest.parts(self.config, self.folder)
        elif recipe in (None, AS_OFFICIAL):
            return official, cost.payload_bytes(official).total
        else:
            check(recipe, official)
            parts = lay_out(official, formats_by(recipe.rules, official))
        return cost.stored_tensors(parts), sum(part.n_bytes for part in parts.values())

    def needs(self, recipe: Named | None = None) -> tuple[Needs, int]:
        """What running takes, at a context of 0 tokens, and the bytes of the files, as `weights` has them. A release
        that is not here has too many tensors to list them for a recipe that comes along; of it the payload is told."""
        recipe = recipe or (AS_OFFICIAL if self.folder is None else None)
        if self.folder is None and recipe in (AS_OFFICIAL, *RECIPES.values()):
            needs = cost.needs_of_release(self.config, recipe.rules, self.with_mtp)
            return needs, sum(cost.held_by_part(needs).values())
        tensors, file_bytes = self.weights(recipe)
        return cost.needs(self.config, tensors), file_bytes

    @property
    def recipe(self) -> Named:
        """That of its formats; of those that are not known by any, just a name."""
        return AS_OFFICIAL if self.manifest is None else self.manifest.named or Named(self.quant, ())

    @property
    def source(self) -> str:
        if self.manifest is not None:
            return source_name(self.manifest.source)
        if self.folder is None:
            return MODELS[self.name][0]
        return "embedded" if self.folder == paths.NANO else "folder"

    @property
    def quality(self) -> str:
        """What it was measured to be worth, for people."""
        return REFERENCE if self.quant == OFFICIAL and self.folder else price.tag(price.measured(self.manifest))


def in_words(recipe: Named) -> str:
    """A recipe by its name, and what it is."""
    return f"{recipe.name}: {recipe.about}" if recipe.about else recipe.name


def ls(as_json: bool) -> None:
    """nano, and every model under models_dir()."""
    nano = Checkpoint.open(paths.NANO)
    rows = [_row("nano", COMPLETE, OFFICIAL, FORMATS["fp4"].bits, nano.nbytes, nano.config, "embedded", paths.NANO)]
    for entry in entries(paths.models_dir()):
        quant = entry.manifest.quant if entry.manifest else None
        bits = expert_bits(entry.manifest.formats) if entry.manifest else None
        about = entry.name, entry.state, quant, bits, entry.n_bytes, entry.config, entry.source, entry.path
        rows.append(_row(*about, price.short(price.measured(entry.manifest))))
    if as_json:
        output.json_page(rows)
        return
    cells = [("NAME", "STATE", "QUANT", "ON DISK", "PARAMETERS", "QUALITY", "SOURCE")]
    for row in rows:
        parameters = count(row["parameters"]) if row["parameters"] else None
        quant = f"{row['quant']}, {row['expert_bits']:.3g} bits" if row["expert_bits"] else row["quant"]
        texts = (row["name"], row["state"], quant, output.size(row["bytes"]), parameters, row["quality"])
        cells.append(tuple(text or "?" for text in (*texts, row["source"])))
    output.table(cells)


def _row(
    name: str,
    state: str,
    quant: str | None,
    bits: float | None,
    n_bytes: int,
    config,
    source: str,
    path: Path,
    quality: str = OFFICIAL,
) -> dict:
    return {
        "name": name,
        "state": state,
        "complete": state == COMPLETE,
        "quant": quant,
        "expert_bits": bits,
        "bytes": n_bytes,
        "parameters": cost.parameters(config).total if config else None,
        "quality": quality,
        "source": source,
        "path": str(path),
    }


def count(n: int) -> str:
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
        "contract": config.contract,
        "quant": subject.quant,
        "quantization": in_words(subject.recipe),
        "parameters": counts.total,
        "active_parameters": counts.active,
        "layers": config.num_hidden_layers,
        **_weights(*subject.needs()),
        "kv_bytes_per_token": cost.kv_bytes_per_token(config),
        "kv_bytes_at_full_context": cost.kv_bytes(config, context).total,
        "context_tokens": context,
        "source": subject.source,
        "quality": subject.quality,
        "measured": price.measured(subject.manifest) or None,
    }
    if subject.manifest is not None:
        about["recipe"] = subject.recipe.data
        about["expert_bits"] = expert_bits(subject.manifest.formats)
        about["weight_errors"] = weight_errors(subject.manifest)
        about["calibration"] = subject.manifest.source.get("calibration")
    if subject.folder is None:
        made = offers(config, subject.with_mtp, 0, 1)
        about["stores"] = {offer.recipe.name: _weights(offer.needs, offer.file_bytes) for offer in made}
    else:
        about["bytes_on_disk"] = disk_bytes(subject.folder)
    return about


def _weights(needs: Needs, file_bytes: int) -> dict:
    """Bytes of the weights, and those a token reads."""
    held = cost.held_by_part(needs)
    return {
        "bytes": held | {"total": sum(held.values())},
        "file_bytes": file_bytes,
        "read_bytes_per_token": cost.read_by_part(needs),
    }


def show_model(model: str, as_json: bool) -> None:
    """Print the description, then the weights by component."""
    about = describe(model)
    if as_json:
        output.json_page(about)
        return
    rows = [
        ("model", f"{model}, prompt contract {about['contract']}, {about['layers']} layers"),
        ("path", about["path"] or f"{NOT_HERE}; v4 pull {model} brings it"),
        ("state", about["state"]),
        ("source", about["source"]),
        ("parameters", f"{count(about['parameters'])}, {count(about['active_parameters'])} active"),
        ("quantization", about["quantization"]),
        ("context", f"{about['context_tokens']:,} tokens"),
        ("KV per token", f"{about['kv_bytes_per_token']:,.1f} B in the official compressed layout"),
        ("KV, full context", output.size(about["kv_bytes_at_full_context"])),
    ]
    if about.get("expert_bits"):
        rows.append(("experts", f"{about['expert_bits']:.3g} bits a weight"))
    if about.get("weight_errors"):
        errors = ", ".join(f"{name} {error:.2%}" for name, error in about["weight_errors"].items())
        rows.append(("weight error", f"{errors} (root mean square, relative)"))
    if by := about.get("calibration"):
        rows.append(("calibration", f"{by['file']}, {by['tokens']:,} tokens, sha256 {by['sha256'][:12]}"))
    rows.append(("quality", about["quality"]))
    if published := apple.bandwidth(name := hardware.processor()):
        rows.append(("this machine", f"{name}, memory of {output.at_most(published)}"))
    output.table(rows)
    output.answer("\n")
    stores = about.get("stores", {})
    output.table(_weight_rows({about["quant"]: about, **{name: stores[name] for name in LAYOUT_1 if name in stores}}))
    if stores:
        output.paragraph(f"\nv4 plan {model} sets all recipes side by side")


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
