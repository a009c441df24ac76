"""Tools' schemas under a grammar: whatever a schema allows can be called, what is not understood allows more; a tool
that no grammar can be made for is free alone, and named."""

import json

import pytest

from v4cli.chat import grammar, json_grammar, schemas
from v4cli.chat.dsml import write_calls
from v4cli.chat.messages import check_tools
from v4cli.chat.special import PromptBuilder
from v4cli.errors import RequestError

TEXTS = ("", "a", "ab", "a<", "<", "</", "a</", "b\n", "</b>", "\x01", "\x7f", "é中", '"q"', "\\", "\t", "｜DSML｜",
         "<｜DSML｜x", "true", "1", "😀", "null", " x ", "\u2028")  # fmt: skip
KEYS = ("a", "b", "ab", "a b", "é", "x_y", "\\", "0", "\x7f", "")


def tool(parameters, name: str = "f") -> dict:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def of(**properties) -> dict:
    return {"type": "object", "properties": properties}


def stopped_at(guide, tools: list[dict], arguments: dict, empty_line: bool = True, name: str = "f") -> str | None:
    """Up to where a call may be written, token by token; None if to its end."""
    block = PromptBuilder()
    write_calls(block, [{"function": {"name": name, "arguments": arguments}}], empty_line)
    tokens = [*guide.tokenizer.encode_prompt(block.build()), guide.tokenizer.eos_id]
    constraint = guide.constraint(tools)
    for i, token in enumerate(tokens):
        mask = constraint(tokens[:i])
        if mask is not None and not mask[token]:
            return guide.tokenizer.decode(tokens[:i])
    assert mask is not None, guide.notes
    return None


A = {
    "$defs": {"n": {"type": "integer"}, "e": {"enum": ["x", "y"]}, "t": of(l={"$ref": "#/$defs/t"}, r={"type": "null"})}
}
ACCEPTED = [
    (of(a={"type": "string"}), [{}, {"a": "17*23"}]),
    (of(a={"type": "string"}, b={"type": "integer"}, c={}), [{"c": 1}, {"b": 1, "a": ""}, {"c": [], "a": "", "b": 0}]),
    ({"$ref": "#/$defs/args", "$defs": {"args": of(a={"type": "string"})}}, [{}, {"a": "x"}]),
    ({"$ref": "#/nowhere"}, [{}, {"a": "x", "b": 1}]),
    ({"$ref": "#"}, [{"a": "x"}]),
    ({"$ref": "https://example.org/schema"}, [{"a": 1}]),
    ({"$ref": "#/$defs/x", "$defs": {"x": of(a={})}, "properties": {"b": {}}}, [{"a": 1, "b": 2}]),
    *[({"type": "object", key: [of(a={"type": "string"}), of(b={})]}, [{}, {"a": "x"}, {"b": 1}])
      for key in ("allOf", "anyOf", "oneOf")],
    (of(a={}) | {"anyOf": [of(b={})]}, [{"a": 1}, {"b": "x"}]),
    (of(a={}) | {"if": {"required": ["a"]}, "then": of(b={})}, [{"a": 1, "b": 2}]),
    (of(a={}) | {"dependentSchemas": {"a": of(b={})}}, [{"a": 1, "b": 2}]),
    (of(a={}) | {"unheardOf": 1}, [{"b": 2}]),
    (of(a={}) | {"patternProperties": {"^x": {"type": "null"}}, "additionalProperties": False}, [{"x1": None, "a": 1}]),
    (of(a={}) | {"additionalProperties": True}, [{"b": 2, "ab": "x", "a": "x"}]),
    (of(a={}) | {"additionalProperties": {"type": "integer"}}, [{"b": 2, "c": 3, "a": "x"}]),
    ({}, [{}, {"a": 1}]),
    ({"type": "object", "title": "t", "$schema": "http://json-schema.org/draft-07/schema#"}, [{}, {"a": "x"}]),
    (None, [{}]),
    (of(a={}) | {"required": ["a", "b"]}, [{"b": 1, "a": 2}]),
    (of(a={"type": "string", "nullable": True}), [{"a": None}, {"a": "null"}]),
    (of(a={"enum": ["x"], "nullable": True}), [{"a": None}, {"a": "x"}]),
    (of(a={"$ref": "#/$defs/e", "nullable": True}) | A, [{"a": None}, {"a": "x"}]),
    (of(a={"const": "fixed"}), [{"a": "fixed"}]),
    (of(a={"const": 7}, b={"const": None}, c={"const": [1]}), [{"a": 7, "b": None, "c": [1]}]),
    (of(a={"enum": ["x", 1.0, None, True, {"k": 1}]}), [{"a": v} for v in ("x", 1, 1.0, None, True, {"k": 1})]),
    (of(a={"enum": list(TEXTS)}), [{"a": text} for text in TEXTS]),
    (of(a={"enum": []}), [{"a": 1}]),
    (of(a={"$ref": "#/$defs/e"}, b={"$ref": "#/properties/a"}) | A, [{"a": "x", "b": "y"}]),
    (of(a={"$ref": "#/$defs/n"}, b={"$ref": "#/definitions/m"}) | A | {"definitions": {"m": {"type": "string"}}},
     [{"a": 1, "b": "x"}]),
    (of(a={"$ref": "#/$defs/t"}) | A, [{"a": {"l": {"l": {"r": None}}}}]),
    (of(a={"$ref": "#/properties/a"}, b={"anyOf": [{"$ref": "#/properties/b"}]}), [{"a": 1}, {"b": "x"}]),
    (of(a={"$ref": "#/$defs/e", "default": "x"}, b={"allOf": [{"$ref": "#/$defs/n"}], "description": "d"}) | A,
     [{"a": "x", "b": 3}]),
    (of(a={"$ref": "#/$defs/a~1b%20c"}) | {"$defs": {"a/b c": {"type": "null"}}}, [{"a": None}]),
    (of(a={"type": ["string", "integer", "null"]}), [{"a": "x"}, {"a": 1}, {"a": None}]),
    (of(a={"anyOf": [{"enum": ["x"]}, {"type": "array", "items": {"type": "integer"}}, {"const": False}]}),
     [{"a": "x"}, {"a": [1, 2]}, {"a": []}, {"a": False}]),
    (of(a={"type": "string", "pattern": "(?=a)[", "format": "uuid", "minLength": 9, "maxLength": 1}), [{"a": "x"}]),
    (of(a={"type": "array", "items": {"type": "string", "pattern": "^z", "format": "date"}}), [{"a": ["q", "\x01"]}]),
    (of(a={"type": "number"}), [{"a": n} for n in (0, -1.5, 1e22, 1e-7, 10**30, -0.0, 3.0)]),
    (of(a={"type": "number", "minimum": 0, "exclusiveMaximum": 1}), [{"a": 1e-300}, {"a": 0.5}]),
    (of(a={"type": "integer", "minimum": -(10**400), "multipleOf": 0}), [{"a": 10**30}]),
    (of(a={"type": "integer", "minimum": 0, "exclusiveMinimum": True}), [{"a": 0}, {"a": 12}]),
    (of(a=of(p={"type": "integer"}, q={})), [{"a": {"q": 1, "z": [None], "p": 2}}]),
    (of(a={"type": "array", "items": [{"type": "integer"}], "minItems": 1}), [{"a": [1, "x"]}]),
    (of(a={"type": "array", "prefixItems": [{}], "items": False}), [{"a": ["x"]}]),
    (of(a=True, b={"title": "t"}, c={"default": 3}, d={"not": {}}), [{"a": 1, "b": "x", "c": "y", "d": []}]),
    (of(a=False, b={}), [{"b": 1}]),
    (of(**{key: {} for key in KEYS}), [dict.fromkeys(KEYS, "x"), dict.fromkeys(reversed(KEYS), 1)]),
    (of(**{f"p{i}": {} for i in range(64)}), [{f"p{i}": i for i in reversed(range(64))}]),
    (of(a=of(**{f"p{i}": {} for i in range(65)})), [{"a": {f"p{i}": i for i in range(65)}}]),
    (of(a={"type": "array", "items": {"enum": list(range(3000))}}), [{"a": [2999, 7]}]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "calls"), ACCEPTED, ids=lambda value: json.dumps(value)[:60])
def test_what_a_schema_allows_can_be_called(guide, schema, calls):
    schemas.check(schema or {}, "it")
    for arguments in calls:
        for empty_line in (False, True):
            assert stopped_at(guide, [tool(schema)], arguments, empty_line) is None
    assert guide.notes == []


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        (of(a={"type": "string"}), {"a": 1}),
        (of(a={"type": "string"}), {"b": "x"}),
        (of(), {"b": "x"}),
        (None, {"b": "x"}),
        ({"additionalProperties": False}, {"b": "x"}),
        (of(a={}) | {"required": ["b"]}, {"a": 1}),
        (of(a={}) | {"additionalProperties": {"type": "integer"}}, {"b": "x"}),
        (of(a={"type": "integer"}) | {"additionalProperties": True}, {"a": "x"}),
        (of(a={"$ref": "#/$defs/e"}) | A, {"a": "z"}),
        (of(a={"const": "x"}), {"a": "xx"}),
        (of(a={"enum": [1, "x"]}), {"a": 2}),
        (of(a={"enum": ["x"], "type": "string", "nullable": True}), {"a": False}),
        (of(a={"type": "array", "items": {"type": "integer"}}), {"a": ["x"]}),
        (of(a={"type": "object", "required": ["p"]}), {"a": {"q": 1}}),
        (of(a=of(p={}) | {"additionalProperties": False}), {"a": {"q": 1}}),
        (of(a={"allOf": [{"$ref": "#/$defs/n"}]}) | A, {"a": "1"}),
        ({"$ref": "#/$defs/args", "$defs": {"args": of(a={"type": "string"})}}, {"b": 1}),
    ],
)
def test_what_it_does_not_allow_cannot(guide, schema, arguments):
    assert stopped_at(guide, [tool(schema)], arguments)
    assert guide.notes == []


@pytest.mark.parametrize(
    ("name", "schema", "arguments", "why"),
    [
        ("f", of(**{f"p{i}": {} for i in range(65)}), {"p3": 1, "q": "x"}, "65 parameters"),
        ("f", of(**{f"p{i}": {} for i in range(65)}) | {"required": [f"p{i}" for i in range(65)]}, {"p3": 1}, "65"),
        ("f", of(**{'a"b': {}, "c>d": {}}), {'a"b': "x", "c>d": [1]}, "the name of a parameter"),
        ('quo"te<', of(a={"type": "integer"}), {"a": "x"}, "its name"),
        ("f" * 400, of(a={"type": "integer"}), {"a": "x"}, "its name"),
        ("f", of(a={"enum": [f"choice {i}" for i in range(20_000)]}), {"a": "x"}, "too large"),
    ],
)
def test_a_tool_without_a_grammar_is_free_alone_and_named_once(guide, name, schema, arguments, why):
    tools = [tool(of(a={"type": "integer"}), "other"), tool(schema, name)]
    for _ in range(2):
        assert stopped_at(guide, tools, arguments, name=name) is None
        assert stopped_at(guide, tools, {}, name=name) is None
        assert stopped_at(guide, tools, {"a": "x"}, name="other")
        assert stopped_at(guide, tools, {"a": 1}, name="other") is None
    [note] = guide.notes
    assert name[:60] in note and why in note


def test_a_grammar_that_llguidance_refuses_frees_its_tool_only(guide, monkeypatch):
    tools = [tool(of(a={"type": "integer"}), "other"), tool(of(a={"type": "boolean"}))]
    monkeypatch.setitem(json_grammar.ALL, "boolean", ('"true"', "nowhere"))
    assert stopped_at(guide, tools, {"a": "x"}) is None
    assert stopped_at(guide, tools, {"a": "x"}, name="other")
    assert len(guide.notes) == 1 and "tool f free" in guide.notes[0] and "nowhere" in guide.notes[0]


def test_of_tools_too_many_for_one_grammar_the_largest_are_freed(guide, monkeypatch):
    tools = [tool(of(**{f"p{i}": {"type": "integer"} for i in range(20)})), tool(of(a={"type": "integer"}), "small")]
    assert stopped_at(guide, tools, {"p1": "x"})
    monkeypatch.setattr(grammar, "MAX_GRAMMAR", 3000)
    other = grammar.Guide(guide.tokenizer, guide.vocab_size, guide.notes.append)
    other.notes = guide.notes
    assert stopped_at(other, tools, {"p1": "x"}) is None
    assert stopped_at(other, tools, {"a": "x"}, name="small")
    assert len(guide.notes) == 1 and "tool f free" in guide.notes[0]


def test_a_constraint_that_gives_up_says_so(guide):
    constraint = guide.constraint([tool(of())])
    block = PromptBuilder()
    block.markup("<｜DSML｜nonsense")
    assert constraint(guide.tokenizer.encode_prompt(block.build())) is None
    assert len(guide.notes) == 1 and "gave up" in guide.notes[0]


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ([], "(f): parameters must be an object"),
        (True, "parameters must be an object"),
        ({"type": "string"}, 'parameters.type must be "object"'),
        ({"type": None}, 'parameters.type must be "object"'),
        ({"required": True}, "parameters.required must be a list of names"),
        ({"required": [1]}, "parameters.required"),
        ({"properties": []}, "parameters.properties must be an object of schemas"),
        ({"$ref": 3}, "parameters.$ref must be text"),
        ({"$ref": "#/x/0", "x": [{"required": "a"}]}, "#/x/0.required"),
        ({"$defs": {"d": {"type": "strng"}}}, "parameters.$defs.d.type must be one of array,"),
        (of(a={"type": None}), "parameters.properties.a.type"),
        (of(a={"type": []}), "properties.a.type"),
        (of(a={"type": ["string", 3]}), "properties.a.type"),
        (of(a="string"), "properties.a must be a schema"),
        (of(a={"type": "string", "required": True}), "properties.a.required"),
        (of(a={"enum": {}}), "properties.a.enum must be a list"),
        (of(a={"items": 3}), "properties.a.items must be a schema"),
        (of(a={"items": {"anyOf": {}}}), "properties.a.items.anyOf must be a list"),
        (of(a={"oneOf": [1]}), "properties.a.oneOf[0] must be a schema"),
        (of(a={"additionalProperties": "no"}), "properties.a.additionalProperties"),
        (of(a={"minimum": "0"}), "properties.a.minimum must be a number"),
        (of(**{"a\n\x1b[2J": {"type": "x"}}), "parameters.properties.a ␛[2J.type"),
        (of(a={"maxItems": None}), "properties.a.maxItems must be a number"),
        (of(a={"enum": ["\ud800"]}), "cannot be written as JSON"),
        (of(**{"\ud800": {}}), "cannot be written as JSON"),
    ],
)
def test_what_is_no_schema_is_an_error_that_names_tool_and_keyword(parameters, says):
    from v4cli.chat.requests import encode_request

    body = {"messages": [{"role": "user", "content": "hi"}], "tools": [tool(parameters)]}
    with pytest.raises(RequestError) as error:
        encode_request(body, "0731")
    assert str(error.value).startswith("tools[0].function (f): ") and says in str(error.value)


@pytest.mark.parametrize(("name", "says"), [(None, "is missing"), ("", "is missing"), (5, "must be text")])
def test_a_name_that_is_none_is_an_error(name, says):
    with pytest.raises(RequestError, match=rf"t\[0\]\.function\.name {says}"):
        check_tools([{"type": "function", "function": {"name": name}}], "t")


def test_deep_and_tangled_schemas_take_no_time(guide):
    deep, either = {"type": "string"}, {"type": "string"}
    for _ in range(300):
        deep, either = of(a=deep), {"anyOf": [either, {"type": "null"}]}
    defs = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(60)} | {"d60": {"type": "integer"}}
    schema = of(a=deep, b=either, c={"$ref": "#/$defs/d0"}) | {"$defs": defs}
    schemas.check(schema, "it")
    assert stopped_at(guide, [tool(schema)], {"a": {"a": {}}, "b": None, "c": 5}) is None and guide.notes == []
