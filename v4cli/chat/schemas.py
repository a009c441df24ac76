"""JSON schemas of tools: whether one is a schema, and which parameters it gives a call.

What is not known here allows everything, as does a reference that leads nowhere. Beside `$ref` only `nullable`
counts: drafts up to 7 ignore what stands there, and to later ones it only narrows further.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote

from v4cli.clean import visible
from v4cli.errors import RequestError

TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
# Keywords that have no say in which parameters there are, as have none that begin with "x-".
_QUIET = {
    "$anchor", "$comment", "$defs", "$id", "$schema", "$vocabulary", "default", "definitions", "dependentRequired",
    "deprecated", "description", "example", "examples", "id", "maxProperties", "minProperties", "not", "nullable",
    "propertyNames", "readOnly", "strict", "title", "type", "writeOnly",
}  # fmt: skip

_SCHEMA = ("additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then",
           "unevaluatedItems", "unevaluatedProperties")  # fmt: skip
_SCHEMAS = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_BY_NAME = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
PASSES = 64  # over all schemas of one, after which it is believed to have an end
_NUMBERS = ("maximum", "minimum", "maxItems", "minItems")


@dataclass(frozen=True)
class Parameters:
    """What a call may be given: schemas by name, the names that it must be given, and the schema of any others;
    False if there are no others."""

    declared: dict
    required: tuple[str, ...]
    others: dict | bool


def parameters(root: dict | None) -> Parameters:
    """Of a tool's checked schema. Where it lists properties and says nothing of others, there are no others."""
    if root is None:
        return Parameters({}, (), False)
    schema, seen, more = root, set(), False
    while isinstance(schema, dict) and "$ref" in schema:
        more = more or _may_bring_more(schema.keys() - {"$ref"})
        seen.add(id(schema))
        schema = referred(root, schema["$ref"])
        if id(schema) in seen:
            schema = True
    if not isinstance(schema, dict):
        return Parameters({}, (), True)
    required, listed = tuple(dict.fromkeys(schema.get("required", ()))), schema.get("properties", {})
    declared = {key: value for key, value in listed.items() if value is not False}
    declared |= {key: True for key in required if key not in declared}
    more = more or _may_bring_more(schema.keys() - {"additionalProperties", "properties", "required"})
    return Parameters(declared, required, more or schema.get("additionalProperties", "properties" not in schema))


def _may_bring_more(keywords: Iterable[str]) -> bool:
    """Whether these may have a say in which parameters there are."""
    return any(key not in _QUIET and not key.startswith("x-") for key in keywords)


def kinds(schema: dict | bool) -> list[str]:
    """The types that a checked schema names; empty if it may have any."""
    if not isinstance(schema, dict) or "$ref" in schema or "type" not in schema:
        return []
    return [*_listed(schema["type"]), *(["null"] if schema.get("nullable") is True else [])]


def referred(root: dict, reference: str) -> dict | bool:
    """The schema that a reference within `root` leads to; True, which allows all, if it leads to none."""
    place = root
    if not reference.startswith("#") or reference[1:2] not in ("", "/"):
        return True
    for step in reference.split("/")[1:]:
        step = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(place, list) and step.isdecimal() and step.isascii() and int(step[:9]) < len(place):
            place = place[int(step[:9])]
        elif isinstance(place, dict) and step in place:
            place = place[step]
        else:
            return True
    return place if isinstance(place, dict) else True


def check(root, at: str) -> None:
    """RequestError names the first keyword of a tool's parameters that has no meaning as it stands."""
    if not isinstance(root, dict):
        raise RequestError(f"{at} must be an object")
    if "object" not in _listed(root.get("type", "object")):
        raise RequestError(f'{at}.type must be "object"')
    check_answer(root, at)


def check_answer(root: dict, at: str) -> None:
    """The same of the schema of an answer, which may be of any type."""
    for schema, at_schema in places(root, at):
        if not isinstance(schema, dict):
            raise RequestError(f"{at_schema} must be a schema: an object, true or false")
        _check_values(schema, at_schema)


def check_end(root: dict, at: str) -> None:
    """RequestError for a checked schema that only a value without end would fit, since it asks for itself."""
    found, ending = [schema for schema, _ in places(root, at) if isinstance(schema, dict)], set()
    for _ in range(PASSES):
        more = {id(schema) for schema in reversed(found) if _ends(root, schema, ending)} - ending
        ending |= more
        if id(root) in ending:
            return
        if not more:
            raise RequestError(f"{at}: no value fits it, since every one would have to hold another such value")


def _ends(root: dict, schema: dict, ending: set[int]) -> bool:
    """Whether a value fits that has an end, if one fits those that are known to be `ending`."""

    def ends(inner: object) -> bool:
        return not isinstance(inner, dict) or id(inner) in ending

    if "$ref" in schema:
        return ends(referred(root, schema["$ref"]))
    any_of = (schema[key] for key in ("anyOf", "oneOf") if schema.get(key))
    if not all(map(ends, schema.get("allOf", ()))) or not all(any(map(ends, some)) for some in any_of):
        return False
    types, listed = _listed(schema.get("type", TYPES[0])), schema.get("properties", {})
    if "type" not in schema or "enum" in schema or "const" in schema or set(types) - {"array", "object"}:
        return True
    if "object" in types and all(ends(listed.get(name)) for name in schema.get("required", ())):
        return True
    items = schema.get("items")
    return "array" in types and (schema.get("minItems", 0) < 1 or isinstance(items, list) or ends(items))


def places(root: dict, at: str) -> Iterator[tuple[object, str]]:
    """All schemas of one, each once and with its place, but for those that are true or false."""
    todo, seen = [(root, at)], set()
    while todo:
        schema, at_schema = todo.pop()
        if isinstance(schema, bool) or id(schema) in seen:
            continue
        seen.add(id(schema))
        yield schema, at_schema
        todo += reversed(list(_within(schema, at_schema)))
        if "$ref" in schema:
            todo.append((referred(root, schema["$ref"]), f"{at}: {shown(schema['$ref'])}"))


def _check_values(schema: dict, at: str) -> None:
    """The keywords that hold no schemas."""
    types = _listed(schema.get("type", TYPES[0]))
    if not types or not all(isinstance(kind, str) and kind in TYPES for kind in types):
        raise RequestError(f"{at}.type must be one of {', '.join(TYPES)}, or a list of them")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
        raise RequestError(f"{at}.required must be a list of names")
    if not isinstance(schema.get("enum", []), list):
        raise RequestError(f"{at}.enum must be a list")
    if not isinstance(schema.get("$ref", ""), str):
        raise RequestError(f"{at}.$ref must be text")
    for key in _NUMBERS:
        if isinstance(schema.get(key, 0), bool) or not isinstance(schema.get(key, 0), (int, float)):
            raise RequestError(f"{at}.{key} must be a number")


def _within(schema: dict, at: str) -> Iterator[tuple[object, str]]:
    """The schemas inside of one, each with its place."""
    for key in _BY_NAME:
        if not isinstance(schema.get(key, {}), dict):
            raise RequestError(f"{at}.{key} must be an object of schemas")
        for name, inner in schema.get(key, {}).items():
            yield inner, f"{at}.{key}.{shown(name)}"
    for key in _SCHEMAS:
        if key in schema and key not in _SCHEMA and not isinstance(schema[key], list):
            raise RequestError(f"{at}.{key} must be a list of schemas")
        if isinstance(schema.get(key), list):
            for i, inner in enumerate(schema[key]):
                yield inner, f"{at}.{key}[{i}]"
    for key in _SCHEMA:
        if key in schema and not (key in _SCHEMAS and isinstance(schema[key], list)):
            yield schema[key], f"{at}.{key}"


def shown(name: str) -> str:
    """A name of the tools' authors, in a line for the user."""
    return visible(" ".join(name[:60].split()))


def _listed(types) -> list:
    return types if isinstance(types, list) else [types]
