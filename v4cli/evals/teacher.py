"""A reference model's logits in a file: of every scored position the 64 likeliest tokens and what is left for others.

For each window (a text, and how many of its tokens come before the last scored one), arrays of n positions:

    ids      (n, 64) int32   the likeliest tokens, the likeliest first; all, of a smaller vocabulary
    logp     (n, 64) fp32    their log-probabilities
    rest     (n,) fp32       the probability of all others together
    nll      (n,) fp32       of the token that does come next
    floor    (n,) fp32       divergence of the same weights after a nudge (floor.py); where it could be measured
    same     (n,) uint8      whether the likeliest token was the same then

Divergence is over these 64 tokens and the rest as one: a little less than that over all, and 0 only if both are.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from v4cli.errors import ModelError, SnapshotError
from v4cli.files import write_atomically
from v4cli.prefixes import kvfile

KEPT = 64  # tokens of a position
LEAST = 1e-30  # a probability of nothing, for logarithms
ABOUT = ("kind", "model", "weights", "numerics", "texts", "tokenizer", "vocab_size", "seed")
KIND = "v4 eval teacher 1"
PARTS = {"ids": np.int32, "logp": np.float32, "rest": np.float32, "nll": np.float32}
FLOOR = {"floor": np.float32, "same": np.uint8}


@dataclass(frozen=True)
class Rows:
    """What is kept of n positions' logits: see above."""

    ids: np.ndarray
    logp: np.ndarray
    rest: np.ndarray
    nll: np.ndarray
    best: np.ndarray  # (n,) the likeliest token, whichever `ids` are

    @classmethod
    def of(cls, logits: np.ndarray, targets: Sequence[int], ids: np.ndarray | None = None) -> "Rows":
        """Of logits (n, vocab) before `targets`; about the tokens `ids` (n, k), or the likeliest."""
        logp = logits.astype(np.float64) - logits.max(-1, keepdims=True)
        logp -= np.log(np.exp(logp).sum(-1, keepdims=True))
        if ids is None:
            ids = _likeliest(logp, min(KEPT, logp.shape[1]))
        others = np.exp(logp)
        np.put_along_axis(others, ids, 0.0, axis=1)
        kept = np.take_along_axis(logp, ids, axis=1)
        nll = -logp[np.arange(len(targets)), list(targets)]
        fp32 = (array.astype(np.float32) for array in (kept, others.sum(-1), nll))
        return cls(ids.astype(np.int32), *fp32, logp.argmax(-1))

    @classmethod
    def joined(cls, pieces: Sequence["Rows"]) -> "Rows":
        return cls(*(np.concatenate([getattr(piece, name) for piece in pieces]) for name in (*PARTS, "best")))


def divergence(teacher: Rows, student: Rows) -> np.ndarray:
    """(n,) KL(teacher || student) in nats, of rows about the same tokens."""
    p, q = teacher.rest.astype(np.float64), student.rest.astype(np.float64)
    kept = teacher.logp.astype(np.float64)
    over = (np.exp(kept) * (kept - student.logp)).sum(-1)
    return over + p * (np.log(np.maximum(p, LEAST)) - np.log(np.maximum(q, LEAST)))


def _likeliest(logp: np.ndarray, k: int) -> np.ndarray:
    """(n, k) ids, the likeliest first; of equals the smaller id."""
    ids = np.sort(np.argpartition(-logp, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(logp, ids, axis=1), axis=1, kind="stable")
    return np.take_along_axis(ids, order, axis=1)


class Teacher:
    """The file: written anew, whole, with every window that comes."""

    def __init__(self, path: Path, about: dict, arrays: dict[str, np.ndarray] | None = None):
        self.path, self.about, self.arrays = path, about, arrays or {}

    @classmethod
    def load(cls, path: Path) -> "Teacher":
        """ModelError for what is no such file, or damaged."""
        try:
            about, arrays = kvfile.read(path)
        except SnapshotError as error:
            raise ModelError(str(error), "v4 eval MODEL --against REFERENCE makes one") from None
        if about.get("kind") != KIND or any(name not in about for name in ABOUT):
            raise ModelError(f"{path}: not a teacher of v4 eval", "v4 eval MODEL --against REFERENCE makes one")
        return cls(path, about, arrays)

    @property
    def id(self) -> str:
        """Tells it from those of other weights, arithmetic and texts."""
        about = {name: self.about[name] for name in ABOUT if name != "model"}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]

    def has(self, window: str, floor: bool = False) -> bool:
        """Whether a window is there, or its floor."""
        return all(f"{window}.{name}" in self.arrays for name in (FLOOR if floor else PARTS))

    def put(self, window: str, rows: Rows) -> None:
        """OSError."""
        self._add({f"{window}.{name}": getattr(rows, name) for name in PARTS})

    def put_floor(self, window: str, floor: np.ndarray, same: np.ndarray) -> None:
        """OSError."""
        self._add({f"{window}.floor": floor.astype(np.float32), f"{window}.same": same.astype(np.uint8)})

    def rows(self, window: str) -> Rows:
        """Of a window that is there. ModelError if its arrays do not fit each other."""
        parts = {name: self.arrays[f"{window}.{name}"] for name in PARTS}
        n, vocab = len(parts["nll"]), self.about["vocab_size"]
        fits = all(parts[name].dtype == dtype and len(parts[name]) == n for name, dtype in PARTS.items())
        if not fits or parts["ids"].shape != parts["logp"].shape or parts["ids"].ndim != 2:
            raise ModelError(f"{self.path}: window {window} is not as it should be")
        if n and not 0 <= parts["ids"].min() <= parts["ids"].max() < vocab:
            raise ModelError(f"{self.path}: window {window} names tokens that are not there")
        return Rows(**parts, best=parts["ids"][:, 0])

    def floor(self, window: str) -> dict[str, np.ndarray]:
        """Divergence and agreement by position; nothing if that was not measured."""
        if not self.has(window, floor=True):
            return {}
        return {"floor": self.arrays[f"{window}.floor"], "floor_same": self.arrays[f"{window}.same"].astype(bool)}

    def _add(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays |= arrays
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self.path, kvfile.encoded(self.arrays, self.about), 0o600)
