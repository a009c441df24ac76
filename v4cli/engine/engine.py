"""The door between token ids and the model: an Engine is a loaded model, a Session (session.py) one timeline of tokens.

Knows nothing of text.
"""

import hashlib
import json
import time
from pathlib import Path
from weakref import WeakSet

from v4kernels import backend as backend_of
from v4kernels.api import Backend

from v4cli.cache.prefixes import Prefixes
from v4cli.engine import loading
from v4cli.engine.budget import Residence
from v4cli.engine.loading import Model, residence_in
from v4cli.engine.scheduler import Scheduler
from v4cli.engine.session import WORTH_S, Session
from v4cli.errors import UsageError
from v4cli.experts.slots import ExpertStream
from v4cli.model.v4 import V4
from v4cli.weights.store import Store, open_model


class Engine:
    """A loaded model. Sessions share it, and may be in different threads: they compute in turns."""

    def __init__(
        self,
        model: V4,
        path: Path,
        load_s: float,
        identity: dict | None = None,
        place: Residence | None = None,
        stream: ExpertStream | None = None,
    ):
        """`identity`: everything that stored prefixes depend on; None: none can be stored. `place`: the Residence that
        was planned, and `stream` what reads them, of a model whose experts are read on demand."""
        self.model = model
        self.config = model.config
        self.path = path
        self.load_s = load_s
        self.identity = identity
        self.place = place
        self.stream = stream
        self.sessions: WeakSet[Session] = WeakSet()
        self.scheduler = Scheduler(model, stream, self._make_room)

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
            chosen = backend_of(backend, numerics)
        except ValueError as error:
            raise UsageError(str(error)) from None
        checkpoint = open_model(Path(path))
        identity = _identity(checkpoint, chosen)
        place, stream = None, None
        if chosen.name == "cpu":
            place = residence_in(checkpoint, ram)
        elif ram is not None:
            raise UsageError("--ram needs the cpu backend", "drop --ram or --backend")
        if place and isinstance(checkpoint, Store):
            stream = loading.streamed(checkpoint, place, _learned_file(learned, identity) if learned else None)
        model = loading.model_of(checkpoint, chosen, stream)
        return cls(model, Path(path), time.monotonic() - start, identity, place, stream)

    def _make_room(self) -> None:
        """Keep within the budget when what all sessions remember outgrows what was planned: experts give way."""
        if self.place is None or self.stream is None:
            return
        held = sum(session.nbytes for session in self.sessions)
        excess = held - sum(tier.holds.get("KV", 0) for tier in self.place.plan.tiers)
        if excess > 0:
            self.stream.shrink(self.place.slots - -(-excess // self.stream.reader.files.room))

    def remember(self, folder: Path) -> None:
        """Write what was learned about the use of experts, for `open(learned=folder)`. OSError."""
        if self.stream and self.identity:
            loading.remember(self.stream, _learned_file(folder, self.identity))

    def session(
        self, kv_dir: Path | None = None, prefixes: Prefixes | None = None, worth_s: float = WORTH_S
    ) -> Session:
        """A new, empty timeline; session.py says what the options are. UsageError, ResourceError."""
        session = Session(self, kv_dir, prefixes, worth_s)
        self.sessions.add(session)
        return session

    def prefixes(self, root: Path, disk_budget: int, write_budget: int) -> Prefixes | None:
        """The stored prefixes of this model under `root`, budgets in bytes; None for weights that have no files."""
        return Prefixes(root, self.identity, disk_budget, write_budget) if self.identity else None


def _learned_file(folder: Path, identity: dict) -> Path:
    return folder / f"{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]}.npz"


def identity_of(folder: Path) -> dict:
    """The identity an engine over this model has by default. ModelError, UsageError."""
    return _identity(open_model(folder), backend_of())


def _identity(checkpoint: Model, backend: Backend) -> dict:
    config = hashlib.sha256(json.dumps(checkpoint.config.to_dict(), sort_keys=True).encode()).hexdigest()
    kind = {"backend": backend.name, "numerics": backend.numerics, "config": config}
    return {"model": str(checkpoint.path)} | kind | {"weights": checkpoint.fingerprint}
