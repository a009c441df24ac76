"""The model that is served. Its weights and contexts come and go with the requests, if that is wanted; what it takes to
read a request stays.
"""

import gc
import threading
from collections.abc import Callable

from v4cli import paths
from v4cli.chat.turn import Chat
from v4cli.engine.engine import Engine
from v4cli.engine.session import Session
from v4cli.errors import ModelError
from v4cli.serve.pool import Pool


class Served:
    """A model that `open` loads, at once and again after its memory was given back; any thread may ask."""

    def __init__(self, open: Callable[[], Chat], log: Callable[[str], None]):
        """`open` gives a chat whose session says how those of requests are to be; `log` hears of each loading."""
        self._open, self.log = open, log
        self._lock = threading.Lock()
        chat = open()
        self.config, self.tokenizer, self.defaults = chat.engine.config, chat.tokenizer, chat.defaults
        self._content = _content(chat.engine)
        self.engine: Engine | None = None  # while it is loaded
        self._empty: list[Session] = []  # that nobody has yet
        self._take(chat)

    def session(self) -> Session:
        """An empty one, of the model that is loaded for it unless it is. ResourceError, ModelError."""
        with self._lock:
            if self.engine is None:
                self._load()
            assert self.engine is not None
            return self._empty.pop() if self._empty else self.engine.session(self._kv_dir, self._prefixes)

    def has_room(self, n_tokens: int) -> bool:
        """Whether memory holds a context of so many tokens, if there is no other; as far as that is known."""
        engine = self.engine
        return engine is None or engine.account.fits(n_tokens, self._kv_dir is not None)

    def _load(self) -> None:
        self.log("the model is being loaded")
        chat = self._open()
        if _content(chat.engine) != self._content:
            raise ModelError("the model's files are no longer those that are served", "start the server again")
        self._take(chat)
        self.log(f"the model is loaded ({chat.engine.load_s:.1f} s)")

    def _take(self, chat: Chat) -> None:
        self.engine, self._empty = chat.engine, [chat.session]
        self._kv_dir, self._prefixes = chat.session.kv_dir, chat.session.prefixes

    def give_back(self, pool: Pool) -> bool:
        """The memory of weights and contexts, once these are stored; False while somebody is being answered, or where
        there is nothing to give back."""
        with self._lock:
            sessions = None if self.engine is None else pool.emptied()
            if sessions is None:
                return False
            for note in pool.stored(sessions) + self._remembered():
                self.log(note)
            self.engine = self._prefixes = None
            sessions.clear()
            self._empty.clear()
            gc.collect()
        self.log("nothing was asked for long: the model's memory is given back until the next request")
        return True

    def store(self, pool: Pool) -> list[str]:
        """What the next server can go on from; what hindered that, for people."""
        return pool.store() + self._remembered()

    def _remembered(self) -> list[str]:
        """Store what was learned about the use of experts."""
        try:
            if self.engine is not None:
                self.engine.remember(paths.use_dir())
        except OSError as error:
            return [f"{paths.use_dir()}: the use of experts is not stored ({error.strerror})"]
        return []


def _content(engine: Engine) -> tuple | None:
    """By which a model is the same, wherever and whenever it was written."""
    identity = engine.identity
    return identity and (identity["config"], identity["weights"]["content"])
