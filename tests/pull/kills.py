"""A process that is killed: `python kills.py ORDERS`, where orders are lines of JSON on stdin, answers lines on stdout.

Every order is carried out in a fork of this process, which has everything imported. Its file operations (opening for
writing, renaming, removing, truncating, making folders, each piece written) are counted once a part is recorded;
before number `at` the process kills itself.
"""

import json
import os
import signal
import sys
from pathlib import Path

from pulling import Listener

from v4cli.chat.turn import READERS
from v4cli.pull import convert, transfer
from v4cli.pull.hub import FolderSource, HubSource
from v4cli.pull.pull import pull
from v4cli.store import formats, store  # noqa: F401
from v4cli.store.recipe import named
from v4cli.store.verify import verify_store

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
COUNTED = ("os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir", "shutil.rmtree")


class Counter:
    """Counts what happens to files, and ends the process in time."""

    def __init__(self, at: int):
        self.at, self.n, self.on = at, 0, False

    def count(self) -> None:
        if self.on:
            self.n += 1
            if self.n == self.at:
                os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, args: tuple) -> None:
        if event in COUNTED or (event == "open" and isinstance(args[2], int) and args[2] & WRITING):
            self.count()

    def before(self, kind: type, name: str) -> None:
        """Count every call of a method."""
        method = getattr(kind, name)

        def counted(*args, **options):
            self.count()
            return method(*args, **options)

        setattr(kind, name, counted)


def carry_out(order: dict) -> None:
    """One order: make (or go on making) a store, repair a part of it, or verify it."""
    counter = Counter(order["at"])
    counter.on = not order.get("after_first_part", False)
    counter.before(convert._Writer, "write")
    counter.before(transfer.Partial, "append")
    sys.addaudithook(counter.audit)
    folder, save = Path(order["dest"]), store.Manifest.save

    def saved(manifest, where):
        save(manifest, where)
        counter.on = counter.on or any(name.endswith(".safetensors") for name in manifest.files)

    store.Manifest.save = saved
    source = order["source"]
    source = HubSource(order["repo"], endpoint=source) if source.startswith("http") else FolderSource(Path(source))
    if order.get("verify"):
        assert not verify_store(folder, lambda n: counter.count(), READERS).damage
    else:
        recipe = named(order["recipe"]) if "recipe" in order else None
        pull(source, folder, recipe, reporter=Listener(), jobs=2, only=order.get("only"), readers=READERS)
    print(json.dumps({"operations": counter.n}), flush=True)


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if not child:
            try:
                carry_out(json.loads(line))
                os._exit(0)
            except BaseException as problem:
                print(json.dumps({"problem": f"{type(problem).__name__}: {problem}"}), flush=True)
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            print(json.dumps({"killed": os.WTERMSIG(status)}), flush=True)


if __name__ == "__main__":
    main()
