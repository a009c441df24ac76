"""Part `state`: a model's logits are the same, to the bit, however it came to be where it is."""

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from threading import Barrier

import numpy as np

from v4cli.engine.engine import Engine
from v4cli.engine.sampler import Sampling
from v4cli.engine.session import Session
from v4cli.errors import ModelError
from v4cli.evals.items import Item, Subject
from v4cli.evals.teacher import Rows, divergence

TEXT = 10_000  # number of the text that is read here
LAST = 32  # positions that are compared
ROOM = 1 << 32  # bytes of disk for a stored prefix
DRAFTS = "drafts"  # the way that is held against what it generated itself


class States:
    """Ways to the last positions of a text; each gives their logits (LAST, vocab)."""

    def __init__(self, subject: Subject, n_tokens: int):
        self.subject, self.at = subject, n_tokens - LAST
        self._text = partial(subject.material.text, subject.seed, TEXT, n_tokens)
        self.ways: dict[str, Callable[[], np.ndarray]] = {
            "one prefill": lambda: self.engine.session().feed(self.ids, all_logits=True)[self.at :],
            "decode": lambda: self._fed(self._begun(), 1),
            "chunks of 7": lambda: self._fed(self.engine.session(), 7),
            "chunks of 64": lambda: self._fed(self.engine.session(), 64),
            "stored prefix": self._stored,
            "rewind": self._rewound,
            "fork": lambda: self._fed(self._begun().fork(), LAST),
            "batch": self._batched,
        }

    @property
    def engine(self) -> Engine:
        return self.subject.chat.engine

    @cached_property
    def ids(self) -> list[int]:
        return self._text().ids

    @cached_property
    def wanted(self) -> np.ndarray:
        """What all ways are held against: a prefill, and its end in one piece."""
        return self._begun().feed(self.ids[self.at :], all_logits=True)

    def measure(self, way: str) -> dict[str, dict]:
        """How far its logits are from the ones they should be."""
        logits, rows = self._drafted() if way == DRAFTS else (self.ways[way](), self.wanted)
        rows = rows[-len(logits) :]  # the first of them came with the prefix
        wanted = Rows.of(rows, [0] * len(rows))
        kl = divergence(wanted, Rows.of(logits, [0] * len(rows), wanted.ids))
        largest = float(np.abs(logits - rows).max())
        return {"state": {"largest": largest, "kl": float(kl.mean()), "equal": bool(np.array_equal(logits, rows))}}

    def _begun(self) -> Session:
        session = self.engine.session()
        session.feed(self.ids[: self.at])
        return session

    def _fed(self, session: Session, size: int) -> np.ndarray:
        """The rest of the ids in pieces of `size`."""
        ids = self.ids[len(session.tokens) :]
        return np.concatenate([session.feed(ids[i : i + size], True) for i in range(0, len(ids), size)])[-LAST:]

    def _stored(self) -> np.ndarray:
        with tempfile.TemporaryDirectory(prefix="v4-eval-") as folder:
            prefixes = self.engine.prefixes(Path(folder), ROOM, ROOM)
            if prefixes is None:
                raise ModelError("contexts of this model cannot be stored, so it has no file")
            first = self.engine.session(prefixes=prefixes, worth_s=0.0)
            first.sync(self.ids[: self.at])
            second = self.engine.session(prefixes=prefixes)
            second.sync(self.ids[: self.at + 1])
            if second.stats.restored_tokens != self.at:
                raise ModelError(f"a stored prefix was not found again: {' '.join(first.notes + second.notes)}")
            return self._fed(second, LAST)

    def _rewound(self) -> np.ndarray:
        session = self._begun()
        session.feed(self.ids[self.at :])
        session.sync(self.ids[: self.at])
        return self._fed(session, LAST)

    def _batched(self) -> np.ndarray:
        """Decoded while another timeline decodes."""
        others, both = self.engine.session(), Barrier(2)
        others.feed(self.ids[: self.at : 2])

        def decode(session: Session, ids: list[int]) -> np.ndarray:
            both.wait()
            return np.stack([session.feed([token]) for token in ids])

        with ThreadPoolExecutor(2) as pool:
            other = pool.submit(decode, others, self.ids[self.at : 0 : -1][:LAST])
            mine = pool.submit(decode, self._begun(), self.ids[self.at :])
            other.result()
            return mine.result()

    def _drafted(self) -> tuple[np.ndarray, np.ndarray]:
        """Generated with guesses that are verified, of which many are wrong; and a prefill of what was generated."""
        session, before = self._begun(), self.engine.drafts
        tokens, logits = [], []
        self.engine.guess_by("auto")
        try:
            for step in session.generate(Sampling(temperature=0.0), LAST):
                tokens.append(step.token)
                logits.append(session.logits)
        finally:
            self.engine.guess_by(before)
        plain = self._begun()
        return np.stack(logits), np.stack([plain.logits, *plain.feed(tokens[:-1], all_logits=True)])


def items(subject: Subject, n_tokens: int) -> list[Item]:
    states = States(subject, n_tokens)
    return [Item(("state",), way, n_tokens, partial(states.measure, way)) for way in (*states.ways, DRAFTS)]
