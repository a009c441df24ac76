"""Which tokens an answer may be made of, where the request says so: JSON by its schema, a call where one is required,
no call where none is wanted."""

import importlib.util
import threading
from collections.abc import Callable, Sequence

import numpy as np

from v4cli.chat import special
from v4cli.chat.tokenizer import Tokenizer
from v4cli.errors import RequestError
from v4cli.serve.prompts import Encoded

Allowed = Callable[[Sequence[int]], np.ndarray | None]


class Constraints:
    """For one model; what grammars need is made when the first is."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, log: Callable[[str], None]):
        self.tokenizer, self.vocab_size, self.log = tokenizer, vocab_size, log
        self._lock = threading.Lock()
        self._made = None

    def check(self, encoded: Encoded) -> None:
        """RequestError for a schema that no grammar can be made for."""
        if (schema := encoded.asked.schema) is None:
            return
        if importlib.util.find_spec("llguidance") is None:
            raise RequestError("response_format needs llguidance here: pip install 'v4cli[grammar]'")
        if why := self._json(schema).get_error():
            raise RequestError(f"response_format: no grammar can be made of this schema ({why.splitlines()[0][:200]})")

    def of(self, encoded: Encoded) -> Allowed | None:
        """For one choice of an answer; None: it may be anything."""
        asked = encoded.asked
        if encoded.forced:
            return self._call(encoded)
        if asked.schema is not None:
            end = self.tokenizer.special_id(special.END_THINK) if encoded.thinking else None
            return _Matched(self._json(asked.schema), self.vocab_size, end, self.log)
        if asked.tools and asked.choice == "none":
            mask = np.ones(self.vocab_size, bool)
            mask[self.tokenizer.special_id(special.DSML)] = False
            return lambda tokens: mask
        return None

    def _call(self, encoded: Encoded) -> Allowed | None:
        """The rest of a block of calls; without llguidance whatever the model makes of it."""
        if importlib.util.find_spec("llguidance") is None:
            return None
        tools = [tool for tool in encoded.asked.tools if encoded.asked.named in (None, tool["function"]["name"])]
        matcher = self._guide.matcher(self._guide.grammar(tools))
        ids = encoded.forced_ids
        for token in ids[ids.index(self._guide.dsml) + 1 :]:
            matcher.consume_token(token)
        return _Matched(matcher, self.vocab_size, None, self.log)

    def _json(self, schema: dict):
        return self._guide.json_matcher(schema)

    @property
    def _guide(self):
        from v4cli.chat.grammar import Guide

        with self._lock:
            if self._made is None:
                self._made = Guide(self.tokenizer, self.vocab_size, self.log)
            return self._made


class _Matched:
    """A grammar's mask, from the token after `begin` on, or from the start."""

    def __init__(self, matcher, vocab_size: int, begin: int | None, log: Callable[[str], None]):
        self.matcher, self.vocab_size, self.begin, self.log = matcher, vocab_size, begin, log
        self._seen = 0

    def __call__(self, tokens: Sequence[int]) -> np.ndarray | None:
        for token in tokens[self._seen :]:
            if self.begin is not None:
                self.begin = None if token == self.begin else self.begin
            else:
                self.matcher.consume_token(token)
        self._seen = len(tokens)
        if self.begin is not None:
            return None
        bits = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, count=self.vocab_size, bitorder="little").view(bool)
        if self.matcher.is_error() or not mask.any():
            self.log(f"a grammar was given up: {self.matcher.get_error() or 'no token is allowed'}")
            return None
        return mask
