"""Recipes: which format every matrix of a store gets, said for any model.

A recipe is data, the same in a file of the user's, in those that come along (recipes/NAME.json) and in a manifest:

    {"name": "mine", "about": "what for, in one line", "rules": [
        {"about": "experts", "format": "q3", "layers": ["hash", "last 6", "9-12", 20], "matrices": ["w2"]},
        {"about": "experts", "format": "q2"},
        {"about": "linear", "format": "int8"}]}

A rule is about a class of matrices: experts (the routed ones), linear (all others that the official checkpoint has in
FP8), embed or head; of all layers, or those that `layers` says: numbers, ranges, `hash` (those that route by token id),
`last N`, `drafts` (the blocks that guess tokens); of all matrices, or those that are named (w1, w3, w2, wq_b and the
like); and, seldom, of some `experts` by number. The first rule that is about a matrix decides. What no rule is about,
and rows that are not whole groups, are kept as they are in the official checkpoint, as is what the format `keep` says.
Rules that contradict each other, that never decide anything or name what is not there are refused (`check`).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from v4kernels.formats import FORMATS, OFFICIAL, Format

from v4cli import jsonfile
from v4cli.errors import ModelError, UsageError, V4Error
from v4cli.model.schema import TensorSpec

KEEP = "keep"  # the official format, the official bytes
EXPERTS = ".ffn.experts."  # in the name of a routed expert's matrix; its number and w1, w3 or w2 follow
CLASSES = ("experts", "linear", "embed", "head")  # that a rule may be about
HASH, LAST, DRAFTS = "hash", "last", "drafts"
DRAFT = -1  # the number of every draft block, among layers
BUILT_IN = Path(__file__).with_name("recipes")
RULES = "docs/quantization.md tells what rules may say"
FILE_BYTES = 1 << 18  # of a recipe in a file: some thousand rules


@dataclass(frozen=True)
class Blocks:
    """The layers of a model: how many, and how many of them, the first ones, route by token id."""

    n_layers: int = 0
    n_hash: int = 0

    @classmethod
    def of(cls, official: Collection[str]) -> "Blocks":
        """Those of a model with these official tensors."""
        n_layers = n_hash = 0
        while f"layers.{n_layers}.ffn.gate.weight" in official:
            n_hash += f"layers.{n_layers}.ffn.gate.tid2eid" in official
            n_layers += 1
        return cls(n_layers, n_hash)

    def meant(self, layers: tuple[str, ...]) -> frozenset[int]:
        """The numbers of layers as a rule says them; of no words all, draft blocks too."""
        found: set[int] = set() if layers else {*range(self.n_layers), DRAFT}
        for text in layers:
            if text == HASH:
                found.update(range(self.n_hash))
            elif text == DRAFTS:
                found.add(DRAFT)
            elif text.startswith(LAST):
                found.update(range(max(0, self.n_layers - int(text.split()[1])), self.n_layers))
            else:
                found.update(_range(text))
        return frozenset(found)


@dataclass(frozen=True)
class Rule:
    """The format of a class of matrices, all of them or those that are named."""

    about: str
    format: str  # of v4kernels/formats.py, or KEEP
    layers: tuple[str, ...] = ()  # "3", "0-2", HASH, "last 6", DRAFTS; else all
    matrices: tuple[str, ...] = ()  # w1, wq_b and the like; else all
    experts: tuple[str, ...] = ()  # numbers and ranges of routed experts; else all

    def fits(self, place: "Place", blocks: Blocks) -> bool:
        """Whether it is about a matrix."""
        return (
            self.about == place.about
            and (not self.matrices or place.matrix in self.matrices)
            and (not self.layers or place.block in blocks.meant(self.layers))
            and (not self.experts or any(place.expert in _range(text) for text in self.experts))
        )

    @property
    def data(self) -> dict[str, str | list[str]]:
        """As a file has it: what is said, and no more."""
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in told.items() if value}


Recipe = tuple[Rule, ...]


@dataclass(frozen=True)
class Named:
    """A recipe and what it is called."""

    name: str
    rules: Recipe
    about: str = ""

    @property
    def data(self) -> dict:
        """As a file has it."""
        about = {"about": self.about} if self.about else {}
        return {"name": self.name, **about, "rules": [rule.data for rule in self.rules]}


class Place(NamedTuple):
    """Where a matrix stands: its class, its layer (DRAFT: of a draft block; -2: of none), its name there (w1), and
    which routed expert's it is, or -1."""

    about: str
    block: int
    matrix: str
    expert: int

    @classmethod
    def of(cls, name: str, dtype: str) -> "Place":
        """That of the official tensor `name`."""
        words = name.split(".")
        block = int(words[1]) if words[0] == "layers" else DRAFT if words[0] == "mtp" else -2
        expert = int(words[-3]) if EXPERTS in name else -1
        return cls(tensor_class(name, dtype), block, words[-2], expert)


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


# -- reading --------------------------------------------------------------------------------------------------------


def named(text: str, names: Collection[str] = ()) -> Named:
    """What `--quant` says: a recipe that comes along, or a file; `names` are others that may be said. UsageError."""
    if text in RECIPES:
        return RECIPES[text]
    path = Path(text).expanduser()
    if not path.is_file():
        what = f"unknown --quant {text!r}" if path.name == text and path.suffix != ".json" else f"{text}: no such file"
        raise UsageError(what, f"choose one of: {', '.join((*names, *RECIPES))}, or a file with a recipe of yours")
    found = parse(jsonfile.read(path, UsageError, FILE_BYTES), text, UsageError)
    if found.name in (*names, *RECIPES):
        raise UsageError(f"{text}: the name {found.name!r} is that of a recipe that comes along", "name it differently")
    return found


def parse(data: object, where: str, error: type[V4Error]) -> Named:
    """A recipe from its data. `error`, in one line that begins with `where`, unless it is one."""

    def refuse(problem: str) -> V4Error:
        return error(f"{where}: {problem}", RULES)

    if not isinstance(data, dict) or not isinstance(data.get("rules"), list):
        raise refuse("not a recipe: an object with name and rules")
    _only(data, ("name", "about", "rules"), refuse)
    for key, least in (("name", 1), ("about", 0)):
        text = data.get(key, "")
        if not isinstance(text, str) or not least <= len(text) <= 100 or not text.isprintable():
            raise refuse(f"{key} is not a line of up to 100 characters")
    rules = tuple(_rule(rule, f"{where}: rule {i}", error) for i, rule in enumerate(data["rules"], 1))
    return Named(data["name"], rules, data.get("about", ""))


def _rule(data: object, where: str, error: type[V4Error]) -> Rule:
    def refuse(problem: str) -> V4Error:
        return error(f"{where}: {problem}", RULES)

    if not isinstance(data, dict):
        raise refuse("not an object")
    _only(data, tuple(field.name for field in fields(Rule)), refuse)
    known = (KEEP, *(name for name, form in FORMATS.items() if form.packed))
    for key, choices in (("about", CLASSES), ("format", known)):
        if data.get(key) not in choices:
            raise refuse(f"{key}: {jsonfile.shown(data.get(key))} is none of {', '.join(choices)}")
    lists: dict[str, tuple[str, ...]] = {}
    for key in ("layers", "matrices", "experts"):
        said = data.get(key, [])
        if not isinstance(said, list) or (key in data and not said):
            raise refuse(f"{key}: not a list of one or more")
        for item in said:
            if not _is_said(key, item):
                raise refuse(f"{key}: {jsonfile.shown(item)} is {SAYINGS[key]}")
        lists[key] = tuple(str(item) for item in said)
    if lists["layers"] and data["about"] in ("embed", "head"):
        raise refuse(f"layers: {data['about']} is in none")
    if lists["experts"] and data["about"] != "experts":
        raise refuse(f"experts: {data['about']} has none")
    return Rule(data["about"], data["format"], **lists)


SAYINGS = {
    "layers": f"no number, range like 0-2, {HASH}, {LAST} N or {DRAFTS}",
    "matrices": "no name of a matrix",
    "experts": "no number or range like 0-63",
}


def _is_said(key: str, item: object) -> bool:
    """Whether a list of a rule may hold it."""
    if isinstance(item, int) and not isinstance(item, bool):
        return key != "matrices" and 0 <= item < 10_000
    if not isinstance(item, str) or len(item) > 100:
        return False
    if key == "matrices":
        return item.isidentifier()
    words = item.split(" ")
    if key == "layers" and (item in (HASH, DRAFTS) or (len(words) == 2 and words[0] == LAST)):
        return item in (HASH, DRAFTS) or _is_number(words[1], 1)
    low, dash, high = item.partition("-")
    return _is_number(low) and (not dash or (_is_number(high) and int(low) <= int(high)))


def _is_number(text: str, least: int = 0) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 5 and int(text) >= least


def _range(text: str) -> range:
    """What a number or a range says."""
    low, _, high = str(text).partition("-")
    return range(int(low), int(high or low) + 1)


def _only(data: dict, keys: tuple[str, ...], refuse) -> None:
    odd = next((key for key in data if key not in keys), None)
    if odd is not None:
        raise refuse(f"{odd[:60]!r} is none of {', '.join(keys)}")


def _built_in(name: str) -> Named:
    path = BUILT_IN / f"{name}.json"
    return parse(jsonfile.read(path), str(path), ModelError)


# Experts are FP4 in the official checkpoint; integer 4-bit formats lose quality on them (spec 7.17), so they stay.
# Stores of layout 1 know their formats by the first two names only.
LAYOUT_1 = ("native", "q4")
RECIPES = {name: _built_in(name) for name in (*LAYOUT_1, "q3", "mix", "q2")}


# -- what a recipe means for a model --------------------------------------------------------------------------------


def check(recipe: Named, official: Mapping[str, TensorSpec]) -> None:
    """Whether a recipe makes sense for a model with these official tensors. UsageError, about the first rule that names
    what the model does not have, that another decides about before, or that contradicts another about some matrices."""
    blocks = Blocks.of(official)
    places = {Place.of(name, spec.dtype) for name, spec in matrices(official).items()}
    names = {about: {place.matrix for place in places if place.about == about} for about in CLASSES}
    n_experts = 1 + max((place.expert for place in places), default=-1)

    def refuse(number: int, problem: str) -> UsageError:
        return UsageError(f"recipe {recipe.name}: rule {number}: {problem}", RULES)

    extents = []
    for number, rule in enumerate(recipe.rules, 1):
        for text in rule.layers:
            if text[0].isdigit() and _range(text)[-1] >= blocks.n_layers:
                raise refuse(number, f"layers: {text}: the model has 0 to {blocks.n_layers - 1}")
        for text in rule.experts:
            if _range(text)[-1] >= n_experts:
                raise refuse(number, f"experts: {text}: a layer has 0 to {n_experts - 1}")
        for matrix in rule.matrices:
            if matrix not in names[rule.about]:
                raise refuse(number, f"matrices: {matrix} is none of {', '.join(sorted(names[rule.about]))}")
        among = frozenset(rule.matrices or names[rule.about])
        experts = frozenset(n for text in rule.experts for n in _range(text)) or frozenset(range(n_experts))
        extents.append((blocks.meant(rule.layers), among, experts))
    for j, later in enumerate(recipe.rules):
        for i, rule in enumerate(recipe.rules[:j]):
            if rule.about != later.about:
                continue
            said = zip((rule.layers, rule.matrices, rule.experts), (later.layers, later.matrices, later.experts))
            if all(one in ((), two) for one, two in said):
                raise refuse(j + 1, f"decides nothing: rule {i + 1} is about all of it")
            pairs = list(zip(extents[i], extents[j]))
            nested = all(one <= two for one, two in pairs) or all(one >= two for one, two in pairs)
            if rule.format != later.format and not nested and all(one & two for one, two in pairs):
                where = ", ".join(str(n) for n in sorted(pairs[0][0] & pairs[0][1]))
                raise refuse(j + 1, f"overlaps rule {i + 1} (layers {where}), and neither is a part of the other")


def format_of(recipe: Recipe, name: str, spec: TensorSpec, blocks: Blocks = Blocks()) -> Format:
    """Format of one official matrix under a recipe; `blocks` where rules say layers."""
    place = Place.of(name, spec.dtype)
    return _fitting(next((rule for rule in recipe if rule.fits(place, blocks)), None), spec)


def _fitting(rule: Rule | None, spec: TensorSpec) -> Format:
    official = OFFICIAL[spec.dtype]
    wanted = official if rule is None or rule.format == KEEP else FORMATS[rule.format]
    return wanted if wanted.fits(official.cols(spec.shape[1])) else official


def formats_by(recipe: Recipe, official: Mapping[str, TensorSpec]) -> dict[str, Format]:
    """Format of every matrix, by name, of a model with these official tensors."""
    blocks, decided, found = Blocks.of(official), dict[Place, Rule | None](), {}
    alike = not any(rule.experts for rule in recipe)
    for name, spec in matrices(official).items():
        place = Place.of(name, spec.dtype)
        if alike and place.expert > 0:  # as the first of them
            place = Place(place.about, place.block, place.matrix, 0)
        if place not in decided:
            decided[place] = next((rule for rule in recipe if rule.fits(place, blocks)), None)
        found[name] = _fitting(decided[place], spec)
    return found


def matrices(official: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Those of the official tensors that have a format: two-dimensional ones named `.weight`."""
    return {name: spec for name, spec in official.items() if name.endswith(".weight") and len(spec.shape) == 2}
