"""From logits to a token: temperature, top-k, top-p, min-p, seed. v4kernels/sampling.py does the work."""

import secrets
from dataclasses import dataclass

import numpy as np
from v4kernels.sampling import sample

from v4cli.errors import UsageError, V4Error

MOST_TEMPERATURE = 100


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 switch a filter off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        checks = (
            (0.0 <= self.temperature <= MOST_TEMPERATURE, f"temperature must be between 0 and {MOST_TEMPERATURE}"),
            (0.0 < self.top_p <= 1.0, "top_p must be above 0 and at most 1"),
            (self.top_k >= 0, "top_k must be 0 (off) or positive"),
            (0.0 <= self.min_p < 1.0, "min_p must be at least 0 and below 1"),
            (self.seed is None or 0 <= self.seed < 2**63, "seed must be between 0 and 2^63 - 1"),
        )
        for ok, message in checks:
            if not ok:
                raise UsageError(message)


class Sampler:
    """Draws tokens. The draw for a position depends on the seed and the position alone, not on what was drawn before:
    the same seed and logits give the same token there, after a rewind or in a continuation too, and a drafted token can
    be accepted exactly where plain decoding would have drawn it. Without a seed every sampler has one of its own.
    """

    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        self.seed = secrets.randbits(64) if sampling.seed is None else sampling.seed

    def pick(self, logits: np.ndarray, position: int, allowed: np.ndarray | None = None) -> tuple[int, float]:
        """logits (vocab,) fp32 -> token id and its log-probability under the unfiltered, untempered model.

        `position` of the token in its timeline; `allowed` (vocab,) bool: the only tokens to choose from. V4Error if
        there is none. v4kernels/sampling.py says what the options mean; the log-probability is within 10^-8.
        """
        if allowed is not None and not allowed.any():
            raise V4Error("the grammar of the tools leaves no token to go on with", "drop --constrain")
        by = self.sampling
        random = random_bits(self.seed, position)
        return sample(logits, allowed, by.temperature, by.top_k, by.min_p, by.top_p, random)


def random_bits(seed: int, position: int) -> int:
    """64 bits: number `position` of the stream that SplitMix64 makes from the mixed seed."""
    return _mixed(_mixed(seed) + (position + 1) * 0x9E3779B97F4A7C15)


def _mixed(x: int) -> int:
    """SplitMix64's output function."""
    x &= 2**64 - 1
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 2**64 - 1
    return x ^ x >> 31


def logprob(logits: np.ndarray, token: int) -> float:
    """logits (vocab,) fp32: the log-probability of a token."""
    return min(float(logits[token]) - _norm(logits), 0.0)


def _norm(logits: np.ndarray) -> float:
    """What a logit is above its log-probability."""
    top = float(logits.max())
    return top + float(np.log(np.exp(logits.astype(np.float64) - top).sum()))


def top_logprobs(logits: np.ndarray, n: int) -> list[tuple[int, float]]:
    """logits (vocab,) fp32: the n likeliest tokens and their log-probabilities."""
    if not n:
        return []
    n = min(n, len(logits))
    likeliest = np.argpartition(-logits, n - 1)[:n]
    likeliest = likeliest[np.argsort(-logits[likeliest], kind="stable")]
    norm = _norm(logits)
    return [(int(token), min(float(logits[token]) - norm, 0.0)) for token in likeliest]
