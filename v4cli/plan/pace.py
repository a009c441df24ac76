"""How long a prompt takes here: the work it is by the model's formulas, at the speed at which this machine did such
work before. Nothing is predicted of a model that has not computed yet."""

from collections.abc import Callable
from pathlib import Path

from v4cli.model.config import V4Config
from v4cli.plan import measured
from v4cli.plan.flops import prefill_macs
from v4cli.words import span

LEAST_TOKENS, LEAST_S = 256, 0.2  # of a prefill that says something about speed


class Pace:
    """Multiply-adds per second of the prefills of a model, which the file at `path` keeps."""

    def __init__(self, path: Path, model: str, config: V4Config):
        self.path, self.what, self.config = path, f"multiply-adds/s of prefills, {model}", config

    def learn(self, begin: int, end: int, seconds: float) -> None:
        """A prefill from `begin` to `end` tokens of context took so long."""
        if end - begin >= LEAST_TOKENS and seconds >= LEAST_S:
            measured.note(self.path, self.what, prefill_macs(self.config, begin, end) / seconds)

    def seconds(self, begin: int, end: int) -> float | None:
        """What a prefill from `begin` to `end` tokens would take; None if nothing is known of this model."""
        rate = measured.figure(self.path, self.what)
        return prefill_macs(self.config, begin, end) / rate if rate else None


def about(n_tokens: int, seconds: float | None) -> str:
    """Tokens and the time for them, for people: "61k tokens, about 2 min"."""
    count = f"{n_tokens:,}" if n_tokens < 10_000 else f"{n_tokens / 1000:,.0f}k"
    return f"{count} token{'s' * (n_tokens != 1)}" + ("" if seconds is None else f", about {span(max(seconds, 1.0))}")


def estimated(encode: Callable[[str], list[int]], text: str, whole: int = 65_536, n_samples: int = 8) -> int:
    """Tokens of a text; of one that has more characters than `whole`, by samples of it."""
    if len(text) <= whole:
        return len(encode(text))
    length = whole // n_samples
    gap = (len(text) - length) // (n_samples - 1)
    sampled = sum(len(encode(text[i * gap : i * gap + length])) for i in range(n_samples))
    return round(sampled * len(text) / (n_samples * length))
