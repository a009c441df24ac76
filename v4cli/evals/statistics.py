"""Means with intervals: of one model's items, and of the difference between two models on the same items.

Intervals are of 95 %. Those of means come from a bootstrap over blocks of neighbours, which are not independent of each
other; those of shares are Wilson's.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

ROUNDS = 2000  # of a bootstrap
BLOCK = 64  # neighbouring positions of a text that are drawn together, fewer where there are not many
BLOCKS = 16  # at least, where there are so many values
Z = 1.959963984540054  # of a normal distribution, 95 % within


@dataclass(frozen=True)
class Estimate:
    """A mean of n values and the interval it may lie in."""

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict:
        return asdict(self)


def mean(windows: Sequence[Sequence[float]]) -> Estimate:
    """Of all values of all windows, each a row of neighbours. ValueError if there are none."""
    size = max(1, min(BLOCK, sum(map(len, windows)) // BLOCKS))
    blocks = [np.asarray(window[i : i + size], float) for window in windows for i in range(0, len(window), size)]
    if not blocks:
        raise ValueError("a mean of nothing")
    sums, sizes = np.array([block.sum() for block in blocks]), np.array([len(block) for block in blocks])
    drawn = np.random.default_rng(0).integers(len(blocks), size=(ROUNDS, len(blocks)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(sums.sum() / sizes.sum()), float(low), float(high), int(sizes.sum()))


def difference(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> Estimate:
    """Of the means of `after` and `before`, whose windows and positions are the same."""
    return mean([np.asarray(b, float) - np.asarray(a, float) for a, b in zip(before, after, strict=True)])


def share(hits: Sequence[bool]) -> Estimate:
    """Of items that are right. ValueError if there are none."""
    n = len(hits)
    if not n:
        raise ValueError("a share of nothing")
    p, z2 = sum(hits) / n, Z * Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Estimate(p, max(0.0, middle - half), min(1.0, middle + half), n)


def quantile(values: Sequence[float], q: float) -> float:
    return float(np.quantile(np.asarray(values, float), q))


def worst_mean(values: Sequence[float], part: float = 0.05) -> float:
    """The mean of the largest `part` of the values (CVaR), of one at least."""
    ordered = np.sort(np.asarray(values, float))
    return float(ordered[-max(1, math.ceil(part * len(ordered))) :].mean())


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """How likely the changes between right and wrong are to be as uneven as they are, or more, if they came by chance:
    the exact, two-sided p of McNemar's test."""
    better = sum(b and not a for a, b in zip(before, after, strict=True))
    worse = sum(a and not b for a, b in zip(before, after, strict=True))
    changed, least = better + worse, min(better, worse)
    return min(1.0, 2 * sum(math.comb(changed, i) for i in range(least + 1)) / 2**changed)
