"""As good as fits: which format each matrix of each layer's experts gets, within a memory budget.

Damage is what was measured (pull/damage.py): the squared error that a format makes in the outputs of a layer's w1, w3
or w2, relative to these outputs. Everything begins in the format of fewest bits; then the step up that takes most
damage away for each byte more that a token reads is taken, and so on, as long as all experts stay in memory. Steps that
would be worth less than one that comes after them are one with it (the lower convex hull), so the order is the same for
every budget, and the best for each of those that the steps meet exactly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from v4kernels.formats import FORMATS

from v4cli.errors import ResourceError
from v4cli.model.config import V4Config
from v4cli.plan import cost
from v4cli.plan.memory import CONTEXT
from v4cli.plan.placement import Needs, in_memory
from v4cli.store.recipe import DRAFTS, KEEP, RECIPES, Recipe, Rule

MATRICES = ("w1", "w3", "w2")
OFFICIAL = "fp4"  # of experts: no damage, and no format does better
Key = tuple[int, str]  # a layer and one of MATRICES


@dataclass(frozen=True)
class Choice:
    """Format of each layer's matrices by name, what it means as a recipe, and what a model by it takes."""

    formats: Mapping[Key, str]
    rules: Recipe
    needs: Needs
    ram: int  # bytes within which all experts are in memory

    @property
    def groups(self) -> list[tuple[range, tuple[str, ...]]]:
        """Layers in a row whose experts have the same formats, and these, in the order of MATRICES."""
        layers = sorted({layer for layer, _ in self.formats})
        found = groupby(layers, lambda layer: tuple(self.formats[layer, matrix] for matrix in MATRICES))
        spans = [(formats, list(group)) for formats, group in found]
        return [(range(group[0], group[-1] + 1), formats) for formats, group in spans]


def candidates() -> tuple[str, ...]:
    """Formats that experts may get, the fewest bits first; the last is the official one."""
    lower = [form for form in FORMATS.values() if form.packed and form.bits < FORMATS[OFFICIAL].bits]
    return (*(form.name for form in sorted(lower, key=lambda form: form.bits)), OFFICIAL)


def steps(damage: Mapping[Key, Mapping[str, float]], config: V4Config) -> list[tuple[Key, str]]:
    """The steps up, the most worth first: a matrix, and the format that it gets then. `damage` by format, of those that
    `candidates` gives."""
    found = []
    for key, measured in damage.items():
        hull: list[tuple[float, float, str]] = []  # bytes, damage, format
        for name in candidates():
            point = _token_bytes(config, name), measured[name], name
            if hull and point[1] >= hull[-1][1]:
                continue
            while len(hull) > 1 and _worth(hull[-2], hull[-1]) <= _worth(hull[-1], point):
                hull.pop()
            hull.append(point)
        found += [(_worth(low, high), key, high[2]) for low, high in pairwise(hull)]
    return [(key, name) for _, key, name in sorted(found, key=lambda step: -step[0])]


def _token_bytes(config: V4Config, name: str) -> float:
    """What a token reads of one matrix of a layer's experts."""
    values = config.hidden_size * config.moe_intermediate_size
    return config.num_experts_per_tok * values * FORMATS[name].bits / 8


def _worth(low: tuple[float, float, str], high: tuple[float, float, str]) -> float:
    """Damage that a step takes away for each byte more that a token reads."""
    return (low[1] - high[1]) / (high[0] - low[0])


def fit(damage: Mapping[Key, Mapping[str, float]], config: V4Config, ram: int) -> Choice:
    """The most steps with which all experts stay within `ram` bytes, beside all that a session of CONTEXT tokens takes.
    ResourceError, with the least that would do, if there is not enough for the first format of all."""
    ladder = steps(damage, config)

    def after(count: int) -> Choice:
        return _choice(dict.fromkeys(damage, candidates()[0]) | dict(ladder[:count]), config)

    least = after(0)
    if least.ram > ram:
        raise ResourceError(
            f"experts of {FORMATS[candidates()[0]].bits:.3g} bits and all else need {_mib(least.ram)} MiB, {ram >> 20} "
            "MiB is what is to be filled",
            f"--fit {_mib(least.ram)}M; or leave some experts on disk: --quant {candidates()[0]}, then v4 run --ram",
        )
    low, high = 0, len(ladder)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if after(middle).ram <= ram else (low, middle - 1)
    return after(low)


def _mib(n_bytes: int) -> int:
    return -(-n_bytes >> 20)


def _choice(formats: Mapping[Key, str], config: V4Config) -> Choice:
    rules = rules_of(formats)
    needs = cost.needs_of_release(config, rules)
    needs = cost.at_context(needs, config, min(CONTEXT, config.max_position_embeddings), 1)
    return Choice(formats, rules, needs, in_memory(needs))


def rules_of(formats: Mapping[Key, str]) -> Recipe:
    """As a recipe: what layers and matrices have in common is said once; draft blocks and all but the experts are as in
    recipe `native`."""
    layers: dict[tuple[str, str], list[int]] = {}  # by matrix and format
    for (layer, matrix), name in sorted(formats.items()):
        layers.setdefault((matrix, name), []).append(layer)
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}  # matrices, by format and layers
    for (matrix, name), numbers in layers.items():
        alike.setdefault((name, ranges(numbers)), []).append(matrix)
    rules = [
        Rule("experts", KEEP if name == OFFICIAL else name, where, tuple(matrices))
        for (name, where), matrices in alike.items()
    ]
    dense = [rule for rule in RECIPES["native"].rules if rule.about != "experts"]
    return (*rules, Rule("experts", KEEP, (DRAFTS,)), *dense)


def ranges(numbers: Sequence[int]) -> tuple[str, ...]:
    """Ascending numbers as a recipe says them: 0-2, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return tuple(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
