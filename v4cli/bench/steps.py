"""Decode steps under a clock: time per token, by kernel, by part and by layer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from v4cli.bench import speed
from v4cli.engine.engine import Session

KINDS = {0: "window", 4: "csa", 128: "hca"}  # layers by compression ratio
PARTS = {"select": "index", "attend": "attention"}  # kernels; the others stream weights


@dataclass
class Steps:
    """Some decode steps of one session, half of them with a clock around every kernel."""

    seconds: list[float] = field(default_factory=list)  # without the clock
    clocked: list[tuple[float, list]] = field(default_factory=list)  # with it: seconds, Clock.calls

    @property
    def median(self) -> float:
        """Seconds of the median step."""
        return median(self.seconds)

    def part_seconds(self) -> dict[str, float]:
        """The median step by part: weights, index, attention, python (outside the kernels)."""
        rows = []
        for seconds, calls in self.clocked:
            row = {"weights": 0.0, "index": 0.0, "attention": 0.0}
            for kernel, start, end in calls:
                row[PARTS.get(kernel, "weights")] += end - start
            rows.append(row | {"python": seconds - sum(row.values())})
        return {name: median(row[name] for row in rows) for name in rows[0]}

    def layer_seconds(self, ratios: Sequence[int]) -> tuple[dict[int, float], float]:
        """Median seconds of a layer by compression ratio, the time between kernels included, and of all else.

        `ratios` are those of the layers in order. A layer begins with every second hyper_pre (model/v4.py)."""
        layers: dict[int, list[float]] = {ratio: [] for ratio in ratios}
        rest = []
        for seconds, calls in self.clocked:
            begins = [start for kernel, start, _ in calls if kernel == "hyper_pre"][::2]
            ends = [*begins[1:], next(start for kernel, start, _ in calls if kernel == "hyper_head")]
            for ratio, begin, end in zip(ratios, begins, ends, strict=True):
                layers[ratio].append(end - begin)
            rest.append(seconds - (ends[-1] - begins[0]))
        return {ratio: median(times) for ratio, times in layers.items()}, median(rest)

    def estimate(self, measured: Sequence[int], ratios: Sequence[int]) -> float:
        """Seconds of a step of a model with layers of `ratios`, from those measured."""
        layers, rest = self.layer_seconds(measured)
        return rest + sum(layers[ratio] for ratio in ratios)


def decode(sessions: Sequence[Session], ids: Sequence[int]) -> list[Steps]:
    """Feed ids to every session, one token to each in turns; the second half under the clock."""
    steps = [Steps() for _ in sessions]
    half = len(ids) // 2
    for token in ids[:half]:
        for session, into in zip(sessions, steps):
            into.seconds.append(speed.seconds(lambda s=session, t=token: s.feed([t])))
    for token in ids[half:]:
        for session, into in zip(sessions, steps):
            with speed.clocked(session.engine.model.ops) as clock:
                seconds = speed.seconds(lambda s=session, t=token: s.feed([t]))
            into.clocked.append((seconds, clock.calls))
    return steps
