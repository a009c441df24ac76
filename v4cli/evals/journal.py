"""What has been measured of a model, item by item, on disk: a run that ends early, however it ends, loses the item it
is at, and the next one goes on behind it.

A folder per model, arithmetic and set of items: `items.jsonl` has a line for each item that is done, and `contexts`
what a long prompt has computed so far.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from v4cli import files
from v4cli.errors import UsageError

MAX_BYTES = 1 << 28
ITEMS, CONTEXTS = "items.jsonl", "contexts"


class Journal:
    """The items of a folder that are done: results by (part, name)."""

    def __init__(self, folder: Path):
        """Reads what is there; a line that is not whole, and all behind it, counts for nothing."""
        self.folder, self.path = folder, folder / ITEMS
        self.results: dict[tuple[str, str], dict] = {}
        self._whole = 0  # bytes of lines that are
        data = files.contents(self.path, MAX_BYTES, UsageError) if self.path.exists() else b""
        for line in data.splitlines(keepends=True):
            try:
                record = json.loads(line)
                self.results[record["part"], record["item"]] = record["result"]
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n"):
                break
            self._whole += len(line)

    @property
    def contexts(self) -> Path:
        """Folder of computed prompts; it need not exist."""
        return self.folder / CONTEXTS

    def of(self, part: str) -> dict[str, dict]:
        """Results of a part, by name of the item, in the order they came."""
        return {name: result for (its, name), result in self.results.items() if its == part}

    def add(self, part: str, name: str, result: dict) -> None:
        """An item is done: written through to the disk. OSError."""
        line = json.dumps({"part": part, "item": name, "result": result}) + "\n"
        with open(self.path, "r+b" if self.path.exists() else "w+b") as file:
            file.truncate(self._whole)
            file.seek(self._whole)
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self._whole += len(line.encode())
        self.results[part, name] = result

    def forget_contexts(self) -> None:
        shutil.rmtree(self.contexts, ignore_errors=True)


@contextmanager
def opened(folder: Path, note: Callable[[str], None] = lambda text: None) -> Iterator[Journal]:
    """The journal of a folder, which is made if need be, and ours alone; where it cannot be made, one that is gone
    afterwards, which `note` is told. UsageError if another run is at work there."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as problem:
            note(f"{folder} cannot be made ({problem.strerror}): what is measured is not kept")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="v4-eval-")))
        stack.enter_context(_alone(folder))
        yield Journal(folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        lock = FileLock(folder / ".lock", timeout=0, mode=0o600).acquire()
    except Timeout:
        raise UsageError(f"another v4 eval of this model is at work in {folder}", "wait for it, or stop it") from None
    with lock:
        yield
