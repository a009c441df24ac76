"""`v4 verify` and `v4 rm`: is a model still what was pulled, and away with it."""

import shutil
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from v4cli import paths
from v4cli.cli import output, progress
from v4cli.errors import ModelError, UsageError
from v4cli.store import library
from v4cli.store.library import CHECKPOINT, STRANGE, disk_bytes, inspect
from v4cli.store.store import MANIFEST, MANIFEST_COPY, is_store
from v4cli.system import sync_folder


def verify(model: str, as_json: bool) -> None:
    """Check a model; ModelError (exit 3) if anything is not as it was written."""
    folder = library.model_folder(model)
    about = {"model": model, "path": str(folder)}
    about |= _verify_store(model, folder) if is_store(folder) else _verify_checkpoint(folder)
    damage = about["damage"]
    if as_json:
        output.json_page(about)
    else:
        output.answer(f"{model}: {about['checked']}{'' if damage else '; nothing is wrong'}\n")
        for item in damage:
            output.answer(f"  {item['file']}: {item['problem']}\n    {item['repair']}\n")
    if damage:
        count = "1 file is" if len(damage) == 1 else f"{len(damage)} files are"
        raise ModelError(f"{model}: {count} not as recorded", damage[0]["repair"])


def _verify_store(model: str, folder: Path) -> dict:
    """Every byte against the manifest."""
    from v4cli.chat.turn import READERS
    from v4cli.store.verify import recorded_bytes, verify_store

    with progress.Bytes(f"verify {model}", recorded_bytes(folder)) as bar:
        report = verify_store(folder, bar.advance, READERS)
    rate = f"{bar.seconds:.1f} s, {output.size(report.n_bytes / bar.seconds)}/s"
    return {
        "checked": f"{report.n_files} files, {output.size(report.n_bytes)}, {rate}",
        "files": report.n_files,
        "bytes": report.n_bytes,
        "seconds": bar.seconds,
        "damage": [asdict(item) for item in report.damage],
    }


def _verify_checkpoint(folder: Path) -> dict:
    """An official checkpoint brings no checksums: names, types, shapes and file sizes are all there is to check."""
    from v4cli.chat.turn import READERS
    from v4cli.store.checkpoint import Checkpoint
    from v4cli.store.verify import unusable

    checkpoint = Checkpoint.open(folder)
    checked = f"{len(checkpoint.places):,} tensors, names, types, shapes and sizes only (no checksums in this format)"
    repair = "put that of the release there"
    damage = [
        {"file": name, "part": None, "problem": problem, "repair": repair}
        for name, problem in unusable(folder, checkpoint.config, READERS)
    ]
    return {"checked": checked, "files": 0, "bytes": 0, "seconds": 0.0, "damage": damage}


def remove(model: str, yes: bool) -> None:
    """Delete a pulled model. UsageError unless asked for twice: --yes, or an answer in a terminal."""
    folder = library.named_folder(model)
    if folder is None or not folder.is_dir():
        hint = f"v4 rm removes what `v4 ls` lists under {paths.models_dir()}, by its name"
        raise ModelError(f"{model!r} is not one of the pulled models", hint)
    if (state := inspect(folder).state) in (CHECKPOINT, STRANGE):
        raise ModelError(f"{folder}: {state}, so not v4's to delete", "remove it yourself if you mean to")
    n_bytes = 0 if folder.is_symlink() else disk_bytes(folder)  # of a link, what it points to stays
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"{model} ({output.size(n_bytes)}) would be deleted; nobody is there to ask", "add --yes")
        output.note(f"delete {folder} ({output.size(n_bytes)})? [y/N] ", end="")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            output.note("nothing was deleted")
            return
    with _no_pull(folder):
        _delete(folder)
    output.answer(f"{model}: {output.size(n_bytes)} freed\n")


@contextmanager
def _no_pull(folder: Path):
    """Hold the lock that `pull` takes, or say that one has it."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder.parent / f".{folder.name}.lock", timeout=0):
            yield
    except Timeout:
        raise ModelError(f"{folder.name}: a pull of it is running", "stop that first") from None


def _delete(folder: Path) -> None:
    """The manifest goes before what it describes: what a crash leaves is then no whole model."""
    if folder.is_symlink():
        folder.unlink()
        return
    for name in (MANIFEST_COPY, MANIFEST):
        (folder / name).unlink(missing_ok=True)
    sync_folder(folder)
    shutil.rmtree(folder)
