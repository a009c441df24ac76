"""Schemas of answers that only a value without end would fit."""

import pytest

from v4cli.chat.schemas import check_answer, check_end
from v4cli.errors import RequestError

WITHIN = {"type": "object", "properties": {"child": {"$ref": "#"}}, "required": ["child"]}
ENDLESS = [
    {"$ref": "#"},
    WITHIN,
    {"allOf": [{"$ref": "#"}]},
    {
        "anyOf": [{"$ref": "#"}, {"$ref": "#/$defs/a"}],
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
    },
    {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    {
        "type": ["object", "array"],
        "required": ["a"],
        "properties": {"a": {"$ref": "#"}},
        "items": WITHIN,
        "minItems": 2,
    },
]


@pytest.mark.parametrize("schema", ENDLESS)
def test_a_schema_that_asks_for_itself_without_end_is_refused(schema):
    check_answer(schema, "s")
    with pytest.raises(RequestError, match=r"^s: no value fits"):
        check_end(schema, "s")


@pytest.mark.parametrize(
    "schema",
    [
        {}, {"type": "object"}, {"$ref": "#/nowhere"}, {"$ref": "elsewhere"}, {"enum": [1]}, WITHIN | {"required": []},
        {"type": "array", "items": {"$ref": "#"}},
        {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"type": "string"}}},
        {"type": ["object", "null"], "properties": {"child": {"$ref": "#"}}, "required": ["child"]},
    ],
)  # fmt: skip
def test_a_schema_that_can_end_is_none_of_these(schema):
    check_answer(schema, "s")
    check_end(schema, "s")
