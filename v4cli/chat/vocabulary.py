"""What is read of a tokenizer.json, and nothing else: the vocabulary, the merges, the special tokens.

Other programs keep their state in this file, and the library obeys it: truncation, padding, dropout, processors that
add tokens. None of that is read. What defines the tokens, a normalizer, patterns, prefixes, must be as in V4, or the
file is refused: nothing reaches the library unchecked, which panics, or never returns, on some of it.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from v4cli import files, jsonfile
from v4cli.errors import ModelError

# How text is cut before it is merged, pattern after pattern: of V4 (spec 6), and of nano.
V4_PATTERNS = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
NANO_PATTERNS = (r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",)
MAX_TOKENS = 1 << 20
GGUF_SPECIAL, GGUF_ADDED, GGUF_UNUSED = 3, (3, 4), 5  # types of tokens in GGUF files; unused ones only fill up


@dataclass(frozen=True)
class Vocabulary:
    """`tokens`: id by text, in byte-level BPE's alphabet; `merges` of them, the first before the others; `specials`: id
    by text, none of which merges can make; `digest` of the whole file."""

    tokens: dict[str, int]
    merges: list[tuple[str, str]]
    patterns: tuple[str, ...]
    specials: dict[str, int]
    digest: str

    @classmethod
    def read(cls, path: Path) -> "Vocabulary":
        """From tokenizer.json. ModelError names the file and the field."""
        raw = files.contents(path, jsonfile.MAX_BYTES)
        try:
            return cls(*_checked(jsonfile.parse(raw, str(path))), hashlib.sha256(raw).hexdigest())
        except _Wrong as problem:
            raise ModelError(f"{path}: {problem}") from None


class _Wrong(Exception):
    """Field and problem."""


def byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character: itself, or 256 onwards for the others."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_OF = byte_alphabet()
ALPHABET = {byte: character for character, byte in BYTE_OF.items()}


def _checked(data) -> tuple:
    """Tokens, merges, patterns and specials of a parsed file."""
    model = data.get("model") if isinstance(data, dict) else None
    if not isinstance(model, dict):
        raise _Wrong("not a tokenizer.json (model is missing)")
    if model.get("type") != "BPE":
        raise _Wrong(f"model.type is {jsonfile.shown(model.get('type'))}, V4 has 'BPE'")
    for field in ("continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(field) not in (None, "", False):
            raise _Wrong(f"model.{field} is {jsonfile.shown(model[field])}, V4 has none")
    normalizer = data.get("normalizer")
    if normalizer not in (None, {"type": "Sequence", "normalizers": []}):
        raise _Wrong(f"normalizer is {jsonfile.shown(normalizer)}, V4 has none: text is encoded as it is")
    specials, tokens = _specials(data.get("added_tokens")), _tokens(model.get("vocab"))
    _check_ids(tokens, specials)
    tokens = {text: i for text, i in tokens.items() if text not in specials}
    return tokens, _merges(model.get("merges"), tokens), _patterns(data.get("pre_tokenizer")), specials


def _is_id(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_TOKENS


def _specials(added) -> dict[str, int]:
    """Id by text. How the library would look for them in text is no matter: it never does."""
    if not isinstance(added, list):
        raise _Wrong("added_tokens is missing or no list")
    specials: dict[str, int] = {}
    for i, token in enumerate(added):
        text, number = (token.get("content"), token.get("id")) if isinstance(token, dict) else (None, None)
        if not isinstance(text, str) or not text or not _is_id(number):
            raise _Wrong(f"added_tokens[{i}] has no content, or no valid id")
        if text in specials:
            raise _Wrong(f"added_tokens[{i}]: {jsonfile.shown(text)} is there twice")
        specials[text] = number
    return specials


def _tokens(vocab) -> dict[str, int]:
    if not isinstance(vocab, dict) or len(vocab) > MAX_TOKENS:
        raise _Wrong("model.vocab is missing, or no map of tokens to ids")
    wrong = next((text for text, number in vocab.items() if not text or not _is_id(number)), None)
    if wrong is not None:
        raise _Wrong(f"model.vocab: {jsonfile.shown(wrong)} has no valid id")
    return vocab


def _check_ids(tokens: dict[str, int], specials: dict[str, int]) -> None:
    """Every id stands for one text, every text for one id, and text alone never for a special token."""
    texts: dict[int, str] = {}
    for text, number in (*tokens.items(), *specials.items()):
        if texts.setdefault(number, text) != text:
            raise _Wrong(f"id {number} stands for {jsonfile.shown(texts[number])} and {jsonfile.shown(text)}")
        if tokens.get(text, number) != number:
            raise _Wrong(f"{jsonfile.shown(text)} has the ids {tokens[text]} (vocab) and {number} (added_tokens)")
    hole = next((number for number in range(len(texts)) if number not in texts), None)
    if hole is not None:
        raise _Wrong(f"id {hole} stands for no token, though there are larger ones")
    plain = [text for text in tokens if text not in specials]
    if not set("".join(plain)) <= BYTE_OF.keys():
        strange = next(text for text in plain if not set(text) <= BYTE_OF.keys())
        raise _Wrong(f"model.vocab: {jsonfile.shown(strange)} is no token of byte-level BPE")
    missing = BYTE_OF.keys() - set(plain)
    if missing:
        raise _Wrong(f"model.vocab lacks {len(missing)} of the 256 bytes, {jsonfile.shown(min(missing))} among them")


def _merges(merges, tokens: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs, given as two texts or as one with a blank between."""
    if not isinstance(merges, list):
        raise _Wrong("model.merges is missing or no list")
    pairs: dict[tuple[str, str], None] = {}
    for i, merge in enumerate(merges):
        pair = tuple(merge.split(" ") if isinstance(merge, str) else merge if isinstance(merge, list) else ())
        if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise _Wrong(f"model.merges[{i}] is no pair of tokens")
        if any(text not in tokens for text in (*pair, pair[0] + pair[1])):
            raise _Wrong(f"model.merges[{i}]: {jsonfile.shown(merge)} is not made of tokens, or makes none")
        if pair in pairs:
            raise _Wrong(f"model.merges[{i}]: {jsonfile.shown(merge)} is there twice")
        pairs[pair] = None
    return list(pairs)


def _patterns(told) -> tuple[str, ...]:
    for patterns in (V4_PATTERNS, NANO_PATTERNS):
        if _without_state(told) == pre_tokenizer(patterns):
            return patterns
    raise _Wrong("pre_tokenizer is not V4's: text would be cut in another way")


def pre_tokenizer(patterns: tuple[str, ...]) -> dict:
    """One that cuts by these patterns, as the library writes it."""
    cuts = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    last = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*cuts, last]}


def _without_state(pre_tokenizer):
    """Without `trim_offsets`, which changes no token."""
    steps = pre_tokenizer.get("pretokenizers") if isinstance(pre_tokenizer, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        return None
    plain = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    return pre_tokenizer | {"pretokenizers": plain}


def of_gguf(metadata: dict) -> dict:
    """The tokenizer.json that a GGUF file's metadata mean. ModelError if they have no byte-level BPE."""
    keys = ("tokens", "token_type", "merges")
    tokens, types, merges = (metadata.get(f"tokenizer.ggml.{key}") for key in keys)
    lists = all(isinstance(values, list) for values in (tokens, types, merges))
    if metadata.get("tokenizer.ggml.model") != "gpt2" or not lists or len(tokens) != len(types):
        raise ModelError("its metadata have no tokenizer of V4")
    used = [(text, number, kind) for number, (text, kind) in enumerate(zip(tokens, types)) if kind != GGUF_UNUSED]
    return {
        "added_tokens": [
            {"id": number, "content": text, "special": kind == GGUF_SPECIAL}
            for text, number, kind in used
            if kind in GGUF_ADDED
        ],
        "pre_tokenizer": pre_tokenizer(V4_PATTERNS),
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {
            "type": "BPE",
            "vocab": {text: number for text, number, kind in used if kind not in GGUF_ADDED},
            "merges": merges,
        },
    }
