"""From logits to a token: temperature, top-k, top-p, min-p, seed. numpy only."""

from dataclasses import dataclass

import numpy as np

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
    """Draws tokens; the same seed and logits give the same tokens."""

    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        self._rng = np.random.default_rng(sampling.seed)

    def pick(self, logits: np.ndarray, allowed: np.ndarray | None = None) -> tuple[int, float]:
        """logits (vocab,) fp32 -> token id and its log-probability under the unfiltered, untempered model.

        `allowed` (vocab,) bool: the only tokens to choose from. V4Error if there is none.
        """
        if allowed is not None and not allowed.any():
            raise V4Error("the grammar of the tools leaves no token to go on with", "drop --constrain")
        logits = logits.astype(np.float64)
        shifted = logits - logits.max()
        log_norm = np.log(np.exp(shifted).sum())
        left = shifted if allowed is None else np.where(allowed, shifted, -np.inf)
        if self.sampling.temperature == 0.0:
            token = int(left.argmax())
        else:
            with np.errstate(over="ignore"):  # at temperatures near 0: minus infinity is meant
                scaled = (left - left.max()) / self.sampling.temperature
            token = self._draw(scaled)
        return token, float(shifted[token] - log_norm)

    def _draw(self, scaled: np.ndarray) -> int:
        """A token by its scaled logit, the largest of which is 0."""
        probs = np.exp(scaled)
        probs /= probs.sum()
        kept = np.arange(len(probs))
        if 0 < self.sampling.top_k < len(probs):
            kept = np.argpartition(-probs, self.sampling.top_k - 1)[: self.sampling.top_k]
        if self.sampling.min_p > 0.0:
            kept = kept[probs[kept] >= self.sampling.min_p * probs.max()]
        if self.sampling.top_p < 1.0:
            kept = nucleus(probs, kept, self.sampling.top_p)
        mass = probs[kept].cumsum()
        return int(kept[np.searchsorted(mass, self._rng.random() * mass[-1], side="right").clip(max=len(kept) - 1)])


def nucleus(probs: np.ndarray, kept: np.ndarray, top_p: float) -> np.ndarray:
    """The fewest of `kept` (ids) whose renormalised mass reaches top_p, most likely first."""
    total = probs[kept].sum()
    # Everything below the threshold adds up to less than 1 - top_p, so it can never be needed.
    kept = kept[probs[kept] >= (1.0 - top_p) * total / len(kept)]
    kept = kept[np.argsort(-probs[kept], kind="stable")]
    return kept[: int(np.searchsorted(probs[kept].cumsum(), top_p * total)) + 1]
