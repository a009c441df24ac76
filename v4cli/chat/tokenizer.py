"""Text to token ids and back, from the checkpoint's tokenizer.json (spec 5.6, 6).

Special tokens enter only through a Prompt's special segments: the BPE underneath has no added vocabulary, so
text from outside can never become one.
"""

import math
import os
from collections.abc import Callable
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers

from v4cli.chat import pieces, special
from v4cli.chat.special import Prompt
from v4cli.chat.vocabulary import ALPHABET, BYTE_OF, Vocabulary
from v4cli.errors import ContextError, ModelError, UsageError, V4Error

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a pool of threads for one text takes longer to start


class Tokenizer:
    """Byte-level BPE plus a table of special tokens."""

    def __init__(self, bpe: tokenizers.Tokenizer, specials: dict[str, int], digest: str):
        """`digest` of the file: token ids of another one mean other texts."""
        self._bpe = bpe
        self.digest = digest
        self._specials = specials
        self._special_texts = {i: text for text, i in specials.items()}
        self._bytes: dict[int, bytes] = {}  # of tokens that have come up
        self.vocab_size = bpe.get_vocab_size() + len(specials)
        self.bos_id = self.special_id(special.BOS)
        self.eos_id = self.special_id(special.EOS)

    @classmethod
    def from_file(cls, path: Path) -> "Tokenizer":
        """Load tokenizer.json. ModelError names the file and what is wrong."""
        vocabulary = Vocabulary.read(Path(path))
        try:
            return cls(_bpe(vocabulary), vocabulary.specials, vocabulary.digest)
        except ModelError as problem:
            raise ModelError(f"{path}: {problem}") from None

    def check(self, config, path: Path) -> None:
        """ModelError naming `path` if a model of this config has another vocabulary."""
        if self.vocab_size > config.vocab_size:
            raise ModelError(f"{path}: more tokens than the model's vocabulary")
        if (self.bos_id, self.eos_id) != (config.bos_token_id, config.eos_token_id):
            ours, its = f"{self.bos_id} and {self.eos_id}", f"{config.bos_token_id} and {config.eos_token_id}"
            raise ModelError(f"{path}: beginning and end of a sentence are {ours}, those of config.json {its}")

    def special_id(self, text: str) -> int:
        """Id of a special token. ModelError if this tokenizer lacks it."""
        if text not in self._specials:
            raise ModelError(f"the tokenizer has no special token {text!r}")
        return self._specials[text]

    @property
    def special_ids(self) -> set[int]:
        """Of all special tokens."""
        return set(self._special_texts)

    @cached_property
    def _tokens(self) -> tuple[str, ...]:
        """All but the special ones, in byte-level BPE's alphabet."""
        return tuple(self._bpe.get_vocab())

    @cached_property
    def _longest(self) -> int:
        """Bytes of the longest token."""
        return max(map(len, [*self._tokens, *self._specials]))

    def _least(self, text: str) -> int:
        """Tokens that a text has at least: of one that takes long to encode, of which bytes it is counts, too."""
        if not pieces.LARGE < len(text) <= pieces.LONGEST:
            return len(text) // self._longest  # a character is a byte at least
        data = text.encode("utf-8", "replace")
        its = {character for byte, character in ALPHABET.items() if byte in data}
        return len(data) // max(len(token) for token in self._tokens if its.issuperset(token))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; never a special token."""
        return [token for piece in pieces.pieces(text) for token in self._ids(piece, lambda: False)]

    def encode_prompt(
        self, prompt: Prompt, room: float = math.inf, cancelled: Callable[[], bool] = lambda: False
    ) -> list[int]:
        """Ids of a rendered prompt; of its beginning if cancelled. ContextError as soon as it is certain that they
        leave nothing of `room` tokens."""
        ids: list[int] = []
        n_left = len(prompt.text)  # characters
        for segment in prompt:
            whole = segment.special or segment.ids is not None
            for piece in [segment.text] if whole else pieces.pieces(segment.text):
                n_left -= len(piece)
                at_least = len(ids) + n_left // self._longest + (0 if whole else self._least(piece))
                if at_least >= room:
                    raise ContextError(f"the text has at least {at_least:,} tokens and fills the model's whole context")
                if segment.ids is not None:
                    ids += segment.ids
                else:
                    ids += [self.special_id(piece)] if segment.special else self._ids(piece, cancelled)
                if cancelled():
                    return ids
        return ids

    def _ids(self, piece: str, cancelled: Callable[[], bool]) -> list[int]:
        """Of a piece of text; none if cancelled."""
        try:
            with _panics("the text cannot be cut into tokens", UsageError):
                return pieces.encode(self._bpe, piece, cancelled)
        except (UnicodeEncodeError, TypeError):  # which one depends on the library's version
            raise UsageError("the text holds a lone surrogate, which is not valid Unicode") from None

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens spelled out; bytes that are not UTF-8 become U+FFFD."""
        stream = self.stream()
        return "".join(map(stream.push, ids)) + stream.flush()

    def complete(self, ids: list[int]) -> str:
        """The same without the bytes at the end that do not make a character yet."""
        return "".join(map(self.stream().push, ids))

    def token_bytes(self, token: int) -> bytes:
        """The bytes one ordinary token stands for; empty for ids without an entry."""
        if token not in self._bytes:
            text = self._bpe.id_to_token(token)
            self._bytes[token] = b"" if text is None else bytes(map(BYTE_OF.__getitem__, text))
        return self._bytes[token]

    def stream(self) -> "StreamDecoder":
        return StreamDecoder(self)


class StreamDecoder:
    """Token ids in, text out as soon as its UTF-8 is complete."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._held = b""

    def push(self, token: int) -> str:
        """Text that became complete with this token."""
        name = self._tokenizer._special_texts.get(token)
        if name is not None:
            return self.flush() + name
        self._held += self._tokenizer.token_bytes(token)
        cut = len(self._held) - _unfinished(self._held)
        text, self._held = self._held[:cut].decode("utf-8", "replace"), self._held[cut:]
        return text

    def flush(self) -> str:
        """What is left, incomplete or not."""
        text, self._held = self._held.decode("utf-8", "replace"), b""
        return text


def _unfinished(data: bytes) -> int:
    """Length of a trailing UTF-8 sequence that more bytes could still complete."""
    for back in range(1, min(3, len(data)) + 1):
        lead = data[-back]
        if lead & 0xC0 != 0x80:
            needed = 4 if lead >= 0xF0 else 3 if lead >= 0xE0 else 2 if lead >= 0xC0 else 1
            return back if needed > back and lead < 0xF5 else 0
    return 0


def _bpe(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """The library's tokenizer of this vocabulary, without any state."""
    with _panics("the tokenizer is unusable", ModelError):
        bpe = tokenizers.Tokenizer(models.BPE(vocab=vocabulary.tokens, merges=vocabulary.merges))
        cuts = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in vocabulary.patterns]
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        bpe.pre_tokenizer = pre_tokenizers.Sequence([*cuts, last])
        return bpe


@contextmanager
def _panics(what: str, error: type[V4Error]):
    """What goes wrong in the library as an error: it raises bare Exception, and panics, which are none."""
    try:
        yield
    except (KeyboardInterrupt, MemoryError, UnicodeEncodeError, TypeError):
        raise
    except BaseException as problem:
        raise error(f"{what} ({str(problem)[:120]})") from None
