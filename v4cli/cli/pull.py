"""`v4 pull`: bring a model here and make it ready to run."""

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from v4cli import paths, streams
from v4cli.cli import output
from v4cli.cli.progress import REFRESH, Meter, columns, fitting, of_bytes
from v4cli.errors import UsageError
from v4cli.model.known import MODELS, known_config
from v4cli.store import library, price
from v4cli.words import span

LINE_EVERY = 5.0  # seconds between plain lines


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
    drafts: bool = True
    calibration: Path | None = None


def pull_model(request: PullRequest) -> None:
    """Pull, or with --dry-run tell what that would do."""
    from v4cli.chat.turn import READERS
    from v4cli.pull.pull import plan_pull, pull
    from v4cli.pull.sizes import open_manifest, plan_known
    from v4cli.store.calibration import Calibration
    from v4cli.store.recipe import named

    recipe = None if request.quant is None else named(request.quant)
    target = _target(request)
    name = request.name or target.name
    dest = library.named_folder(name)
    if dest is None:
        raise UsageError(f"{name!r} cannot be the name of a model", "give a plain --name, other than nano")
    if request.keep_source and not request.drafts:
        raise UsageError("--keep-source and --no-drafts exclude each other", "drop --keep-source")
    options = {"jobs": request.jobs, "keep_source": request.keep_source, "only": request.part, "drafts": request.drafts}
    known = None if request.calibration is None else Calibration.open(request.calibration)
    if request.dry_run and request.what in MODELS and target.revision is None and open_manifest(dest) is None:
        if known is not None:
            known.check(known_config(request.what))
        _tell_plan(plan_known(request.what, dest, recipe, **options), dest, request.as_json)
        return
    options |= {"readers": READERS, "calibration": known}
    source = _opened(target.place) if isinstance(target.place, Path) else target.open()
    with _Progress(name) as reporter:
        if request.dry_run:
            plan = plan_pull(source, dest, recipe, reporter=reporter, **options)
        else:
            plan = pull(source, dest, recipe, reporter=reporter, **options)
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


def quantize_folder(
    source: str,
    dest: Path,
    quant: str | None,
    fit: str | None,
    part: str | None,
    as_json: bool,
    calibration: Path | None = None,
) -> None:
    """Make a store, in any folder, of a checkpoint that is on this disk: a folder, a GGUF file, or else a name."""
    from v4cli.chat.turn import READERS
    from v4cli.cli.fit import fitted, show
    from v4cli.pull.pull import pull
    from v4cli.store.calibration import Calibration
    from v4cli.store.recipe import named

    if quant is not None and fit is not None:
        raise UsageError("--quant and --fit exclude each other", "drop one")
    recipe, chosen = None if quant is None else named(quant), None
    known = None if calibration is None else Calibration.open(calibration)
    given = paths.expanded(source)
    found = given if given.is_dir() or given.suffix == ".gguf" else library.model_folder(source)
    if fit is not None:
        recipe, chosen = fitted(found, dest, fit, known)
        if chosen and not as_json:
            show(chosen)
    with _Progress(dest.name) as reporter:
        plan = pull(_opened(found), dest, recipe, reporter=reporter, only=part, readers=READERS, calibration=known)
    _tell_result(plan, reporter.seconds, dest, as_json, {"fit": chosen} if chosen else {})


def _opened(place: Path):
    """A folder or a GGUF file as a source."""
    from v4cli.chat.vocabulary import of_gguf
    from v4cli.pull.gguf_source import GgufSource
    from v4cli.pull.hub import FolderSource

    return GgufSource(place, of_gguf) if place.suffix == ".gguf" and not place.is_dir() else FolderSource(place)


def _tell_plan(plan, dest, as_json: bool) -> None:
    """The plan; then ResourceError if it does not fit."""
    figures = _measured(plan, dest)
    if as_json:
        about = {"name": dest.name, "path": str(dest), **asdict(plan), "fits": plan.peak <= plan.free}
        output.json_page(about | {"measured": figures or None})
    else:
        output.answer(f"{_in_words(plan, dest.name)}\nquality: {price.tag(figures)}\n")
    plan.check(dest)


def _measured(plan, dest: Path) -> dict[str, dict]:
    """What is known of the weights that the pull would make: of a store that is there, in the same quantization."""
    from v4cli.pull.sizes import open_manifest

    manifest = open_manifest(dest)
    return price.measured(manifest) if manifest is not None and manifest.quant == plan.quant else {}


def _tell_result(plan, seconds: float, dest, as_json: bool, more: dict | None = None) -> None:
    """`plan` is None if nothing was to be done; `more`: of the JSON."""
    if as_json:
        done = {"fetched": plan.fetched, "written": plan.written} if plan else {"fetched": 0, "written": 0}
        about = {"name": dest.name, "path": str(dest), **done, "seconds": seconds, "up_to_date": plan is None}
        output.json_page(about | (more or {}))
    elif plan is not None:
        output.answer(f"{dest.name}: {output.size(plan.written)} written to {dest} in {span(seconds)}\n")


def _in_words(plan, name: str) -> str:
    """The plan on one line."""
    bits = "" if plan.bits is None else f", {plan.bits:.3g} bits an expert's weight"
    source = plan.repo + (f"@{plan.revision[:8]}" if plan.revision and not plan.repo.startswith("/") else "")
    text = (
        f"{name} ({plan.quant}{bits}) from {source}: "
        f"fetch {output.size(plan.fetched)} ({_count(plan.shards, 'shard')}), "
        f"write {output.size(plan.written)} ({_count(plan.parts, 'part')}), free {output.size(plan.freed)} on the way; "
        f"needs {output.size(plan.peak)} of disk at most, {output.size(plan.free)} "
        + ("is free" if plan.peak <= plan.free else "is free: does not fit")
    )
    if plan.rate and plan.fetched:
        text += f"; about {span(plan.fetched / plan.rate)} at {output.size(plan.rate)}/s"
    return text


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


class _Progress:
    """A reporter: lines with bars for what is in flight on a terminal, else a line every few seconds; all on stderr."""

    def __init__(self, name: str):
        self.name = name
        self._lock = threading.Lock()
        self._fetching: dict[str, bool] = {}
        self._fetched = self._written = Meter(0)
        self._fetches = False  # any of it: what is on this disk already is not waited for
        self._parts, self._finished = 0, 0  # of the store: all that are to be written, and those that are
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
            self._fetched, self._written, self._parts = Meter(plan.read), Meter(plan.written), plan.parts
            self._fetches = plan.fetched > 0

    def start(self, name: str, n_bytes: int, fetching: bool) -> None:
        with self._lock:
            self._fetching[name] = fetching
            if self._bars is not None:
                self._bars.start(name if fetching else f"{name} (convert)", name, n_bytes)

    def advance(self, name: str, n_bytes: int) -> None:
        with self._lock:
            (self._fetched if self._fetching[name] else self._written).add(n_bytes)
            if self._bars is not None:
                self._bars.advance(name, n_bytes)
            now = time.monotonic()
            if now - self._told > (LINE_EVERY if self._bars is None else REFRESH):
                self._told = now
                output.note(self._whole(None)) if self._bars is None else self._bars.show(self._whole)

    def finish(self, name: str) -> None:
        with self._lock:
            self._finished += not self._fetching[name]
            if self._bars is not None:
                self._bars.finish(name)

    def _whole(self, width: int | None) -> str:
        """The state of the whole, as a line."""
        fetched, written = self._fetched, self._written
        told = [(fetched, "read")] * self._fetches + [(written, "written")]
        # Only so many shards may wait for conversion.
        pace = fetched if self._fetches and fetched.done < fetched.total else written
        parts = [f"part {min(self._finished + 1, self._parts)} of {self._parts}"] if self._parts else []
        parts.append(f"{pace.rate / (1 << 20):,.1f} MiB/s")
        for meter, what in told:
            parts.append(f"{output.size(meter.done)} of {output.size(meter.total)} {what}")
        share = sum(meter.done for meter, _ in told) / max(1, sum(meter.total for meter, _ in told))
        return fitting(self.name, share, parts, pace.left, width)


class _Bars:
    """Lines on a terminal: one for each shard or part in flight, and one for everything."""

    def __init__(self):
        from rich.live import Live

        self._rows: dict[str, tuple[str, Meter]] = {}
        self._whole: Callable[[int], str] = lambda width: ""
        self._live = Live(console=output.console(stderr=True), transient=True, auto_refresh=False)

    def say(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def start(self, label: str, name: str, n_bytes: int) -> None:
        self._live.start()
        self._rows[name] = label, Meter(n_bytes)

    def advance(self, name: str, n_bytes: int) -> None:
        self._rows[name][1].add(n_bytes)

    def show(self, whole: Callable[[int], str]) -> None:
        """Draw all lines; `whole(width)`: the last one."""
        from rich.text import Text

        width = columns()
        rows = [
            fitting(label, m.done / max(1, m.total), of_bytes(m)[1:], None, width) for label, m in self._rows.values()
        ]
        self._live.update(Text("\n".join([*rows, whole(width)]), no_wrap=True, overflow="crop"), refresh=True)

    def finish(self, name: str) -> None:
        del self._rows[name]

    def stop(self) -> None:
        self._live.stop()
