"""One measurement of a model, from the files it lies in to figures: what it is held against, what cannot be measured,
where everything is noted."""

import gc
import hashlib
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from v4kernels import backend as backend_of

from v4cli import paths
from v4cli.chat import special
from v4cli.chat.tokenizer import Tokenizer
from v4cli.chat.turn import Chat
from v4cli.engine.engine import Engine, identity_of
from v4cli.engine.session import Session
from v4cli.errors import ModelError, UsageError, V4Error
from v4cli.evals import code, suite, windows
from v4cli.evals.items import Item, Subject
from v4cli.evals.journal import Journal, opened
from v4cli.evals.material import Material, material_for
from v4cli.evals.report import Results, figures, results_of
from v4cli.evals.suite import Sizes
from v4cli.evals.teacher import ABOUT, KIND, Teacher
from v4cli.evals.windows import Window
from v4cli.model.config import V4Config
from v4cli.pull.hub import FolderSource
from v4cli.store import library, price
from v4cli.store.store import Store, open_model


@dataclass(frozen=True)
class Request:
    """What is to be measured, and how the model is loaded. `budgets`: bytes of disk for computed prompts, in all and a
    day."""

    model: str
    sizes: Sizes
    parts: tuple[str, ...]
    explicit: bool  # the parts were asked for by name
    seed: int
    longest: int | None
    against: str | None
    backend: str | None
    numerics: str | None
    ram: int | None
    budgets: tuple[int, int]


@dataclass(frozen=True)
class Model:
    """One that lies in a folder, not loaded."""

    name: str
    folder: Path
    config: V4Config
    tokenizer: Tokenizer
    material: Material
    identity: dict
    source: str  # folder of the checkpoint it was made from, itself for one; empty if that is not here as it was
    parts: str  # digest of a store's checksums; empty of others

    @classmethod
    def find(cls, model: str, backend: str | None, numerics: str | None) -> "Model":
        """By name or folder. ModelError, UsageError."""
        folder = library.model_folder(model)
        weights = open_model(folder)
        tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
        tokenizer.check(weights.config, folder / "tokenizer.json")
        try:
            computes = backend_of(None if backend == "triton" else backend, numerics)
        except ValueError as error:
            raise UsageError(str(error)) from None
        identity = identity_of(weights, computes)
        source, parts = str(folder), ""
        if isinstance(weights, Store):
            source, parts = _source_of(weights), price.weights_of(weights.manifest)
        return cls(model, folder, weights.config, tokenizer, material_for(tokenizer), identity, source, parts)

    @property
    def digest(self) -> str:
        """Of all that its answers depend on, but for the folder it lies in."""
        about = {key: value for key, value in self.identity.items() if key != "model"}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def journal(self, request: Request) -> Path:
        """Folder of its results."""
        about = f"{self.digest} {self.material.name} {request.sizes.name} {request.seed}"
        return paths.evals_dir() / "runs" / hashlib.sha256(about.encode()).hexdigest()[:16]

    def teacher(self, seed: int) -> Teacher:
        """What there is of its logits."""
        values = (KIND, self.name, self.digest, self.identity["numerics"], self.material.name, self.tokenizer.digest,
                  self.config.vocab_size, seed)  # fmt: skip
        fresh = Teacher(Path(), dict(zip(ABOUT, values)))
        path = paths.evals_dir() / "teachers" / f"{fresh.id}.teacher"
        return Teacher.load(path) if path.exists() else Teacher(path, fresh.about)


def _source_of(store: Store) -> str:
    """The folder that a store was made from, if what lies there still is what it was made from; else nothing."""
    repo, revision = store.manifest.source["repo"], store.manifest.source["revision"]
    try:
        return repo if os.path.isdir(repo) and FolderSource(Path(repo)).revision == revision else ""
    except V4Error:  # nothing that could be a source
        return ""


@dataclass
class Outcome:
    """What a measurement gave. `left_out`: parts and lengths that could not be measured, and why."""

    model: Model
    request: Request
    teacher: Teacher | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    results: Results = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, dict]:
        """By part, each with what it was measured by."""
        by = {"suite": self.request.sizes.name, "seed": self.request.seed, "material": self.model.material.name}
        by["numerics"] = self.model.identity["numerics"]
        against = {"against": self.teacher.about["model"]} if self.teacher else {}
        return {
            part: by | (against if part in ("kld", "ppl") else {}) | about
            for part, about in figures(self.results).items()
        }

    def leave_out(self, part: str, why: V4Error) -> None:
        """A part; `why` is raised instead where it was asked for by name."""
        if self.request.explicit:
            raise why
        self.left_out[part] = str(why)


class Watcher(Protocol):
    """Whoever shows how far a measurement is."""

    def loading(self, model: str) -> AbstractContextManager:
        """Within: a model is loaded."""
        ...

    def plan(self, n_items: int, todo: list[tuple[str, int]]) -> None:
        """Of so many items these are left, each with the tokens that it computes at most."""
        ...

    def doing(self, what: str) -> None:
        """One of them begins."""
        ...

    def note(self, text: str) -> None:
        """Something that the user should know."""
        ...


def measure(request: Request, cancelled: Callable[[], bool], watcher: Watcher) -> Outcome:
    """Measure what is missing. Interrupted: what is done stays. ModelError, UsageError, ResourceError, OSError."""
    model = Model.find(request.model, request.backend, request.numerics)
    outcome = Outcome(model, request)
    sizes = _fitting(outcome)
    parts = _measurable(outcome, sizes)
    with opened(model.journal(request), watcher.note) as journal:
        if "kld" in parts:
            try:
                outcome.teacher = _taught(outcome, sizes.windows, journal.contexts, cancelled, watcher)
            except UsageError as why:
                outcome.leave_out("kld", why)
        load = partial(_loaded, model, request, journal.contexts, watcher)
        made = suite.items(Subject(load, model.material, request.seed, cancelled), sizes, parts, outcome.teacher)
        todo = suite.undone(made, journal)
        watcher.plan(len(made), [(_named(item), item.n_tokens) for item in todo])
        suite.do(todo, journal, cancelled, lambda item: watcher.doing(_named(item)))
        journal.forget_contexts()
        outcome.results = results_of(made, journal)
    return outcome


def _named(item: Item) -> str:
    return f"{item.parts[0]} {item.name}"


def results_there(request: Request, like: Outcome) -> Results:
    """Of the model of another request, what has been measured of the items of `like`. UsageError if nothing has."""
    model = Model.find(request.model, request.backend, request.numerics)
    journal = Journal(model.journal(request))
    if model.material.name != like.model.material.name or not journal.results:
        hint = f"v4 eval {request.model} measures it" + (" (quick)" if request.sizes.name == "quick" else "")
        raise UsageError(f"{request.model}: nothing to compare with has been measured", hint)
    return {
        part: {name: result for name in its if (result := journal.results.get((part, name)))}
        for part, its in like.results.items()
    }


def _loaded(model: Model, request: Request, contexts: Path, watcher: Watcher) -> Chat:
    """A conversation whose long prompts are kept until the measurement is over."""

    def session(engine: Engine) -> Session:
        return engine.session(prefixes=engine.prefixes(contexts, *request.budgets))

    with watcher.loading(model.name):
        return Chat.open(model.folder, request.backend, request.numerics, session, request.ram)


def _fitting(outcome: Outcome) -> Sizes:
    """The lengths that the model's context has room for. UsageError if it has none for what was asked."""
    request, context = outcome.request, outcome.model.config.max_position_embeddings
    if request.longest is not None and request.longest > context:
        raise UsageError(
            f"--ctx {request.longest:,}: the context of {outcome.model.name} has {context:,} tokens", f"--ctx {context}"
        )
    wanted = request.sizes.up_to(request.longest or max(request.sizes.lengths))
    sizes = wanted.within(context)
    for length in sorted(wanted.lengths - sizes.lengths):
        outcome.left_out[f"{length:,} tokens"] = f"the context of {outcome.model.name} has {context:,}"
    return sizes


def _measurable(outcome: Outcome, sizes: Sizes) -> tuple[str, ...]:
    """The parts that can be measured here, of this model."""
    parts, model = list(outcome.request.parts), outcome.model
    short = UsageError(f"nothing that is measured fits the context of {model.name}", "a larger --ctx, or another model")
    for part in [part for part in parts if not sizes.fits(part, model.config.max_position_embeddings)]:
        outcome.leave_out(part, short)
        parts.remove(part)
    if "tools" in parts:
        try:
            model.tokenizer.special_id(special.DSML)
        except ModelError as why:
            outcome.leave_out("tools", ModelError(f"{model.name} cannot call tools: {why}"))
            parts.remove("tools")
    if "code" in parts and (trouble := code.trouble()):
        outcome.leave_out("code", UsageError(f"programs are run in the sandbox only: {trouble}", "v4 doctor"))
        parts.remove("code")
    return tuple(parts)


def _taught(
    outcome: Outcome, wanted: list[Window], contexts: Path, cancelled: Callable[[], bool], watcher: Watcher
) -> Teacher:
    """The reference's logits at all these windows, computed if need be. UsageError if there is no reference."""
    model, request = outcome.model, outcome.request
    against = request.against or model.source
    if against and Path(against).is_file():
        teacher, reference = Teacher.load(Path(against)), None
    elif against:
        reference = Model.find("nano" if Path(against) == paths.NANO else against, request.backend, request.numerics)
        teacher = reference.teacher(request.seed)
    else:
        raise UsageError(
            f"{model.name}: the weights it was made from are not here, or not as they were",
            "--against MODEL, or a teacher's file",
        )
    asked = {"texts": model.material.name, "tokenizer": model.tokenizer.digest, "seed": request.seed}
    other = next((name for name, value in asked.items() if teacher.about[name] != value), None)
    if other is not None:
        raise UsageError(f"{against}: it has another {other.removesuffix('s')}", "--against a relative of this model")
    missing = windows.missing(teacher, wanted, floor=reference is not None)
    if missing and reference is None:
        raise UsageError(f"{against}: it has no window {missing[0].name}", "--against MODEL computes what is missing")
    if missing and reference is not None:
        rows = windows.missing(teacher, wanted)
        todo = [(f"reference {window.name}", window.end) for window in rows]
        watcher.plan(0, todo + [(f"noise floor {window.name}", window.end) for window in missing])
        with watcher.loading(reference.name):
            engine = Engine.open(reference.folder, request.backend, request.numerics, request.ram)

        def session() -> Session:
            return engine.session(prefixes=engine.prefixes(contexts, *request.budgets))

        windows.record(engine, teacher, wanted, model.material, session, cancelled, watcher.doing)
        del session, engine
        gc.collect()  # its memory is needed for the model
    return teacher
