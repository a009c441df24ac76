"""Which format every matrix of a store has: recipes, which say it for any model, and the record of it in a manifest.

A recipe is data: rules, of which the first that is about a matrix decides. What no rule is about, and rows that are not
whole groups, are kept as they are in the official checkpoint. Matrices are the two-dimensional tensors named `.weight`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from v4kernels.formats import FORMATS, OFFICIAL, Format

from v4cli.errors import ModelError
from v4cli.model.schema import TensorSpec

KEEP = "keep"  # the official format, the official bytes
EXPERTS = ".ffn.experts."  # in the name of a routed expert's matrix; its number and w1, w3 or w2 follow


@dataclass(frozen=True)
class Rule:
    """The format of a class of tensors (`tensor_class`), all of them or those that are named."""

    about: str
    format: str  # of v4kernels/formats.py, or KEEP
    layers: tuple[int, int] | None = None  # first and last; else of all layers and draft blocks
    matrices: tuple[str, ...] = ()  # w1, wq_b and the like; else all
    experts: tuple[int, ...] = ()  # numbers of routed experts; else all

    def fits(self, name: str, dtype: str) -> bool:
        """Whether it is about an official matrix."""
        if self.about != tensor_class(name, dtype):
            return False
        words = name.split(".")
        layer = int(words[1]) if words[0] == "layers" else -1
        return (
            (self.layers is None or self.layers[0] <= layer <= self.layers[1])
            and (not self.matrices or words[-2] in self.matrices)
            and (not self.experts or int(words[-3]) in self.experts)
        )


Recipe = tuple[Rule, ...]

# Experts are FP4 in the official checkpoint; integer 4-bit formats lose quality on them (spec 7.17), so they stay.
# Stores of layout 1 know their formats by these two names only.
RECIPES: dict[str, Recipe] = {
    "native": (Rule("experts", KEEP), Rule("linear", "int8"), Rule("embed", "int8"), Rule("head", "int8")),
    "q4": (Rule("experts", KEEP), Rule("linear", "int4"), Rule("embed", "int8"), Rule("head", "int4")),
}


def tensor_class(name: str, dtype: str) -> str:
    """Class of an official weight: experts, linear (FP8 matrices), embed, head, or other (norms, routers,
    compressors, hyper-connections, token-to-expert tables)."""
    if EXPERTS in name:
        return "experts"
    if dtype == "F8_E4M3":
        return "linear"
    if name in ("embed.weight", "head.weight"):
        return name.removesuffix(".weight")
    return "other"


def format_of(recipe: Recipe, name: str, spec: TensorSpec) -> Format:
    """Format of one official matrix under a recipe."""
    official = OFFICIAL[spec.dtype]
    rule = next((rule for rule in recipe if rule.fits(name, spec.dtype)), None)
    wanted = official if rule is None or rule.format == KEEP else FORMATS[rule.format]
    return wanted if wanted.fits(official.cols(spec.shape[1])) else official


def formats_by(recipe: Recipe, official: Mapping[str, TensorSpec]) -> dict[str, Format]:
    """Format of every matrix, by name, of a model with these official tensors."""
    return {name: format_of(recipe, name, spec) for name, spec in _matrices(official).items()}


def recorded(formats: Mapping[str, Format]) -> dict[str, str | list[str]]:
    """The same for a manifest: name of the format by that of the matrix without `.weight`. Of a layer's experts, in the
    order of their numbers, one name if they agree, else a list: `layers.3.ffn.experts.*.w1`."""
    record: dict[str, str | list[str]] = {}
    experts: dict[str, list[str]] = {}
    for name, form in formats.items():
        if EXPERTS in name:
            experts.setdefault(_key(name), []).append(form.name)
        else:
            record[_key(name)] = form.name
    return record | {key: names if len(set(names)) > 1 else names[0] for key, names in experts.items()}


def from_record(record: Mapping[str, object], official: Mapping[str, TensorSpec]) -> dict[str, Format]:
    """What `recorded` gave. ModelError, about the first that is wrong, unless it fits these official tensors."""
    formats, known = {}, set()
    for name, spec in _matrices(official).items():
        key = _key(name)
        known.add(key)
        said = record.get(key)
        if isinstance(said, list):
            number = int(name.split(".")[-3]) if EXPERTS in name else len(said)
            said = said[number] if number < len(said) else None
        form = FORMATS.get(said) if isinstance(said, str) else None
        if form is None:
            told = f"{said[:40]!r} is no number format" if isinstance(said, str) else "no number format"
            raise ModelError(f"formats: {key}: {told}")
        own = OFFICIAL[spec.dtype]
        if form is not own and not (form.packed and form.fits(own.cols(spec.shape[1]))):
            raise ModelError(f"formats: {key}: {form.name} does not fit {list(spec.shape)} of {own.name}")
        formats[name] = form
    odd = min(record.keys() - known, default=None)
    if odd is not None:
        raise ModelError(f"formats: {odd[:200]!r} is no matrix of this model")
    for key, said in record.items():
        if isinstance(said, list) and len(said) != sum(_key(name) == key for name in formats):
            raise ModelError(f"formats: {key}: {len(said)} formats for another number of experts")
    return formats


def _matrices(official: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    return {name: spec for name, spec in official.items() if name.endswith(".weight") and len(spec.shape) == 2}


def _key(name: str) -> str:
    """Name of a matrix in a manifest."""
    at, experts, rest = name.removesuffix(".weight").partition(EXPERTS)
    return f"{at}{experts}*.{rest.partition('.')[2]}" if experts else at
