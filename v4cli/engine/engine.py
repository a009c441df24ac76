"""The door between token ids and the model: an Engine is a loaded model, a Session (session.py) one timeline of tokens.

Knows nothing of text.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING

from v4kernels import backend as backend_of
from v4kernels import native
from v4kernels.api import Backend, Ops

from v4cli import __version__, hardware
from v4cli.engine import gpu, loading
from v4cli.engine.account import Account
from v4cli.engine.control import Costs
from v4cli.engine.fault import failures_told, fault
from v4cli.engine.gpu import ANYHOW, OnCard
from v4cli.engine.loading import Model, residence_in
from v4cli.engine.scheduler import Scheduler
from v4cli.engine.session import WORTH_S, Session
from v4cli.errors import ModelError, ResourceError, UsageError
from v4cli.experts.slots import Counts, ExpertStream
from v4cli.model.config import V4Config
from v4cli.model.draft import DraftModel
from v4cli.model.state import State
from v4cli.model.v4 import V4
from v4cli.model.weights import NoWeights, build
from v4cli.plan import cost
from v4cli.plan.budget import DRAFTS, SHARE, VRAM_SHARE, Residence
from v4cli.plan.flops import routed_share
from v4cli.plan.ledger import Ledger
from v4cli.plan.memory import FEW
from v4cli.prefixes.prefixes import Prefixes
from v4cli.store.fingerprint import stamps
from v4cli.store.store import Store, open_model

if TYPE_CHECKING:
    from v4cli.engine.on_card import Placed


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
        weights: dict[str, int] | None = None,
        placed: "Placed | None" = None,
    ):
        """`identity`: everything that stored prefixes depend on; None: none can be stored. `place`: the Residence that
        was planned for a memory budget, `stream` what reads experts on demand, `weights` bytes held by component,
        `placed` what backend triton put on a card."""
        self.model = model
        self.config = model.config
        self.path = path
        self.load_s = load_s
        self.identity = identity
        self.place = place
        self.stream = stream
        self.weights = weights
        self.placed = placed
        self.limits: dict[str, float] = {}  # bytes/s that v4 doctor measured of the GPU, by name of gpu.RATES
        self.passed_over = ""  # why what would compute by default, the GPU or the kernels, does not
        drafting = model.head.timeline_bytes if model.head else 0
        self.account = Account(self.config, place, stream, placed.bank if placed else None, drafting)
        self.drafts = "auto"  # what is guessed: by everything there is; ngram, model, or off
        costs = Costs(self.config.n_routed_experts, self.config.num_experts_per_tok, routed_share(self.config))
        self.scheduler = Scheduler(model, stream, self.account.settle, self._fault, self.counts, costs, self._head)

    @property
    def where(self) -> str:
        """What computes, by the name of its module."""
        return f"by {type(self.model.ops).__module__}"

    @classmethod
    def open(
        cls,
        path: Path,
        backend: str | None = None,
        numerics: str | None = None,
        ram: int | None = None,
        learned: Path | None = None,
        on_card: OnCard = ANYHOW,
        drafts: str = "auto",
    ) -> "Engine":
        """Load the store or official checkpoint in folder `path`, by default for the fastest backend.

        `ram`: bytes the process may use, whatever its sessions (plan/ledger.py); by default, what is free less a
        margin. A store that does not fit has its experts read on demand. `learned`: folder of files on their use (see
        `remember`). `on_card`: of backend triton, which is the default where the card has passed its checks and takes
        the model. `drafts`: who guesses tokens: auto (all), ngram, model or off. ModelError, ResourceError, UsageError.
        """
        start, passed_over = time.monotonic(), ""
        if backend == "triton" and numerics is not None:
            raise UsageError("--numerics is not for --backend triton", "drop --numerics or --backend")
        if numerics is None and gpu.chosen(backend, on_card.number) == "triton":
            try:
                engine = cls._open_on_card(Path(path), on_card, ram, learned, start)
                engine.guess_by(drafts)
                return engine
            except (ResourceError, UsageError) as error:
                if backend is not None:
                    raise
                passed_over = str(error)
        try:
            chosen = backend_of(backend, numerics)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if backend is None and numerics is None and not native.available():
            passed_over = native.reason()
        checkpoint = open_model(Path(path))
        identity = identity_of(checkpoint, chosen)
        place, stream, weights = None, None, None
        if chosen.name == "cpu":
            place = residence_in(checkpoint, ram, drafts)
        elif ram is not None:
            raise UsageError("--ram needs the cpu backend or a GPU", "drop --ram or --backend")
        if place:
            loading.give_back_what_is_freed()
        if place and place.ledger.spare and isinstance(checkpoint, Store):
            stream, weights = loading.streamed(checkpoint, place)
            if learned is not None:
                loading.learn(stream, _learned_file(learned, identity))
        with_head = drafts in ("auto", "model") and (place is None or DRAFTS in place.ledger.weights)
        model = loading.model_of(checkpoint, chosen, stream, with_head)
        engine = cls(model, Path(path), time.monotonic() - start, identity, place, stream, weights)
        engine.passed_over = passed_over
        engine.guess_by(drafts)
        return engine

    @classmethod
    def _open_on_card(
        cls, path: Path, on_card: OnCard, ram: int | None, learned: Path | None, start: float
    ) -> "Engine":
        """ModelError, ResourceError, UsageError."""
        from v4cli.engine.on_card import put

        card = hardware.gpus()[on_card.number]
        vram = int(VRAM_SHARE * card.free) if on_card.vram is None else on_card.vram
        checkpoint = open_model(path)
        device = gpu.device(on_card.number)
        allowed = int(SHARE * hardware.usable_ram()) if ram is None else ram
        placed = put(checkpoint, device, gpu.rated(card), vram, allowed, on_card)
        identity = identity_of(checkpoint, placed.model.ops)  # by its numerics: mostly the numbers are the CPU's
        stream, place = placed.stream, placed.place if placed.stream or ram is not None else None
        if place:
            loading.give_back_what_is_freed()
        for holder in (stream, placed.slots):
            if holder and learned is not None:
                loading.learn(holder, _learned_file(learned, identity))
        took = time.monotonic() - start
        engine = cls(placed.model, path, took, identity, place, stream, placed.weights, placed)
        if known := gpu.recall(card):
            engine.limits = known.rates
        return engine

    def warm(self) -> None:
        """Have a GPU's kernels compiled and loaded now, not in the middle of an answer. ResourceError, ModelError."""
        if self.placed is None:
            return
        from v4cli.engine.on_card import warm

        with failures_told(), self.scheduler.between_steps():
            warm(self.model)

    def kv_in_ram(self, state: State) -> int:
        """Of a timeline, bytes in RAM."""
        if self.placed is None:
            return state.nbytes
        from v4cli.engine.on_card import hosted_bytes

        return hosted_bytes(state)

    def vram(self) -> dict[str, tuple[int, int]] | None:
        """Bytes of a GPU planned and held, by item; None without one."""
        if self.placed is None:
            return None
        with self.account.lock:
            return self.placed.vram([session.state for session in self.account.sessions])

    def reached(self, counts: Counts, n_tokens: int, seconds: float, context: int) -> dict[str, float] | None:
        """Of steps that fed so many tokens, at so much context, with a GPU: bytes/s that they read of VRAM (`vram`) and
        of experts in RAM (`ram`), and where v4 doctor has measured it, the share of what can be read of VRAM
        (`of_vram`). None without a GPU or without steps."""
        if self.placed is None or n_tokens < 1 or seconds <= 0:
            return None
        plan, expert = self.placed.plan, self.placed.expert
        always = plan.vram.reads["dense"] + plan.vram.reads["head"] + cost.kv_read_bytes(self.config, context)
        if self.placed.slots is None:
            always += self.config.num_hidden_layers * self.config.num_experts_per_tok * expert
        found = {"vram": (always * n_tokens + counts.on_card * expert) / seconds}
        found["ram"] = (counts.hits + counts.misses - counts.on_card) * expert / seconds
        return found | ({"of_vram": found["vram"] / self.limits["read"]} if "read" in self.limits else {})

    def guess_by(self, which: str) -> None:
        """Whose guesses are verified from the next answer on: auto (all), ngram, model or off. UsageError without
        a draft model."""
        if which == "model" and self.model.head is None:
            raise UsageError("this model has no draft model that runs here", "drafts: ngram, or auto")
        self.drafts = which

    @property
    def most_drafts(self) -> int:
        """Guessed tokens that a session may have verified in a step."""
        return 0 if self.drafts == "off" else min(self.model.ops.most_drafts, FEW - 1)

    @property
    def held(self) -> Ledger | None:
        """What the process holds of its budget; None without one."""
        return self.account.held(self)

    def counts(self) -> Counts | None:
        """What the experts of all steps cost so far; None where they are all in one place."""
        if self.placed and self.placed.bank:
            by = self.placed.bank.counts  # whose misses are hits in RAM, unless there is a stream
            if self.stream:
                of_ram = self.stream.counts
                return replace(of_ram, hits=by.hits + of_ram.hits, on_card=by.hits, wait_s=by.wait_s)
            return Counts(hits=by.hits + by.misses, on_card=by.hits, wait_s=by.wait_s)
        return self.stream.counts if self.stream else None

    def memory(self) -> dict[str, tuple[int, int]] | None:
        """Bytes planned and held, by item of the ledger; None where `held` is."""
        held = self.held
        if held is None or self.place is None:
            return None
        planned = self.place.ledger.items
        return {name: (planned.get(name, 0), n_bytes) for name, n_bytes in held.items.items()}

    def _head(self) -> DraftModel | None:
        """The draft model, while it is asked."""
        return self.model.head if self.drafts in ("auto", "model") else None

    def _fault(self, tokens: Sequence[int], state: State) -> ModelError:
        return fault(self, tokens, state)

    def remember(self, folder: Path) -> None:
        """Write what was learned about the use of experts, for `open(learned=folder)`. OSError."""
        holder = self.stream or (self.placed and self.placed.slots)
        if holder and self.identity:
            with self.scheduler.between_steps():
                self.scheduler.settle()
            loading.remember(holder, _learned_file(folder, self.identity))

    def unchanged(self) -> bool:
        """Whether the model's files are still those that were opened, as far as size and times tell."""
        assert self.identity is not None, "only what has files is stored"
        before = self.identity["weights"]["files"]
        try:
            return stamps([self.path / name for name in before]) == before
        except ModelError:
            return False

    def session(
        self, kv_dir: Path | None = None, prefixes: Prefixes | None = None, worth_s: float = WORTH_S
    ) -> Session:
        """A new, empty timeline; session.py says what the options are. UsageError, ResourceError."""
        session = Session(self, kv_dir, prefixes, worth_s)
        self.account.open(session)
        return session

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
    checkpoint, backend = open_model(folder), backend_of()
    config = checkpoint.config
    attentions = [layer.attn for layer in build(config, NoWeights(), experts=False).layers]
    state = State(lambda: backend.new_state(attentions, config.max_position_embeddings))
    return identity_of(checkpoint, backend), config, state


def identity_of(checkpoint: Model, backend: Backend | Ops) -> dict:
    """What stored prefixes depend on: the model, and the numerics, whoever computes in them."""
    config = hashlib.sha256(json.dumps(checkpoint.config.to_dict(), sort_keys=True).encode()).hexdigest()
    kind = {"numerics": backend.numerics, "config": config, "version": __version__}
    kind |= {"kernels": str(native.ABI_VERSION), "arithmetic": _arithmetic(backend)}
    return {"model": str(checkpoint.path)} | kind | {"weights": checkpoint.fingerprint}


def _arithmetic(backend: Backend | Ops) -> str:
    """Digest of all that computes: where a line of it changes, numbers computed before may be others."""
    digest = hashlib.sha256()
    if backend.numerics != "int8":
        import torch

        digest.update(torch.__version__.encode())
    if backend.numerics == "nf4":
        digest.update(metadata.version("bitsandbytes").encode())
    folders = [resources.files(package) for package in ("v4kernels", "v4cli.model")]
    while folders:
        for entry in sorted(folders.pop().iterdir(), key=lambda entry: entry.name):
            if entry.is_file():
                digest.update(entry.name.encode() + entry.read_bytes())
            elif entry.name != "__pycache__":
                folders.append(entry)
    return digest.hexdigest()
