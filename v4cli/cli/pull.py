"""`v4 pull`: bring a model here and make it ready to run."""

import os
import sys
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

from v4cli import streams
from v4cli.clean import harmless, on_one_line
from v4cli.cli import output
from v4cli.errors import UsageError
from v4cli.model.known import MODELS
from v4cli.store import library

LINE_EVERY = 5.0  # seconds between plain lines
WINDOW = 30.0  # seconds over which rates are measured
REFRESH = 0.1


@dataclass(frozen=True)
class PullRequest:
    """The command line of `v4 pull`."""

    what: str
    quant: str | None
    name: str | None
    revision: str | None
    dry_run: bool
    keep_source: bool
    part: str | None
    jobs: int
    as_json: bool


def pull_model(request: PullRequest) -> None:
    """Pull, or with --dry-run tell what that would do."""
    from v4cli.chat.turn import READERS
    from v4cli.pull.pull import plan_pull, pull
    from v4cli.pull.sizes import open_manifest, plan_known

    _check_quant(request.quant)
    target = _target(request)
    name = request.name or target.name
    dest = library.named_folder(name)
    if dest is None:
        raise UsageError(f"{name!r} cannot be the name of a model", "give a plain --name, other than nano")
    options = {"jobs": request.jobs, "keep_source": request.keep_source, "only": request.part}
    if request.dry_run and request.what in MODELS and target.revision is None and open_manifest(dest) is None:
        _tell_plan(plan_known(request.what, dest, request.quant, **options), dest, request.as_json)
        return
    options["readers"] = READERS
    source = target.open()
    with _Progress(name) as reporter:
        if request.dry_run:
            plan = plan_pull(source, dest, request.quant, reporter=reporter, **options)
        else:
            plan = pull(source, dest, request.quant, reporter=reporter, **options)
    if request.dry_run:
        _tell_plan(plan, dest, request.as_json)
    else:
        _tell_result(plan, reporter.seconds, dest, request.as_json)


def _target(request: PullRequest):
    """What is to be pulled: of a name that `v4 ls` lists, what it was made from."""
    from v4cli.pull.hub import Target, parse_target
    from v4cli.pull.sizes import open_manifest
    from v4cli.store.store import is_store

    here = library.named_folder(request.what)
    if here is None or request.name not in (None, request.what) or not is_store(here):
        if here is not None and here.is_dir() and request.what not in MODELS and not os.path.exists(request.what):
            raise UsageError(f"{here}: does not tell what it was made from", f"v4 rm {request.what}, then pull again")
        return parse_target(request.what, request.revision)
    source = open_manifest(here).source
    if not os.path.isabs(source["repo"]):
        return Target(request.what, source["repo"], request.revision or source["revision"])
    if request.revision:
        raise UsageError(f"{request.what} was made from the folder {source['repo']}", "drop --revision")
    return Target(request.what, Path(source["repo"]))


def quantize_folder(source: Path, dest: Path, quant: str | None, part: str | None, as_json: bool) -> None:
    """Make a store, in any folder, of an official checkpoint that is on this disk."""
    from v4cli.chat.turn import READERS
    from v4cli.pull.hub import FolderSource
    from v4cli.pull.pull import pull

    _check_quant(quant)
    with _Progress(dest.name) as reporter:
        plan = pull(FolderSource(source), dest, quant, reporter=reporter, only=part, readers=READERS)
    _tell_result(plan, reporter.seconds, dest, as_json)


def _check_quant(quant: str | None) -> None:
    from v4cli.store.recipe import RECIPES

    if quant not in (None, *RECIPES):
        raise UsageError(f"unknown --quant {quant!r}", f"choose one of: {', '.join(RECIPES)}")


def _tell_plan(plan, dest, as_json: bool) -> None:
    """The plan; then ResourceError if it does not fit."""
    if as_json:
        output.json_page({"name": dest.name, "path": str(dest), **asdict(plan), "fits": plan.peak <= plan.free})
    else:
        output.answer(_in_words(plan, dest.name) + "\n")
    plan.check(dest)


def _tell_result(plan, seconds: float, dest, as_json: bool) -> None:
    """`plan` is None if nothing was to be done."""
    if as_json:
        done = {"fetched": plan.fetched, "written": plan.written} if plan else {"fetched": 0, "written": 0}
        output.json_page({"name": dest.name, "path": str(dest), **done, "seconds": seconds, "up_to_date": plan is None})
    elif plan is not None:
        output.answer(f"{dest.name}: {output.size(plan.written)} written to {dest} in {_span(seconds)}\n")


def _in_words(plan, name: str) -> str:
    """The plan on one line."""
    source = plan.repo + (f"@{plan.revision[:8]}" if plan.revision and not plan.repo.startswith("/") else "")
    text = (
        f"{name} ({plan.quant}) from {source}: fetch {output.size(plan.fetched)} ({_count(plan.shards, 'shard')}), "
        f"write {output.size(plan.written)} ({_count(plan.parts, 'part')}), free {output.size(plan.freed)} on the way; "
        f"needs {output.size(plan.peak)} of disk at most, {output.size(plan.free)} "
        + ("is free" if plan.peak <= plan.free else "is free: does not fit")
    )
    if plan.rate and plan.fetched:
        text += f"; about {_span(plan.fetched / plan.rate)} at {output.size(plan.rate)}/s"
    return text


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _span(seconds: float) -> str:
    """A duration for people."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, hours = whole // 60, whole // 3600
    return f"{minutes} min {whole % 60} s" if not hours else f"{hours} h {minutes % 60} min"


class _Meter:
    """How much of some total is done, and how fast lately."""

    def __init__(self, total: int):
        self.total, self.done = total, 0
        self._recent = deque([(time.monotonic(), 0)])

    def add(self, n: int) -> None:
        self.done += n
        now = time.monotonic()
        if now - self._recent[-1][0] > 0.5:
            self._recent.append((now, self.done))
        while len(self._recent) > 1 and now - self._recent[0][0] > WINDOW:
            self._recent.popleft()

    @property
    def rate(self) -> float:
        """Bytes per second."""
        then, before = self._recent[0]
        return max(0.0, (self.done - before) / max(1e-3, time.monotonic() - then))

    @property
    def left(self) -> float | None:
        """Seconds, if that can be told."""
        if self.done >= self.total:
            return 0.0
        return (self.total - self.done) / self.rate if self.rate else None


class _Progress:
    """A reporter: bars for what is in flight on a terminal, else a line every few seconds; all on stderr."""

    def __init__(self, name: str):
        self.name = name
        self._lock = threading.Lock()
        self._fetching: dict[str, bool] = {}
        self._fetched = self._written = _Meter(0)
        self._start = self._told = time.monotonic()
        self._bars = _Bars() if streams.live(sys.stderr) else None

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_) -> None:
        if self._bars is not None:
            self._bars.stop()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def say(self, text: str) -> None:
        with self._lock:
            output.note(text) if self._bars is None else self._bars.say(text)

    def plan(self, plan) -> None:
        self.say(_in_words(plan, self.name))
        with self._lock:
            self._fetched, self._written = _Meter(plan.read), _Meter(plan.written)

    def start(self, name: str, n_bytes: int, fetching: bool) -> None:
        with self._lock:
            self._fetching[name] = fetching
            if self._bars is not None:
                self._bars.start(name if fetching else f"{name} (convert)", name, n_bytes)

    def advance(self, name: str, n_bytes: int) -> None:
        with self._lock:
            (self._fetched if self._fetching[name] else self._written).add(n_bytes)
            now = time.monotonic()
            if self._bars is not None:
                self._bars.advance(name, n_bytes)
            if now - self._told > (LINE_EVERY if self._bars is None else REFRESH):
                self._told = now
                self._tell()

    def finish(self, name: str) -> None:
        with self._lock:
            if self._bars is not None:
                self._bars.finish(name)

    def _tell(self) -> None:
        """The state of the whole, as a bar or a line."""
        fetched, written = self._fetched, self._written
        pace = fetched if fetched.done < fetched.total else written  # only so many shards may wait for conversion
        line = (
            f"{self.name}: {output.size(fetched.done)} of {output.size(fetched.total)} read, "
            f"{output.size(written.done)} of {output.size(written.total)} written, {output.size(pace.rate)}/s"
        ) + ("" if pace.left is None else f", {_span(pace.left)} left")
        if self._bars is None:
            output.note(line)
        else:
            self._bars.refresh(fetched.done + written.done, fetched.total + written.total, line)


class _Bars:
    """Live bars on a terminal: one for each shard or part in flight, and one with a line of text for everything."""

    def __init__(self):
        from rich import progress as rich
        from rich.console import Group
        from rich.live import Live

        label = rich.TextColumn("{task.description}", markup=False)
        size = rich.DownloadColumn(binary_units=True)
        self._rows = rich.Progress(label, rich.BarColumn(), size, rich.TransferSpeedColumn())
        self._whole = rich.Progress(rich.BarColumn(), rich.TaskProgressColumn(), label)
        self._all = self._whole.add_task("", total=None)
        self._live = Live(Group(self._rows, self._whole), console=output.console(stderr=True), transient=True)
        self._tasks: dict[str, int] = {}
        self._behind: dict[str, int] = {}  # not shown yet: drawing every 64 KiB would cost more than fetching them

    def say(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def start(self, label: str, name: str, n_bytes: int) -> None:
        self._live.start()
        self._tasks[name] = self._rows.add_task(harmless(on_one_line(label)), total=n_bytes)
        self._behind[name] = 0

    def advance(self, name: str, n_bytes: int) -> None:
        self._behind[name] += n_bytes

    def refresh(self, done: int, total: int, line: str) -> None:
        for name, n_bytes in self._behind.items():
            self._rows.advance(self._tasks[name], n_bytes)
            self._behind[name] = 0
        self._whole.update(self._all, completed=done, total=total, description=line)

    def finish(self, name: str) -> None:
        self._rows.remove_task(self._tasks.pop(name))
        del self._behind[name]

    def stop(self) -> None:
        self._live.stop()
