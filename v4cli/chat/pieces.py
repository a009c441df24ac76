"""Text encoded piece by piece: what is too long is noticed early, and Ctrl-C is heeded, which the library does not do.

The ids are those of the whole text, for it is cut only where the patterns of vocabulary.py, all that there are, cut
whatever stands before and after: behind a letter, before an ASCII character that is none or a CJK punctuation mark.
They take no letter together with what follows it there, and look ahead from white space only. A text without such a
place is encoded in a thread, which is left alone when nobody waits for it any more; one that is longer than any context
is not encoded at all: the library takes its time for it, or panics.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator

import tokenizers

SIZE = 1 << 14  # characters of a piece; it goes on to the next place to cut
LARGE = 4 * SIZE  # from here on a piece is encoded in a thread
LONGEST = 1 << 22  # characters; a million tokens of three digits are fewer
POLL = 0.05  # seconds
_LETTER = "A-Za-zÀ-ÖØ-öø-ɏΑ-Ρα-ωА-яا-غא-ת가-힣一-龥ぁ-ゖァ-ヺ"
_PLACE = re.compile(f"(?<=[{_LETTER}])(?=[\\x00-@\\[-`{{-\\x7f，。、！？；：])")


def pieces(text: str) -> Iterator[str]:
    """The text in pieces that can be encoded one by one."""
    start = 0
    while start < len(text):
        place = _PLACE.search(text, start + SIZE)
        end = place.start() if place else len(text)
        yield text[start:end]
        start = end


def encode(bpe: tokenizers.Tokenizer, text: str, cancelled: Callable[[], bool]) -> list[int]:
    """Ids of a piece; none if cancelled on the way. ValueError if it is too long."""
    if len(text) <= LARGE:
        return bpe.encode(text, add_special_tokens=False).ids
    if len(text) > LONGEST:
        raise ValueError(f"{len(text):,} characters in a row without the end of a word")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns whenever a program is started later
    made: list = []

    def work() -> None:
        try:
            made.append(bpe.encode_batch([text], add_special_tokens=False)[0].ids)  # without the interpreter's lock
        except BaseException as error:  # a panic is no Exception
            made.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL)
        if cancelled():
            return []
    if isinstance(made[0], BaseException):
        raise made[0]
    return made[0]
