"""Answers that are to be JSON: what a schema may be typed as, and whether an answer is what its schema says."""

import json
import re
from pathlib import Path

from v4cli import jsonfile, paths
from v4cli.chat import schemas
from v4cli.chat.requests import JSON_OBJECT
from v4cli.clean import on_one_line
from v4cli.errors import RequestError, UsageError, V4Error, hinted
from v4cli.files import contents, decoded
from v4cli.options import Format

ANY_OBJECT = {"type": "object"}
INSTALL = "pip install 'v4cli[grammar]'"
SCHEMA_BYTES = 1 << 20
FIELDS = {
    "str": "string", "string": "string", "text": "string", "int": "integer", "integer": "integer", "float": "number",
    "number": "number", "bool": "boolean", "boolean": "boolean", "list": "array",
}  # fmt: skip
_KIND = r"(?:\s+(?P<kind>\w+)(?:\s+of\s+(?P<item>\w+))?)?"
_FIELD = re.compile(rf"(?P<name>[A-Za-z_][\w-]*){_KIND}(?:\s*:\s*(?P<about>.+))?")
_NOTED = re.compile(rf"^([\w-]+)\s*:\s*({'|'.join(FIELDS)}|list of \w+)$")  # "age: int", as Python has it
EXAMPLE = "--schema 'name, age int, tags list'"


def wanted(format_: str | None, schema: str | None) -> Format | None:
    """What --format and --schema mean; None: the answer is text. UsageError."""
    if format_ and schema:
        raise UsageError("--format and --schema exclude each other", "drop --format, a schema is for JSON")
    if schema is None:
        return Format(ANY_OBJECT, "--format") if format_ else None
    return Format(schema_of(schema), "--schema", strict=True)


def schema_of(text: str) -> dict:
    """The schema that a text is, names as a file, or lists as fields. UsageError names what is wrong with it."""
    with hinted(EXAMPLE):
        return _schema_of(text.strip())


def _schema_of(text: str) -> dict:
    if text.startswith(("{", "[")):
        schema, at = jsonfile.parse(text, "--schema", RequestError), "--schema"
    elif text.endswith(".json") or "/" in text or Path(text).is_file():
        path = paths.expanded(text)
        at = f"--schema {text}"
        schema = jsonfile.parse(decoded(contents(path, SCHEMA_BYTES, UsageError), text), text, RequestError)
    else:
        return _of_fields(text)
    if not isinstance(schema, dict):
        raise RequestError(f'{at} must be an object, like {{"type": "object"}}')
    schemas.check_answer(schema, at)
    return schema


def _of_fields(text: str) -> dict:
    """An object of fields: "name, age int, tags list, born: the year"; of one on a line each, what is said of a field
    may have commas."""
    properties: dict[str, dict] = {}
    for part in filter(None, map(str.strip, text.split("\n" if "\n" in text else ","))):
        match = _FIELD.fullmatch(_NOTED.sub(r"\1 \2", part))
        kind = FIELDS.get(match["kind"] or "str") if match else None
        item = FIELDS.get(match["item"] or "str") if match else None
        if match is None or kind is None or item is None or item == "array" or (match["item"] and kind != "array"):
            raise UsageError(
                f"--schema: {on_one_line(part)[:60]!r} is no field; types are {', '.join(FIELDS)}, list of int", EXAMPLE
            )
        if match["name"] in properties:
            raise UsageError(f"--schema: the field {match['name']!r} is there twice", EXAMPLE)
        about = {"description": match["about"]} if match["about"] else {}
        items = {"items": {"type": item}} if kind == "array" else {}
        properties[match["name"]] = {"type": kind} | items | about
    if not properties:
        raise UsageError("--schema is empty", EXAMPLE)
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip


def asked_for(messages: list[dict], format_: Format) -> dict:
    """What of a request body tells the model of a format, in the words it was trained on."""
    if format_.schema != ANY_OBJECT:
        return {"response_format": {"type": "json_schema", "json_schema": {"schema": format_.schema}}}
    first = messages[0] if messages and messages[0]["role"] == "system" else {"role": "system", "content": ""}
    rest = messages[1:] if messages and first is messages[0] else messages
    return {"messages": [first | {"content": (first["content"] + JSON_OBJECT).lstrip("\n")}, *rest]}


def check_installed(name: str) -> None:
    """UsageError where what reads schemas is not installed; `name` needs it."""
    import importlib.util

    for package in ("llguidance", "jsonschema"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"{name} needs {package}", INSTALL)


def checked(text: str, format_: Format) -> object:
    """The value of an answer that is JSON by its schema. V4Error says where it is not."""
    try:
        value = jsonfile.parse(text, "the answer", UsageError)
    except UsageError as error:
        raise V4Error(f"the answer is no JSON ({str(error).removeprefix('the answer: ')})") from None
    import jsonschema

    kind = jsonschema.validators.validator_for(format_.schema, jsonschema.Draft202012Validator)
    try:
        fault = jsonschema.exceptions.best_match(kind(format_.schema).iter_errors(value))
    except Exception as error:  # of a schema whose references lead out of it, or round in circles
        raise V4Error(f"the answer cannot be checked by {format_.at} ({type(error).__name__})") from None
    if fault is not None:
        raise V4Error(f"the answer is not as {format_.at} says: {fault.json_path}: {on_one_line(fault.message)[:200]}")
    return value


def shown(format_: Format | None) -> str:
    """For people: what an answer must be."""
    if format_ is None:
        return "text"
    return "a JSON object" if format_.schema == ANY_OBJECT else f"JSON by {json.dumps(format_.schema)}"
