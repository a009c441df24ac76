"""Which tokens an answer may be made of: JSON by its schema, calls of tools by theirs, or any grammar."""

import importlib.util
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from v4cli import paths
from v4cli.chat import formats, schemas, special
from v4cli.chat.tokenizer import Tokenizer
from v4cli.errors import RequestError, hinted
from v4cli.options import Format

if TYPE_CHECKING:
    from v4cli.chat.grammar import Guide

Allowed = Callable[[Sequence[int]], np.ndarray | None]


class Constraints:
    """For one model; what grammars need is made when the first is. `log` is told what is not constrained."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, log: Callable[[str], None]):
        self.tokenizer, self.vocab_size, self.log = tokenizer, vocab_size, log
        self._lock = threading.Lock()
        self._made: Guide | None = None

    @property
    def guide(self) -> "Guide":
        from v4cli.chat.grammar import Guide

        with self._lock:
            if self._made is None:
                self._made = Guide(self.tokenizer, self.vocab_size, self.log)
            return self._made

    def check(self, format_: Format | None, grammar: str | None = None) -> None:
        """RequestError for a schema that no grammar can be made for, and for a grammar that is none."""
        if format_ is None and grammar is None:
            return
        name = format_.at.partition(".")[0] if format_ else "structured_outputs"
        if importlib.util.find_spec("llguidance") is None:
            raise RequestError(f"{name} needs llguidance here: pip install 'v4cli[grammar]'")
        if format_ is not None:
            schemas.check_answer(format_.schema, format_.at)
            schemas.check_end(format_.schema, format_.at)
            if note := self.guide.json_options(format_.schema, format_.at, format_.strict)[1]:
                self.log(note)
        if grammar is not None and (why := self.guide.refusal(grammar)):
            raise RequestError(f"{name}: {why[:200]}")

    def json(self, format_: Format, thinking: bool, tools: Sequence[dict] = ()) -> "Matched":
        """For an answer that is JSON; before it comes reasoning as the model likes if it thinks, in place of it may be
        calls of these tools."""
        how = self.guide.json_options(format_.schema, format_.at, format_.strict)[0]
        text = self.guide.json_grammar(format_.schema, tools, **how)
        end = self.tokenizer.special_id(special.END_THINK) if thinking else None
        return Matched(self, text, end)

    def raw(self, grammar: str) -> "Matched":
        """For an answer by a grammar in llguidance's Lark."""
        return Matched(self, grammar)

    def without(self, token: int) -> np.ndarray:
        """(vocab,) bool: everything but this token."""
        mask = np.ones(self.vocab_size, bool)
        mask[token] = False
        return mask


def check_early(format_: Format) -> None:
    """UsageError for a format that no grammar can be made for, which is so for every model: before one is loaded."""
    formats.check_installed(format_.at)
    tokenizer = Tokenizer.from_file(paths.NANO / "tokenizer.json")
    with hinted("leave it out of the schema, and say it in a description or the prompt"):
        Constraints(tokenizer, tokenizer.vocab_size, lambda text: None).check(format_)


class Matched:
    """A grammar's mask, from the token after `begin` on, or from the start. Up to there the answer may be anything, but
    it may not end."""

    def __init__(self, its: Constraints, text: str, begin: int | None = None, before: Sequence[int] = ()):
        """`before`: tokens of the grammar that are there already."""
        self._its, self._text, self._begin = its, text, begin
        self._matcher = its.guide.matcher(text)
        self._going_on = None if begin is None else its.without(its.tokenizer.eos_id)
        self._waits, self._seen, self._given_up = begin is not None, 0, False
        for token in before:
            self._matcher.consume_token(token)

    @property
    def grammar(self) -> str:
        """The same of the whole answer, for who samples elsewhere."""
        if self._begin is None:
            return self._text
        head = f"start: <[^{self._begin},{self._its.tokenizer.eos_id}]>* <[{self._begin}]> answer\n"
        return head + self._text.replace("start", "answer", 1)

    def __call__(self, tokens: Sequence[int]) -> np.ndarray | None:
        """(vocab,) bool: what may follow the tokens sampled so far; None if anything may."""
        if self._given_up:
            return None
        for token in tokens[self._seen :]:
            if self._waits:
                self._waits = token != self._begin
            else:
                self._matcher.consume_token(token)
        self._seen = len(tokens)
        if self._waits:
            return self._going_on
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, count=self._its.vocab_size, bitorder="little").view(bool)
        if self._matcher.is_error() or not mask.any():
            why = self._matcher.get_error().partition("\n")[0] or "no token is allowed"
            self._its.log(f"a grammar was given up: {why}")
            self._given_up = True
            return None
        return mask
