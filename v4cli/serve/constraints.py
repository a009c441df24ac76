"""Which tokens an answer may be made of, where the request says so: JSON by its schema, a call where one is required,
no call where none is wanted."""

import importlib.util
from collections.abc import Callable

from v4cli.chat import constraints, special
from v4cli.chat.constraints import Allowed, Matched
from v4cli.chat.tokenizer import Tokenizer
from v4cli.serve.prompts import Encoded


class Constraints:
    """For one model; what grammars need is made when the first is."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, log: Callable[[str], None]):
        self._its = constraints.Constraints(tokenizer, vocab_size, log)

    def check(self, encoded: Encoded) -> None:
        """RequestError for a schema that no grammar can be made for, and for a grammar that is none."""
        self._its.check(encoded.asked.format, encoded.asked.grammar)

    def of(self, encoded: Encoded) -> Allowed | None:
        """For one choice of an answer; None: it may be anything."""
        asked = encoded.asked
        if encoded.forced:
            return self._call(encoded)
        if asked.format is not None:
            return self._its.json(asked.format, encoded.thinking)
        if asked.grammar is not None:
            return self._its.raw(asked.grammar)
        if asked.tools and asked.choice == "none":
            mask = self._its.without(self._its.tokenizer.special_id(special.DSML))
            return lambda tokens: mask
        return None

    def _call(self, encoded: Encoded) -> Allowed | None:
        """The rest of a block of calls; without llguidance whatever the model makes of it."""
        if importlib.util.find_spec("llguidance") is None:
            return None
        tools = [tool for tool in encoded.asked.tools if encoded.asked.named in (None, tool["function"]["name"])]
        guide, ids = self._its.guide, encoded.forced_ids
        return Matched(self._its, guide.grammar(tools), before=ids[ids.index(guide.dsml) + 1 :])
