"""From logits to a token, by the kernel library or, where there is none, by the plain statement that it is tested with:
the same token and the same bits. numpy only.

Probabilities are integers, 2^44 e^(logit - highest) to the nearest: their sums are exact in any order, so the token
depends on no tier, block or thread. What is less likely than 2^-45 of the likeliest is never drawn; in any vocabulary
that is less than 10^-8 of all.
"""

from math import ceil, log

import numpy as np

from v4kernels import native

WHOLE = 2**44  # of the highest logit
MOST_INVERSE = 1e300  # of a temperature: 0 times it is 0


def sample(
    logits: np.ndarray,
    allowed: np.ndarray | None,
    temperature: float,
    top_k: int,
    min_p: float,
    top_p: float,
    random: int,
) -> tuple[int, float]:
    """logits (vocab,) fp32 and `allowed` (vocab,) bool, those to choose from -> token id and its log-probability
    without filters, temperature and `allowed`, within 10^-8.

    Temperature 0: the highest logit, the lowest id of equals. Else, of the logits divided by it, the top_k highest (0:
    all), of equals the lower ids; of these those of at least min_p of the highest probability; of these the fewest,
    highest first, that make up top_p of their mass. `random`, 64 random bits, is where in the mass of these, by
    ascending id, the token lies. FloatingPointError for a logit that is NaN or plus infinity, and where all that may be
    chosen are minus infinity; ValueError for options out of range (v4k.h).
    """
    choose = native.sample if native.available() else plain
    token, norm = choose(logits, allowed, temperature, top_k, min_p, top_p, random)
    return token, float(logits[token]) - float(logits.max()) - log(norm / WHOLE)


def plain(
    logits: np.ndarray,
    allowed: np.ndarray | None,
    temperature: float,
    top_k: int,
    min_p: float,
    top_p: float,
    random: int,
) -> tuple[int, int]:
    """v4k_sample in numpy: the token, and the sum of all weights at temperature 1."""
    if np.isnan(logits).any() or not np.isfinite(logits.max()):
        raise FloatingPointError("a value is not finite")
    norm = int(weights(logits, 1.0).sum())
    left = logits if allowed is None else np.where(allowed, logits, np.float32(-np.inf))
    if not np.isfinite(left.max()):
        raise FloatingPointError("a value is not finite")
    if temperature == 0:
        return int(left.argmax()), norm
    weight = weights(left, min(1 / temperature, MOST_INVERSE))
    kept = np.arange(len(left))
    if top_k or top_p < 1:
        kept = np.argsort(-left, kind="stable")[: top_k or None]
    kept = kept[weight[kept] >= reaching(min_p, WHOLE)]
    if top_p < 1:
        mass = weight[kept].cumsum()
        kept = kept[: int(np.searchsorted(mass, reaching(top_p, int(mass[-1])))) + 1]
    kept.sort()
    mass = weight[kept].cumsum()
    return int(kept[np.searchsorted(mass, random * int(mass[-1]) >> 64, side="right")]), norm


def weights(logits: np.ndarray, inverse: float) -> np.ndarray:
    """(n,) fp32 -> (n,) int64: 2^44 e^((logit - highest) * inverse), rounded. With y = n ln 2 + r, Taylor to r^11."""
    with np.errstate(over="ignore"):  # at temperatures near 0: minus infinity is meant
        y = np.maximum((logits.astype(np.float64) - float(logits.max())) * inverse, -32.0)
    n = np.rint(y * float.fromhex("0x1.71547652b82fep0"))
    r = (y - n * float.fromhex("0x1.62e42feep-1")) - n * float.fromhex("0x1.a39ef35793c76p-33")
    p = np.full_like(r, 1 / 39916800)
    for factorial in (3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2, 1, 1):
        p = p * r + 1 / factorial
    return np.rint(np.ldexp(p, n.astype(np.int32) + 44)).astype(np.int64)


def reaching(part: float, mass: int) -> int:
    """The least integer that is `part` of mass or more, at least 1."""
    return min(max(1, ceil(part * float(mass))), mass)
