"""Mutants one by one in child processes, bounded in time and memory; what became of each as one word.

A child is forked from a process that has imported everything, so that it starts in milliseconds.
"""

import contextlib
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from v4cli.errors import Exit, V4Error

SECONDS = 10
ROOM = 1 << 30  # bytes of address space above what the parent has
REFUSED = {Exit.MODEL, Exit.RESOURCES}


@dataclass(frozen=True)
class Outcome:
    """`word`: right, named (wrong, but the check of the store says so), other (a whole model of its own), refused; of
    these no complaint. Else wrong, code, error, hang, died."""

    word: str
    details: str

    @property
    def fine(self) -> bool:
        return self.word in ("right", "named", "other", "refused")


def run(use: Callable[[], str], seconds: float = SECONDS) -> Outcome:
    """`use` in a child: it returns one of the words, or raises."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.close(reader)
        _in_child(use, writer)
    os.close(writer)
    said, ends, done = b"", time.monotonic() + seconds, False
    while not done and select.select([reader], [], [], max(0.0, ends - time.monotonic()))[0]:
        piece = os.read(reader, 1 << 16)
        said, done = said + piece, not piece
    os.close(reader)
    if not done:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if not done:
        return Outcome("hang", f"{seconds} s")
    return Outcome(*json.loads(said)) if said else Outcome("died", f"status {status}")


def _in_child(use: Callable[[], str], writer: int) -> None:
    """Ends the process."""
    try:
        with contextlib.suppress(OSError, ValueError):
            in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (in_use + ROOM, in_use + ROOM))
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        torch.set_num_threads(1)  # its pool of threads does not survive the fork, if the parent has computed
        try:
            outcome = use(), ""
        except V4Error as error:
            one_line = "\n" not in str(error) and len(str(error)) < 2000
            ok = error.exit_code in REFUSED and one_line
            outcome = "refused" if ok else "code", f"{int(error.exit_code)}: {error}"
        except MemoryError:
            outcome = "refused", "4: out of memory"
        except BaseException:
            outcome = "error", traceback.format_exc()
        os.write(writer, json.dumps(outcome).encode()[: 1 << 15])
    finally:
        os._exit(0)


def mutants(base: Path, table, seeds: range, scratch: Path):
    """Copies of `base`, each changed by a mutator of the table: seed, what was done, folder."""
    for seed in seeds:
        rng, folder = random.Random(seed), scratch / "mutant"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder, symlinks=True)
        said = rng.choice(table)(folder, rng)
        yield seed, said, folder
