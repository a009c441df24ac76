"""Text encoded piece by piece: what is too long is noticed early, and Ctrl-C is heeded, which the library does not do.

The ids are those of the whole text, for it is cut only where every pre-tokenizer known here cuts, whatever stands
before and after: behind a letter, before an ASCII character that is none or a CJK punctuation mark. Their patterns take
no letter together with what follows it there, and look ahead from white space only. Where a text has no such place, or
the pre-tokenizer is unknown, it is encoded in a thread, which is left alone when nobody waits for it any more.
"""

import json
import os
import re
import threading
from collections.abc import Callable, Iterator

import tokenizers

SIZE = 1 << 14  # characters of a piece; it goes on to the next place to cut
LARGE = 4 * SIZE  # from here on a piece is encoded in a thread
POLL = 0.05  # seconds
KNOWN = frozenset({  # patterns of V4's pre-tokenizer, and nano's
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
    " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
})  # fmt: skip
_LETTER = "A-Za-zÀ-ÖØ-öø-ɏΑ-Ρα-ωА-яا-غא-ת가-힣一-龥ぁ-ゖァ-ヺ"
_PLACE = re.compile(f"(?<=[{_LETTER}])(?=[\\x00-@\\[-`{{-\\x7f，。、！？；：])")


def can_cut(bpe: tokenizers.Tokenizer) -> bool:
    """Whether the places above are boundaries of its pre-tokenizer."""
    if bpe.pre_tokenizer is None or (bpe.normalizer is not None and json.loads(bpe.normalizer.__getstate__()) != EMPTY):
        return False
    about = json.loads(bpe.pre_tokenizer.__getstate__())
    *splits, last = about["pretokenizers"] if about["type"] == "Sequence" else [about]
    bytewise = last["type"] == "ByteLevel" and not last["add_prefix_space"] and not last["use_regex"]
    return bytewise and all(
        split["type"] == "Split" and split["behavior"] == "Isolated" and not split["invert"]
        and split["pattern"].get("Regex") in KNOWN
        for split in splits
    )  # fmt: skip


EMPTY = {"type": "Sequence", "normalizers": []}  # the normalizer of V4's tokenizer


def pieces(text: str, cut: bool) -> Iterator[str]:
    """The text in pieces that can be encoded one by one; whole if it cannot be `cut`."""
    start = 0
    while start < len(text):
        place = _PLACE.search(text, start + SIZE) if cut else None
        end = place.start() if place else len(text)
        yield text[start:end]
        start = end


def encode(bpe: tokenizers.Tokenizer, text: str, cancelled: Callable[[], bool]) -> list[int]:
    """Ids of a piece; none if cancelled on the way."""
    if len(text) <= LARGE:
        return bpe.encode(text, add_special_tokens=False).ids
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns whenever a program is started later
    made: list = []

    def work() -> None:
        try:
            made.append(bpe.encode_batch([text], add_special_tokens=False)[0].ids)  # without the interpreter's lock
        except Exception as error:
            made.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL)
        if cancelled():
            return []
    if isinstance(made[0], Exception):
        raise made[0]
    return made[0]
