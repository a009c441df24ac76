"""Text to token ids and back, from the checkpoint's tokenizer.json (spec 5.6, 6).

Special tokens enter only through a Prompt's special segments: the BPE underneath has no added vocabulary, so
text from outside can never become one.
"""

import json
import os
from pathlib import Path

import tokenizers

from v4cli import jsonfile
from v4cli.chat import special
from v4cli.chat.special import Prompt
from v4cli.errors import ModelError, UsageError

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a pool of threads for one text takes longer to start


class Tokenizer:
    """Byte-level BPE plus a table of special tokens."""

    def __init__(self, bpe: tokenizers.Tokenizer, specials: dict[str, int]):
        self._bpe = bpe
        self._specials = specials
        self._special_texts = {i: text for text, i in specials.items()}
        self.vocab_size = max([bpe.get_vocab_size() - 1, *specials.values()]) + 1
        self.bos_id = self.special_id(special.BOS)
        self.eos_id = self.special_id(special.EOS)

    @classmethod
    def from_file(cls, path: Path) -> "Tokenizer":
        """Load tokenizer.json. ModelError names the file and what is wrong."""
        data = jsonfile.read(Path(path))
        if not isinstance(data, dict) or not isinstance(data.get("added_tokens"), list):
            raise ModelError(f"{path}: not a tokenizer.json (added_tokens missing)")
        specials = {}
        for token in data["added_tokens"]:
            if not isinstance(token, dict) or not isinstance(token.get("content"), str):
                raise ModelError(f"{path}: bad entry in added_tokens")
            if not isinstance(token.get("id"), int) or not 0 <= token["id"] < 1 << 24:
                raise ModelError(f"{path}: added token {token['content'][:40]!r} has no valid id")
            specials[token["content"]] = token["id"]
        try:
            bpe = tokenizers.Tokenizer.from_str(json.dumps(data | {"added_tokens": []}))
        except Exception as problem:  # the library raises bare Exception
            raise ModelError(f"{path}: unusable tokenizer ({str(problem)[:120]})") from None
        try:
            return cls(bpe, specials)
        except ModelError as problem:
            raise ModelError(f"{path}: {problem}") from None

    def special_id(self, text: str) -> int:
        """Id of a special token. ModelError if this tokenizer lacks it."""
        if text not in self._specials:
            raise ModelError(f"the tokenizer has no special token {text!r}")
        return self._specials[text]

    @property
    def special_ids(self) -> set[int]:
        """Of all special tokens."""
        return set(self._special_texts)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; never a special token."""
        try:
            return self._bpe.encode_batch([text], add_special_tokens=False)[0].ids  # a batch lets other threads run
        except (UnicodeEncodeError, TypeError):  # which one depends on the library's version
            raise UsageError("the text holds a lone surrogate, which is not valid Unicode") from None

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Ids of a rendered prompt."""
        ids: list[int] = []
        for segment in prompt:
            if segment.ids is not None:
                ids += segment.ids
            else:
                ids += [self.special_id(segment.text)] if segment.special else self.encode(segment.text)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens spelled out; bytes that are not UTF-8 become U+FFFD."""
        stream = self.stream()
        return "".join(map(stream.push, ids)) + stream.flush()

    def complete(self, ids: list[int]) -> str:
        """The same without the bytes at the end that do not make a character yet."""
        return "".join(map(self.stream().push, ids))

    def token_bytes(self, token: int) -> bytes:
        """The bytes one ordinary token stands for; empty for ids without an entry."""
        text = self._bpe.id_to_token(token)
        return b"" if text is None else bytes(_BYTE_OF[c] for c in text if c in _BYTE_OF)

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


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character: itself, or 256 onwards for the others."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()
