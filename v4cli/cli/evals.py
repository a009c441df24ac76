"""`v4 eval`: what a model is worth, measured here."""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

from v4cli import settings
from v4cli.cli import output, sessions
from v4cli.cli.progress import Line, Meter, waiting
from v4cli.errors import Interrupted, UsageError, V4Error
from v4cli.interrupts import interrupts
from v4cli.store.store import is_store

QUICK = "quick"


@dataclass(frozen=True)
class EvalRequest:
    """The command line of `v4 eval`."""

    words: tuple[str, ...]
    only: str | None
    against: str | None
    compare: str | None
    ctx: str | None
    seed: int
    backend: str | None
    numerics: str | None
    ram: str | None
    as_json: bool


def evaluate(told: EvalRequest) -> None:
    """Measure, print, and note it in the manifest. Interrupted: running it again goes on."""
    from v4cli.evals import paired, report, run

    request, stop, start = _request(told), Event(), time.monotonic()
    with interrupts(stop), Items(request.model) as line:
        try:
            outcome = run.measure(request, stop.is_set, line)
        except Interrupted:
            raise Interrupted(f"interrupted: {line.done}", "run the same command again to go on") from None
        lines = []
        if told.compare is not None:
            other = run.results_there(replace(request, model=told.compare), outcome)
            lines = paired.compared(other, outcome.results)
    figures = outcome.figures
    for what, why in outcome.left_out.items():
        output.note(f"v4: {what} left out: {why}")
    if not figures:
        raise UsageError(f"nothing of {request.model} can be measured here", "see above")
    if told.as_json:
        about = {"model": request.model, "path": str(outcome.model.folder), "figures": figures}
        teacher = str(outcome.teacher.path) if outcome.teacher else None
        about |= {"left_out": outcome.left_out, "teacher": teacher, "seconds": time.monotonic() - start}
        output.json_page(about | ({"compared_with": told.compare, "compared": lines} if told.compare else {}))
    else:
        output.table(report.rows(figures))
        if told.compare:
            output.answer(f"\n{request.model} (this) and {told.compare} (other), on the same items\n")
            output.table(paired.rows(lines))
    _note(outcome, figures)


def _request(told: EvalRequest):
    """What the words and options mean. UsageError."""
    from v4cli.evals import suite
    from v4cli.evals.run import Request

    words = list(told.words)
    quick = bool(words) and words[0] == QUICK
    words = words[1:] if quick else words
    if len(words) > 1:
        raise UsageError(f"one model at a time: {words[0]}, or {words[1]}?", "v4 eval MODEL --only PARTS")
    if quick and told.ctx is not None:
        raise UsageError("quick and --ctx exclude each other", "drop quick")
    longest = None if told.ctx is None else output.parse_tokens(told.ctx, "--ctx")
    return Request(
        model=words[0] if words else settings.default_model(),
        sizes=suite.QUICK if quick else suite.FULL,
        parts=suite.chosen(told.only),
        explicit=told.only is not None,
        seed=told.seed,
        longest=longest,
        against=told.against,
        backend=told.backend,
        numerics=told.numerics,
        ram=output.ram_budget(told.ram),
        budgets=sessions.budgets(),
    )


def _note(outcome, figures: dict[str, dict]) -> None:
    """Into the manifest of a store that was measured as it runs by default; a note if that cannot be."""
    from v4cli.store import price

    folder: Path = outcome.model.folder
    if not is_store(folder) or outcome.model.identity["numerics"] != "int8" or not figures:
        return
    try:
        price.note(folder, outcome.model.parts, figures)
    except (V4Error, OSError) as problem:
        why = f"{problem.filename}: {problem.strerror}" if isinstance(problem, OSError) else problem
        output.note(f"v4: not noted in the manifest: {why}")


class Items(Line):
    """How many of a model's items are done; of the time left, by the tokens that they compute."""

    def __init__(self, model: str):
        super().__init__()
        self.model = model
        self._meter, self._todo, self._now = Meter(0), dict[str, int](), ""
        self._n_items = self._n_done = 0

    @property
    def done(self) -> str:
        return f"{self._n_done} of {self._n_items} items are done"

    def loading(self, model: str) -> AbstractContextManager:
        return waiting(f"loading {model}")

    def plan(self, n_items: int, todo: list[tuple[str, int]]) -> None:
        self._todo, self._meter, self._now = dict(todo), Meter(sum(n for _, n in todo)), ""
        self._n_items, self._n_done = n_items or len(todo), (n_items or len(todo)) - len(todo)
        if self._n_done:
            output.note(f"v4: {self._n_done} of {self._n_items} items were measured before", dim=True)

    def note(self, text: str) -> None:
        output.note(f"v4: {text}", dim=True)

    def doing(self, what: str) -> None:
        if self._now:
            self._meter.add(self._todo.get(self._now, 0))
            self._n_done += 1
        self._now = what
        self.tell(f"eval {self.model}", self._meter, lambda: [what, f"item {self._n_done + 1} of {self._n_items}"])
