"""Stored contexts, as CSV: `python tests/bench/contexts.py [FOLDER]`.

`save` and `load`: a context of Flash-shaped layers, its entries synthetic, against what the disk of FOLDER does with
the same bytes in one file in the same run. `shared`: ten conversations of nano, interleaved, that begin with one long
system prompt; tokens computed and bytes written against the least possible.
"""

import argparse
import csv
import os
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from v4cli import paths
from v4cli.bench.fill import fill
from v4cli.bench.speed import random_engine, seconds
from v4cli.bench.synthetic import shape
from v4cli.engine.engine import Engine
from v4cli.engine.sampler import Sampling
from v4cli.prefixes.prefixes import Prefixes

CONTEXT = 1 << 18
LAYERS = 12  # of Flash: all that fits beside a small machine's other work; few experts, they are not stored
NEXT = 100
SYSTEM, TURN, TURNS, CONVERSATIONS = 20_000, 60, 3, 10
PLENTY = 1 << 50
FIELDS = ("what", "tokens", "bytes", "seconds", "disk_seconds", "fraction", "least", "detail")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/bench"))
    parser.add_argument("--tokens", type=int, default=CONTEXT)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    out = csv.DictWriter(sys.stdout, FIELDS, restval="")
    out.writeheader()
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        for row in (*save_and_load(Path(scratch), args.tokens), shared(Path(scratch))):
            out.writerow(row)
            sys.stdout.flush()


def save_and_load(scratch: Path, n_tokens: int):
    """One context to disk and back."""
    engine = _flash()
    prefixes = Prefixes(scratch / "prefixes", {"model": "synthetic flash"}, PLENTY, PLENTY)
    session = engine.session(prefixes=prefixes, worth_s=0.0)
    fill(session, n_tokens - 1)
    session.tokens[:] = np.random.default_rng(0).integers(0, engine.config.vocab_size, n_tokens - 1).tolist()
    session.feed([1])
    saved = seconds(lambda: session.keep(0.0))
    files = [path for path in prefixes.folder.iterdir() if path.suffix in (".chunk", ".snapshot")]
    n_bytes = sum(path.stat().st_size for path in files)
    one = scratch / "one file"
    written = seconds(lambda: _write(one, n_bytes))
    yield _row("save", n_tokens, n_bytes, saved, written, f"{LAYERS} of 43 Flash layers, synthetic entries")
    _forget(*files)
    back = engine.session(prefixes=prefixes)
    loaded = seconds(lambda: back.sync(session.tokens))
    _forget(one)
    read = seconds(lambda: _read(one))
    one.unlink()
    assert back.stats.restored_tokens == n_tokens
    same = _greedy(session) == _greedy(back)
    yield _row("load", n_tokens, n_bytes, loaded, read, f"next {NEXT} greedy tokens the same: {same}")


def shared(scratch: Path) -> dict:
    """Conversations that share their beginning."""
    engine, rng, start = Engine.open(paths.NANO, "cpu"), random.Random(0), time.monotonic()
    prefixes = engine.prefixes(scratch / "shared", PLENTY, PLENTY)
    system = [rng.randrange(5, 1000) for _ in range(SYSTEM)]
    conversations = [list(system) for _ in range(CONVERSATIONS)]
    computed = 0
    for _ in range(TURNS):
        for conversation in conversations:
            conversation += [rng.randrange(5, 1000) for _ in range(TURN)]
            session = engine.session(prefixes=prefixes, worth_s=0.0)  # as a new process would
            session.sync(conversation, anchors=[SYSTEM])
            computed += session.stats.prefill_tokens
    least = SYSTEM + CONVERSATIONS * TURNS * TURN
    detail = f"{CONVERSATIONS} conversations, {TURNS} turns of {TURN} tokens after {SYSTEM}; without sharing "
    detail += str(sum(SYSTEM + TURN * (turn + 1) for turn in range(TURNS)) * CONVERSATIONS)
    took = time.monotonic() - start
    return {
        "what": "shared", "tokens": computed, "bytes": prefixes.written_today(), "seconds": f"{took:.2f}",
        "fraction": f"{computed / least:.3f}", "least": least, "detail": detail,
    }  # fmt: skip


def _flash() -> Engine:
    config = replace(shape("flash", LAYERS), n_routed_experts=8, vocab_size=1024, num_hash_layers=0)
    return random_engine(config, "native", "synthetic flash")


def _row(what: str, tokens: int, n_bytes: int, took: float, disk: float, detail: str) -> dict:
    figures = {"seconds": f"{took:.2f}", "disk_seconds": f"{disk:.2f}", "fraction": f"{disk / took:.3f}"}
    return {"what": what, "tokens": tokens, "bytes": n_bytes, "detail": detail} | figures


def _greedy(session) -> list[int]:
    return [step.token for step in session.generate(Sampling(temperature=0.0), NEXT)]


def _write(path: Path, n_bytes: int) -> None:
    block = np.random.default_rng(0).bytes(1 << 24)
    with path.open("wb", buffering=0) as file:
        for at in range(0, n_bytes, len(block)):
            file.write(block[: n_bytes - at])
        os.fsync(file.fileno())


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def _forget(*files: Path) -> None:
    """Out of the page cache: the next read comes from the disk."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
