"""Schemas of tools that come from outside, and calls that are checked by them."""

import json

import pytest

from v4cli.agent import foreign
from v4cli.agent.tools import Kind, Tool, Toolbox

OBJECT = {"type": "object"}
TUPLE = {"properties": {"a": {"type": "array", "items": [{"type": "string"}]}}}


def of(**properties) -> dict:
    return OBJECT | {"properties": properties}


@pytest.mark.parametrize(
    "schema",
    [
        OBJECT,
        of(a={"enum": ["é", "x y"]}),
        OBJECT | TUPLE | {"$schema": "http://json-schema.org/draft-07/schema#"},
        of(a={"minimum": 0, "exclusiveMinimum": True}) | {"$schema": "http://json-schema.org/draft-04/schema#"},
        of(a={"$ref": "#/$defs/n"}) | {"$defs": {"n": {"type": "integer"}}},
        OBJECT | {"$schema": "https://example.org/mine", "x-order": 1},
    ],
)
def test_a_schema_is_kept_as_its_draft_allows(schema):
    assert foreign.parameters(schema) == schema


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (None, "not an object"),
        ({"type": "string"}, "not an object"),
        (OBJECT | TUPLE, "not valid"),
        (OBJECT | {"$schema": 5}, "draft"),
        (of(a={"required": True}) | {"$schema": "http://json-schema.org/draft-03/schema#"}, "not valid"),
        (OBJECT | {"$ref": "#/x", "x": {"properties": []}}, "not valid"),
        (OBJECT | {"required": ["a b"]}, "'a b'"),
        (OBJECT | {"$ref": "#/$defs/a", "$defs": {"a": of(**{"a<": {}})}}, "'a<'"),
        (of(a={"enum": ["x\u200b"]}), "hidden"),
        (of(a={"const": "x" * 3000}), "too long"),
        (of(**{"a\u202e": {}}), "hidden"),
    ],
)
def test_one_that_a_call_could_not_follow_is_left_out_with_the_reason(schema, why):
    with pytest.raises(ValueError, match=why):
        foreign.parameters(schema)


def test_prose_is_cleaned_and_a_parameter_may_be_called_like_prose():
    schema = of(description={"description": "x\u202e", "title": "y\u200b", "enum": ["z"]})
    assert foreign.parameters(schema) == of(description={"description": "x", "title": "y", "enum": ["z"]})


@pytest.mark.parametrize(
    ("schema", "arguments", "fault"),
    [
        (of(a={}), {"b": 1}, "there is no parameter 'b'"),
        (of(a={}) | {"additionalProperties": False}, {"b": 1}, "there is no parameter 'b'"),
        (of(a={}) | {"additionalProperties": {"type": "integer"}}, {"b": 1}, ""),
        (of(a={}) | {"patternProperties": {"^b": {}}}, {"b": 1}, ""),
        (of(a={}) | {"anyOf": [of(b={})]}, {"b": 1}, ""),
        (of(a={}) | {"required": ["b"]}, {"b": 1}, ""),
        (OBJECT | {"$ref": "#/$defs/r", "$defs": {"r": of(a={}) | {"required": ["a"]}}}, {}, "parameter a is missing"),
        (OBJECT | {"$ref": "#/$defs/r", "$defs": {"r": of(a={"type": "null"})}}, {"a": 1}, "parameter a must be null"),
        (of(a={"type": "string", "nullable": True}), {"a": None}, ""),
        (of(a={"type": "string"}), {"a": None}, "parameter a must be string"),
        (of(a={"type": ["integer", "null"]}), {"a": True}, "parameter a must be integer or null"),
    ],
)
def test_a_call_is_checked_by_what_its_schema_says(schema, arguments, fault):
    box = Toolbox([Tool("f", "", foreign.parameters(schema), Kind.READ, lambda arguments, context: "")])
    call = box.call({"function": {"name": "f", "arguments": json.dumps(arguments)}})
    assert call.fault.startswith(fault) and bool(call.fault) == bool(fault)
