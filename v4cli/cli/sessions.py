"""`v4 contexts`: the contexts that are stored, so that nothing computed once is computed again."""

import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from v4cli import paths, settings
from v4cli.cli import output
from v4cli.engine import gpu
from v4cli.engine.gpu import ANYHOW, OnCard
from v4cli.errors import SnapshotError, UsageError
from v4cli.options import Loading
from v4cli.plan import measured
from v4cli.prefixes.prefixes import CHUNK, Folder, Prefixes, Snapshot, remove, stored
from v4cli.store import library

DISK, WRITES = "V4_CACHE_DISK", "V4_CACHE_WRITES"
DEFAULTS = {DISK: "20G", WRITES: "50G"}
DISK_SHARE = 10  # unless told: no more than a tenth of the disk
ID_LENGTH = 8
LEAST_TOKENS = 8  # of an answer that tells how fast a model is
OF_GPUS = "gpu", "vram", "chunk", "kv_host", "dense"  # options that do nothing elsewhere


def budgets() -> tuple[int, int]:
    """Bytes that stored prefixes may take, and that may be written per day. UsageError for a bad variable."""
    disk, writes = (output.parse_size(os.environ.get(name) or DEFAULTS[name], name) for name in (DISK, WRITES))
    if not os.environ.get(DISK):
        there = next(path for path in (paths.prefixes_dir(), *paths.prefixes_dir().parents) if path.is_dir())
        disk = min(disk, shutil.disk_usage(there).total // DISK_SHARE)
    return disk, writes


def prefixes_of(engine, wanted: bool) -> Prefixes | None:
    """Where a command finds and stores computed prefixes; None if it should not, or may not store anything."""
    disk, writes = budgets()
    return engine.prefixes(paths.prefixes_dir(), disk, writes) if wanted and disk else None


def model_of(model: str, loading: Loading) -> str:
    """What a model is called here that may be the one of a server."""
    if not loading.engine:
        return model
    from v4cli.cli import remote

    return remote.model_of(model, loading)


def open_chat(model: str, loading: Loading):
    """A conversation with a model: its cache in a file if that is wanted, stored prefixes used unless they are not. Or
    with one that a server has."""
    if loading.engine:
        from v4cli.cli import remote

        return remote.open_chat(model, loading)
    kv_dir = loading.kv_dir
    if kv_dir is not None and not kv_dir.is_dir():
        raise UsageError(f"{settings.said_by('kv_dir', kv_dir)} {kv_dir}: no such folder", f"mkdir -p {kv_dir}")
    with settings.blamed("model", model):
        folder = library.model_folder(model)
    ram, on_card = output.ram_budget(loading.ram), _on_card(loading)
    from v4cli.chat.turn import Chat

    def session(engine):
        return engine.session(kv_dir, prefixes_of(engine, not loading.no_cache))

    backend = loading.backend if kv_dir is None else _beside_a_file(loading)
    chat = Chat.open(folder, backend, loading.numerics, session, ram, paths.use_dir(), on_card, loading.drafts)
    if chat.engine.passed_over:
        who = "the CPU computes" if chat.engine.model.ops.name == "cpu" else "plain torch computes, which is slow"
        output.note(f"v4: {chat.engine.passed_over}; {who} (v4 doctor)", dim=True)
    elif on_card != ANYHOW and chat.engine.placed is None:
        name = next(name for name in OF_GPUS if getattr(loading, name))
        said = settings.said_by(name, getattr(loading, name))
        output.note(f"v4: {said} has no effect, the model is not on a GPU (v4 doctor)", dim=True)
    return chat


def _beside_a_file(loading: Loading) -> str | None:
    """The backend that computes with a cache in a file, which is no GPU: those read memory, and what they read of the
    host's is pinned, so that no file could take its place. UsageError where one is asked for."""
    said = settings.said_by("kv_dir", loading.kv_dir)
    if loading.backend == "triton":
        raise UsageError(
            f"{said} is not for --backend triton: a GPU reads entries from memory, not from a file",
            "--kv-host keeps them in RAM; or drop --backend",
        )
    if loading.backend is not None or loading.numerics is not None:
        return loading.backend
    if gpu.chosen(None, loading.gpu) == "triton":
        output.note(f"v4: {said} is the CPU's, which computes; on the GPU --kv-host keeps entries in RAM", dim=True)
    return "cpu"


def _on_card(loading: Loading) -> OnCard:
    """What is asked for of a GPU; a note if there is one that nobody looked at. UsageError."""
    vram = None if loading.vram is None else output.parse_size(loading.vram, settings.said_by("vram", loading.vram))
    if loading.backend is None and gpu.unused():
        output.note("v4: there is a GPU that is not used yet; v4 doctor finds out whether it computes right", dim=True)
    return OnCard(loading.gpu or 0, vram, loading.chunk, loading.kv_host, loading.dense == "nf4")


def keep(session) -> None:
    """Store what the next turn or command can go on from; say what hindered that."""
    for note in store(session):
        output.note(f"v4: {note}", dim=True)


def store(session) -> list[str]:
    """Store what the next turn or command can go on from; what hindered that, for the user."""
    session.keep()
    try:
        session.engine.remember(paths.use_dir())
    except OSError as error:
        session.notes.append(f"{paths.use_dir()}: the use of experts is not stored ({error.strerror})")
    if session.stats.completion_tokens >= LEAST_TOKENS:
        measured.note(paths.figures_file(), speed_of(session.engine), session.stats.decode_tokens_per_s)
    notes, session.notes = session.notes, []
    return notes


def speed_of(engine) -> str:
    """The name under which tokens/s of a model are kept, by who computes."""
    return f"tokens/s of {engine.path} {'at ' + engine.client.url if is_remote(engine) else engine.model.ops.name}"


def is_remote(engine) -> bool:
    """Whether a server computes."""
    return hasattr(engine, "client")


@dataclass(frozen=True)
class Listed:
    """A stored context that no other one continues."""

    prefixes: Prefixes
    files: Folder
    snapshot: Snapshot
    title: str
    before: tuple[Snapshot, ...]  # the places stored on its way, the last first

    @property
    def n_bytes(self) -> int:
        """Of all its files, those shared with others too."""
        chunks = sum(self.files.chunks[key].size for key in self.files.path_of(self.snapshot))
        return chunks + sum(snapshot.size for snapshot in (self.snapshot, *self.before))

    def to_dict(self) -> dict:
        return {
            "id": self.snapshot.id, "model": self.prefixes.identity["model"], "tokens": self.snapshot.n_tokens,
            "bytes": self.n_bytes, "used": self.snapshot.used, "title": self.title,
            "places": [snapshot.n_tokens for snapshot in reversed((self.snapshot, *self.before))],
        }  # fmt: skip


def ls(as_json: bool) -> None:
    """All contexts, those used last first."""
    found = sorted(all_contexts(), key=lambda listed: -listed.snapshot.used)
    if as_json:
        output.json_page([listed.to_dict() for listed in found])
        return
    if not found:
        output.note(f"no contexts are stored yet under {paths.prefixes_dir()}")
        return
    rows = [("ID", "MODEL", "TOKENS", "SIZE", "USED", "TITLE")]
    for listed in found:
        name = Path(listed.prefixes.identity["model"])
        model = "nano" if name == paths.NANO else name.name
        tokens = f"{listed.snapshot.n_tokens:,}"
        used = _ago(time.time() - listed.snapshot.used)
        rows.append((listed.snapshot.id[:ID_LENGTH], model, tokens, output.size(listed.n_bytes), used, listed.title))
    output.table(rows)
    total = sum(path.stat().st_size for path in paths.prefixes_dir().rglob("*") if path.is_file())
    disk, writes = budgets()
    today = found[0].prefixes.written_today()
    output.note(
        f"{output.size(total)} of {output.size(disk)} ({DISK}) on disk, what conversations share counted once; "
        f"{output.size(today)} of {output.size(writes)} ({WRITES}) written today"
    )


def show(wanted: str, as_json: bool) -> None:
    """One context: its places, its files, its text."""
    from v4cli.chat.tokenizer import Tokenizer

    listed = _find(wanted)
    tokens = listed.prefixes.tokens(listed.snapshot)
    tokenizer = Path(listed.prefixes.identity["model"]) / "tokenizer.json"
    text = Tokenizer.from_file(tokenizer).decode(tokens) if tokenizer.is_file() else ""
    about = listed.to_dict() | {"chunks": len(listed.files.path_of(listed.snapshot)), "text": text}
    if as_json:
        output.json_page(about)
        return
    places = ", ".join(f"{n:,}" for n in about["places"])
    output.answer(
        f"{about['id']}  {about['tokens']:,} tokens of {about['model']}\n"
        f"{output.size(about['bytes'])} in {about['chunks']} chunks of {CHUNK:,} tokens and the places {places}\n\n"
        f"{text}\n"
    )


def rm(wanted: list[str], everything: bool, yes: bool) -> None:
    """Delete contexts; what others share stays. UsageError without --yes or an answer in a terminal."""
    if bool(wanted) == everything:
        raise UsageError("give IDs, or --all", "v4 contexts lists them")
    chosen = list(all_contexts()) if everything else [_find(one) for one in wanted]
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("not asked in a pipe", "add --yes")
        output.note(f"delete {len(chosen)} contexts? [y/N] ", end="")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return
    for listed in chosen:
        files = Folder(listed.prefixes.folder)
        others = {s.id for other in all_contexts() if other.snapshot.id != listed.snapshot.id for s in other.before}
        gone = [s for s in (listed.snapshot, *listed.before) if s.id not in others]
        remove(files, [s for s in files.all_snapshots() if s.id in {one.id for one in gone}])
    output.note(f"{len(chosen)} deleted")


def export(wanted: str, to: Path) -> None:
    """Write one context to a file that `v4 contexts import` takes anywhere."""
    from v4cli.prefixes import archive

    listed = _find(wanted)
    n_bytes = archive.write(to, listed.prefixes, listed.snapshot)
    output.note(f"{to}: {listed.snapshot.n_tokens:,} tokens, {output.size(n_bytes)}")


def import_file(source: Path, model: str) -> None:
    """Store a context from a file for a model of the same shape."""
    from v4cli.engine.engine import unloaded
    from v4cli.prefixes import archive

    folder = library.model_folder(model)
    disk, writes = budgets()
    identity, config, state = unloaded(folder)
    prefixes = Prefixes(paths.prefixes_dir(), identity, disk, writes)
    snapshot, same = archive.read(source, prefixes, config, state)
    output.note(f"{snapshot.id[:ID_LENGTH]}: {snapshot.n_tokens:,} tokens for {model}")
    if not same:
        output.note("computed with other weights of this shape, or by another version: computed anew, it may differ")


def all_contexts():
    """Every context that no other continues."""
    for prefixes in stored(paths.prefixes_dir()):
        files, about = Folder(prefixes.folder), {}
        for snapshot in files.all_snapshots():
            try:
                about[snapshot.id] = snapshot, prefixes.about(snapshot)
            except SnapshotError as error:
                output.note(f"v4: {error}")
        continued = {says.get("after") for _, says in about.values()}
        for id, (snapshot, says) in about.items():
            if id not in continued:
                before, at = [], says.get("after")
                while at in about and about[at][0] not in before:
                    before.append(about[at][0])
                    at = about[at][1].get("after")
                yield Listed(prefixes, files, snapshot, str(says.get("title", "")), tuple(before))


def _find(wanted: str) -> Listed:
    found = [listed for listed in all_contexts() if wanted and listed.snapshot.id.startswith(wanted)]
    if len(found) != 1:
        state = "no stored context has" if not found else f"{len(found)} stored contexts have"
        raise UsageError(f"{state} an ID that begins with {wanted!r}", "v4 contexts lists them")
    return found[0]


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return "now"
