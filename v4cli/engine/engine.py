"""The door between token ids and the model: an Engine is a loaded model, a Session (session.py) one timeline of tokens.

Knows nothing of text.
"""

import hashlib
import json
import threading
import time
from importlib import resources
from pathlib import Path

from v4kernels import ops as op_table

from v4cli import __version__
from v4cli.cache.prefixes import Prefixes
from v4cli.cache.state import State
from v4cli.config import V4Config
from v4cli.engine import loading
from v4cli.engine.loading import residence_in
from v4cli.engine.session import WORTH_S, Session
from v4cli.errors import ModelError, UsageError
from v4cli.model.v4 import V4
from v4cli.model.weights import NoWeights, build
from v4cli.weights.fingerprint import stamps
from v4cli.weights.store import open_model


class Engine:
    """A loaded model. Sessions share it, and may be in different threads: they compute in turns."""

    def __init__(self, model: V4, path: Path, load_s: float, identity: dict | None = None, place=None):
        """`identity`: everything that stored prefixes depend on; None: none can be stored. `place`: the Residence that
        was planned, of a model whose experts are read on demand."""
        self.model = model
        self.config = model.config
        self.path = path
        self.load_s = load_s
        self.identity = identity
        self.place = place
        self.stream = model.ops.stream if place else None
        self.turns = threading.Lock()  # buffers of the op table are everyone's

    @classmethod
    def open(
        cls,
        path: Path,
        backend: str | None = None,
        numerics: str | None = None,
        ram: int | None = None,
        learned: Path | None = None,
    ) -> "Engine":
        """Load the store or official checkpoint in folder `path`, by default for the fastest backend.

        `ram`: bytes the process may use; by default, what is free less a margin. A store that does not fit has its
        experts read on demand. `learned`: folder of files on their use (see `remember`). ModelError, ResourceError,
        UsageError.
        """
        start = time.monotonic()
        try:
            ops = op_table(backend, numerics)
        except ValueError as error:
            raise UsageError(str(error)) from None
        checkpoint = open_model(Path(path))
        identity = _identity(checkpoint, ops)
        place = residence_in(checkpoint, ram) if ops.packed else None
        if place:
            ops, source = loading.streamed(checkpoint, place, learned and _learned_file(learned, identity))
        elif ram is not None and not ops.packed:
            raise UsageError("--ram needs the cpu backend", "drop --ram or --backend")
        else:
            source = loading.source_of(checkpoint, ops)
        with ops.inference():
            weights = build(checkpoint.config, source)
            try:
                model = V4(checkpoint.config, weights, ops)
            except ValueError as error:
                raise UsageError(str(error), "--backend reference takes any size") from None
        return cls(model, Path(path), time.monotonic() - start, identity, place)

    def make_room(self, kv_bytes: int) -> None:
        """Keep within the budget when a session's KV state outgrows what was planned: experts give way."""
        excess = kv_bytes - sum(tier.holds.get("KV", 0) for tier in self.place.plan.tiers)
        if excess > 0:
            self.stream.shrink(self.place.slots - -(-excess // self.stream.reader.files.room))

    def remember(self, folder: Path) -> None:
        """Write what was learned about the use of experts, for `open(learned=folder)`. OSError."""
        if self.stream:
            loading.remember(self.stream, _learned_file(folder, self.identity))

    def unchanged(self) -> bool:
        """Whether the model's files are still those that were opened, as far as size and times tell."""
        before = self.identity["weights"]["files"]
        try:
            return stamps([self.path / name for name in before]) == before
        except ModelError:
            return False

    def session(
        self, kv_dir: Path | None = None, prefixes: Prefixes | None = None, worth_s: float = WORTH_S
    ) -> Session:
        """A new, empty timeline; session.py says what the options are. UsageError, ResourceError."""
        if kv_dir is not None and not self.model.ops.packed:
            raise UsageError("a KV cache in a folder needs the cpu backend", "drop --kv-dir or --backend")
        return Session(self, kv_dir, prefixes, worth_s)

    def prefixes(self, root: Path, disk_budget: int, write_budget: int) -> Prefixes | None:
        """The stored prefixes of this model under `root`, budgets in bytes; None for weights that have no files."""
        return Prefixes(root, self.identity, disk_budget, write_budget) if self.identity else None


def _learned_file(folder: Path, identity: dict) -> Path:
    """By the weights: where they lie and what computes is no matter for which experts are used."""
    weights = f"{identity['config']} {identity['weights']['content']}"
    return folder / f"{hashlib.sha256(weights.encode()).hexdigest()[:16]}.use"


def unloaded(folder: Path) -> tuple[dict, V4Config, State]:
    """What stored contexts of this model have to do with, without its weights: the identity an engine over it has by
    default, its config, and an empty state. ModelError, UsageError."""
    checkpoint, ops = open_model(folder), op_table()
    config = checkpoint.config
    attentions = [layer.attn for layer in build(config, NoWeights()).layers]
    return _identity(checkpoint, ops), config, State(attentions, ops.packed, config.max_position_embeddings)


def _identity(checkpoint, ops) -> dict:
    config = hashlib.sha256(json.dumps(checkpoint.config.to_dict(), sort_keys=True).encode()).hexdigest()
    kind = {"backend": ops.name, "numerics": ops.numerics, "config": config, "version": __version__}
    kind["arithmetic"] = _arithmetic(ops)
    return {"model": str(checkpoint.path)} | kind | {"weights": checkpoint.fingerprint}


def _arithmetic(ops) -> str:
    """Digest of all that computes: where a line of it changes, numbers computed before may be others."""
    digest = hashlib.sha256()
    if not ops.packed:
        import torch

        digest.update(torch.__version__.encode())
    for package in ("v4kernels", "v4cli.model"):
        for file in sorted(resources.files(package).iterdir(), key=lambda file: file.name):
            if file.is_file():
                digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
