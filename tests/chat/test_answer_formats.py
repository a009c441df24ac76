"""Answers that are JSON: how a schema may be typed, what is refused, and that nothing else can be sampled."""

import json

import pytest

from v4cli import paths
from v4cli.chat import formats
from v4cli.chat.constraints import Constraints
from v4cli.chat.messages import last_said
from v4cli.chat.special import DSML, END_THINK
from v4cli.chat.tokenizer import Tokenizer
from v4cli.chat.turn import Chat
from v4cli.errors import RequestError, UsageError, V4Error
from v4cli.options import Format, Options

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

TOOL = {"type": "function", "function": {"name": "clock", "description": "", "parameters": {"type": "object"}}}


def object_of(**properties) -> dict:
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip


TEXT, WHOLE = {"type": "string"}, {"type": "integer"}


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("name, age int, tags list", object_of(name=TEXT, age=WHOLE, tags={"type": "array", "items": TEXT})),
        ("ok bool", object_of(ok={"type": "boolean"})),
        ("n list of int , x float", object_of(n={"type": "array", "items": WHOLE}, x={"type": "number"})),
        ("born: int, n:list of int", object_of(born=WHOLE, n={"type": "array", "items": WHOLE})),
        ("born int: the year, or 0\nname", object_of(born=WHOLE | {"description": "the year, or 0"}, name=TEXT)),
        ('{"type": "integer"}', WHOLE),
    ],
)
def test_a_schema_may_be_typed_as_json_or_as_fields(text, schema):
    assert formats.schema_of(text) == schema
    jsonschema.Draft202012Validator.check_schema(schema)


def test_a_schema_may_be_a_file(tmp_path, monkeypatch):
    (tmp_path / "person.json").write_text('{"type": "integer"}')
    monkeypatch.chdir(tmp_path)
    assert formats.schema_of("person.json") == formats.schema_of(str(tmp_path / "person.json")) == WHOLE


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "--schema is empty"),
        ("name, 2nd int", "'2nd int' is no field"),
        ("age number of int", "is no field"),
        ("x thing", "types are str, "),
        ("a, a int", "'a' is there twice"),
        ("nowhere.json", "nowhere.json: cannot be read"),
        ("{", "--schema: not valid JSON"),
        ("[1]", "--schema must be an object"),
        ('{"type": "thing"}', "--schema.type must be one of"),
        ('{"properties": {"a": {"type": "objet"}}}', "--schema.properties.a.type must be"),
        ('{"type": "object", "type": "string"}', "key 'type' appears twice"),
    ],
)
def test_what_is_no_schema_is_named(text, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        formats.schema_of(text)
    assert says in str(error.value)


def test_a_format_and_a_schema_exclude_each_other():
    assert formats.wanted(None, None) is None
    assert formats.wanted("json", None) == Format({"type": "object"}, "--format")
    with pytest.raises(UsageError, match="exclude each other"):
        formats.wanted("json", "a")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"age": 3', "the answer is no JSON"),
        ('{"age": 3, "age": 4}', "appears twice"),
        ('{"age": "3"}', r"--schema says: \$.age: '3' is not of type 'integer'"),
        ('{"age": NaN}', "NaN is not a JSON number"),
        ("{}", "'age' is a required property"),
    ],
)
def test_an_answer_that_does_not_fit_is_told(text, says):
    with pytest.raises(V4Error, match=says):
        formats.checked(text, Format(object_of(age=WHOLE), "--schema"))
    assert formats.checked('{"age": 3}', Format(object_of(age=WHOLE), "--schema")) == {"age": 3}


@pytest.fixture(scope="module")
def its() -> Constraints:
    tokenizer = Tokenizer.from_file(paths.NANO / "tokenizer.json")
    return Constraints(tokenizer, json.loads((paths.NANO / "config.json").read_text())["vocab_size"], lambda text: None)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "array", "uniqueItems": True}, "--schema.uniqueItems"),
        (object_of(a={"type": "object", "patternProperties": {"(?=x)y": True}}), "--schema"),
        (object_of(a={"not": {"type": "string"}}), "--schema.properties.a.not"),
        (object_of(a={"if": {"type": "string"}, "then": {"minLength": 3}}), "--schema.properties.a.if"),
    ],
)
def test_a_keyword_that_no_grammar_can_keep_to_is_refused_by_name(its, schema, place):
    with pytest.raises(RequestError) as error:
        its.check(Format(schema, "--schema", strict=True))
    assert place in str(error.value) and "no grammar can be made of this" in str(error.value)


def accepted(allowed, ids: list[int]) -> bool:
    """Whether the mask lets these tokens follow one another."""
    for i, token in enumerate(ids):
        mask = allowed(ids[:i])
        if mask is not None and not mask[token]:
            return False
    return True


@pytest.mark.parametrize("thinking", [False, True])
def test_after_free_thinking_there_is_json_or_a_call_and_nothing_else(its, thinking):
    encode, special, eos = its.tokenizer.encode, its.tokenizer.special_id, its.tokenizer.eos_id
    format_ = Format(object_of(age=WHOLE), "--schema", strict=True)
    thought = [*encode('well, {"a": it is <'), special(DSML), special(END_THINK)] if thinking else []
    answer = encode('{"age": 36}')
    call = [*encode("\n\n<"), special(DSML), *encode("tool_calls>\n<"), special(DSML)]
    for tools in ([], [TOOL]):
        made = [its.json(format_, thinking, tools) for _ in range(6)]
        assert accepted(made[0], [*thought, *answer, eos])
        assert not accepted(made[1], [*thought, *answer[:-1], eos]) and not accepted(made[2], [*thought, eos])
        assert not accepted(made[3], [*thought, *encode("Ada")])
        assert accepted(made[4], [*thought, *call]) == bool(tools)
        assert not thinking or not accepted(made[5], [*thought[:-1], eos])  # a turn must not end in its thoughts
        whole = its.guide.matcher(made[0].grammar)  # what a server is given says the same
        assert not whole.get_error() and all(map(whole.consume_token, [*thought, *answer])) and whole.is_accepting()


@pytest.mark.parametrize("thinking", [False, True])
def test_nano_answers_in_json_at_any_temperature(thinking):
    chat = Chat.open(paths.NANO)
    for seed in (0, 2):
        format_ = formats.wanted(None, "ok bool, kind, n list of bool" if seed == 2 else "ok bool, sure bool")
        options = Options(thinking=thinking, temperature=3.0, seed=seed, max_tokens=120, format=format_)
        list(chat.reply([{"role": "user", "content": "Is it?"}], options))
        if chat.finish == "stop":
            assert set(formats.checked(last_said([chat.message])["content"], format_)) >= {"ok"}
        else:  # a text, or thoughts, without end
            assert chat.finish == "length" and (thinking or seed == 2)


def test_the_model_is_told_of_the_format_in_its_own_words():
    said = [{"role": "user", "content": "hi"}]
    body = formats.asked_for(said, formats.wanted("json", None))
    assert "output JSON" in body["messages"][0]["content"] and body["messages"][1:] == said
    system = [{"role": "system", "content": "Be brief."}, *said]
    assert formats.asked_for(system, formats.wanted("json", None))["messages"][0]["content"].startswith("Be brief.\n\n")
    assert formats.asked_for(said, formats.wanted(None, "a"))["response_format"]["json_schema"]["schema"]
