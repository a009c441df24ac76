"""Decode steps under a clock: time per token, by kernel, by part and by layer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from v4cli.bench import speed
from v4cli.engine.session import Session

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

    def kinds(self, ratios: Sequence[int]) -> dict[int | None, dict[str, float]]:
        """Median seconds by part of a layer of each compression ratio; None: of all that is outside the layers.

        `ratios` are those of the layers in order. A layer begins with every second hyper_pre (model/v4.py); python is
        the time outside the kernels."""
        rows: dict[int | None, list[dict[str, float]]] = {ratio: [] for ratio in (*ratios, None)}
        for seconds, calls in self.clocked:
            begins = [i for i, call in enumerate(calls) if call[0] == "hyper_pre"][::2]
            end = next(i for i, call in enumerate(calls) if call[0] == "hyper_head")
            for ratio, begin, after in zip(ratios, begins, [*begins[1:], end], strict=True):
                rows[ratio].append(_parts(calls[begin:after], calls[after][1] - calls[begin][1]))
            inside = calls[end][1] - calls[begins[0]][1]
            rows[None].append(_parts(calls[: begins[0]] + calls[end:], seconds - inside))
        return {kind: {part: median(row[part] for row in of) for part in of[0]} for kind, of in rows.items()}

    def parts(self, measured: Sequence[int], ratios: Sequence[int]) -> dict[str, float]:
        """Seconds by part of a step through layers of `ratios`, from the layers `measured`."""
        kinds = self.kinds(measured)
        return {part: s + sum(kinds[ratio][part] for ratio in ratios) for part, s in kinds[None].items()}


def _parts(calls: list, seconds: float) -> dict[str, float]:
    """Time of some calls, made in `seconds`, by part."""
    row = {"weights": 0.0, "index": 0.0, "attention": 0.0}
    for kernel, start, end in calls:
        row[PARTS.get(kernel, "weights")] += end - start
    return row | {"python": seconds - sum(row.values())}


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
