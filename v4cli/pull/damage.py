"""What number formats do to the experts of an official checkpoint, measured on a sample of every layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from v4cli.model.config import V4Config
from v4cli.pull.convert import BLOCK_VALUES, dense_blocks
from v4cli.store.header import TensorPlace

if TYPE_CHECKING:
    from torch import Tensor

    # Of a matrix, by its official name: how much each of its inputs matters (in,), fp32, above zero, on one scale for
    # the experts of a layer; None: all alike.
    Importance = Callable[[str], Tensor | None]

CODE_BITS = 4  # of the official experts
SAMPLE = 4  # experts of a layer, of each the rows of one block
MATRICES = ("w1", "w3", "w2")
Key = tuple[int, str]  # a layer and one of MATRICES


def alike(name: str) -> None:
    """Nothing is known of a matrix's inputs."""


def sampled(config: V4Config) -> Iterator[tuple[Key, str]]:
    """The official names of matrices that are looked at, with what they stand for."""
    step = max(1, config.n_routed_experts // SAMPLE)
    for layer in range(config.num_hidden_layers):
        for matrix in MATRICES:
            for number in range(0, config.n_routed_experts, step)[:SAMPLE]:
                yield (layer, matrix), f"layers.{layer}.ffn.experts.{number}.{matrix}.weight"


def sample_bytes(places: Mapping[str, TensorPlace], config: V4Config) -> int:
    """What `measure` looks at."""
    return sum(_bytes(places[name]) for _, name in sampled(config))


def _bytes(place: TensorPlace) -> int:
    """Of the first block of a matrix; rows that are no power of two long make it a little less."""
    return min(place.spec.nbytes, BLOCK_VALUES * CODE_BITS // 8)


def measure(
    places: Mapping[str, TensorPlace],
    config: V4Config,
    formats: Sequence[str],
    importance: Importance = alike,
    on_bytes: Callable[[int], None] = lambda n: None,
) -> dict[Key, dict[str, float]]:
    """By layer and matrix, and by format (of those that are packed): the squared error of the outputs relative to their
    squares, as far as `importance` tells inputs; where it knows none, for inputs that are all alike. Experts whose
    importance is greater, as they are used more, count more. `on_bytes` hears of what was looked at, `sample_bytes` in
    all. ModelError for a checkpoint that cannot be read."""
    errors = {key: dict.fromkeys(formats, 0.0) for key, _ in sampled(config)}
    totals = dict.fromkeys(errors, 0.0)
    for key, name in sampled(config):
        values = next(dense_blocks(name, places))
        totals[key] += _add_errors(errors[key], values, importance(name))
        on_bytes(_bytes(places[name]))
    return {key: {form: error / (totals[key] or 1.0) for form, error in sums.items()} for key, sums in errors.items()}


def _add_errors(sums: dict[str, float], values: Tensor, weight: Tensor | None) -> float:
    """Add the squared errors of each format on values (rows, cols) fp32, inputs weighted (cols,); their squares."""
    from v4cli.store.formats import ENCODE, decode

    weight = values.new_ones(values.shape[1]) if weight is None else weight
    for form in sums:
        error = decode(form, *ENCODE[form](values)).sub_(values)
        sums[form] += float(error.square_().mul_(weight).sum())
    return float(values.square().mul_(weight).sum())
