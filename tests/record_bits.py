"""Digests of what the engine computes, to compare before and after a change: `python tests/record_bits.py [FILE]`.

With FILE (of an earlier run on this machine): names what differs and exits 1. `cpu` is the same on every machine.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tiny

from v4cli import paths
from v4cli.bench.speed import random_engine
from v4cli.bench.synthetic import shape
from v4cli.engine.engine import Engine
from v4cli.engine.sampler import Sampling

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"


def outputs() -> Iterator[tuple[str, np.ndarray]]:
    """Name and values of every recorded output."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for backend, numerics in (("cpu", None), ("reference", "exact"), ("reference", "official")):
            engine = Engine.open(paths.NANO, backend, numerics)
            name = f"{backend} {engine.model.ops.numerics}"
            yield from named(f"nano {name}", timeline(engine, 700 if backend == "cpu" else 200, folder))
            if GOLDEN.is_dir():
                golden = tiny.golden_tiny(GOLDEN, folder / name.replace(" ", "-"))
                yield from named(f"golden tiny {name}", timeline(Engine.open(golden, backend, numerics), 150, folder))
        source = tiny.random_checkpoint(folder / "source", tiny.STORE_LIKE)
        for quant in ("native", "q4"):
            store = tiny.make_store(source, folder / quant, quant)
            yield from named(f"store {quant}", timeline(Engine.open(store, "cpu"), 400, folder))
        needs = budget(folder / "native")
        for n_experts in (0, 7):
            engine = Engine.open(folder / "native", "cpu", ram=needs(n_experts))
            yield from named(f"store native, {n_experts} experts in memory", timeline(engine, 400, folder))
        config = shape("flash", 3, n_experts=8)
        yield from named("flash, 3 layers", timeline(random_engine(config, "native", "flash"), 300, folder))


def budget(folder: Path):
    """RAM that holds the least and so many experts, as a function of their number."""
    from engine.test_ram import budget

    return lambda n_experts: budget(folder, n_experts)


def named(name: str, values: Iterator[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    return ((f"{name}: {what}", array) for what, array in values)


def timeline(engine: Engine, n: int, folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Prefill, decode, rewind, fork, stored prefix: logits after each."""
    ids = np.random.default_rng(7).integers(0, engine.config.vocab_size, n).tolist()
    prefixes = engine.prefixes(folder / "prefixes", 1 << 30, 1 << 30)
    session = engine.session(prefixes=prefixes, worth_s=0.0)
    session.sync(ids)
    yield "prefill", session.logits
    steps = list(session.generate(Sampling(temperature=0.8, top_p=0.9, seed=3), 12))
    yield "decode", np.array([[step.token, step.logprob] for step in steps])
    twin = session.fork()
    yield "fork", twin.feed(ids[:9], all_logits=True)
    session.sync(session.tokens[: n - 5])
    yield "rewind", session.feed(ids[-5:], all_logits=True)
    for token in ids[:3]:
        yield f"one token, {token}", session.feed([token])
    if prefixes is not None:
        other = engine.session(prefixes=prefixes)
        other.sync([*ids, 5, 6, 7])
        assert other.stats.restored_tokens == n, "the prefix was not found"
        yield "stored prefix", other.logits


def main() -> int:
    found = {name: hashlib.sha256(array.tobytes()).hexdigest()[:16] for name, array in outputs()}
    if len(sys.argv) < 2:
        print(json.dumps(found, indent=1))
        return 0
    before = json.loads(Path(sys.argv[1]).read_text())
    other = [name for name in before | found if before.get(name) != found.get(name)]
    print("\n".join(other) or f"{len(found)} outputs, all equal")
    return bool(other)


if __name__ == "__main__":
    sys.exit(main())
