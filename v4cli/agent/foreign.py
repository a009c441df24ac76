"""Names, descriptions and schemas that come from outside, made harmless: bounded, and free of hidden characters."""

import json
import re
import unicodedata

from v4cli.chat import schemas
from v4cli.errors import RequestError

MAX_NAME = 64
MAX_DESCRIPTION = 2000
MAX_SCHEMA = 20_000  # characters of JSON
MAX_DEPTH = 12
PROSE = ("$comment", "description", "title")  # keywords for readers


def name(*parts: str) -> str:
    """The parts joined by "__", of letters, digits, "_" and "-" only."""
    return "__".join(re.sub(r"[^A-Za-z0-9_-]", "_", part) or "_" for part in parts)[:MAX_NAME]


def text(value: str, limit: int = MAX_DESCRIPTION) -> str:
    """Without control, format (direction, zero width, tags), private and surrogate characters, and not too long."""
    seen = "".join(c for c in value[: 2 * limit] if c in "\n\t" or unicodedata.category(c)[0] != "C")
    return seen if len(seen) <= limit else seen[: limit - 1] + "…"


def parameters(schema) -> dict:
    """A tool's JSON schema, of the draft that it names, with harmless texts. ValueError says why it cannot be used."""
    import jsonschema

    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise ValueError("its parameters are not an object")
    clean = _clean(schema, MAX_DEPTH)
    if len(json.dumps(clean)) > MAX_SCHEMA:
        raise ValueError("its schema is too long")
    if not isinstance(clean.get("$schema", ""), str):
        raise ValueError("its schema does not say of which draft it is")
    try:
        jsonschema.validators.validator_for(clean, jsonschema.Draft202012Validator).check_schema(clean)
        schemas.check(clean, "parameters")
    except (jsonschema.SchemaError, RequestError) as error:
        raise ValueError(f"its schema is not valid ({text(getattr(error, 'message', str(error)), 80)})") from None
    bad = [key for key in schemas.parameters(clean).declared if not re.fullmatch(r"[^\s\"<>｜]{1,64}", key)]
    if bad:
        raise ValueError(f"it has a parameter with the name {text(bad[0], 40)!r}")
    return clean


def _clean(value, depth: int, prose: bool = False):
    """JSON without anything hidden: taken out of prose, not allowed in what a call may have to repeat."""
    if depth < 0:
        raise ValueError("its schema is nested too deeply")
    if isinstance(value, str):
        if text(value) != value and not prose:
            raise ValueError(f"its schema has hidden characters in {text(value, 40)!r}, or that is too long")
        return text(value)
    if isinstance(value, list):
        return [_clean(item, depth - 1, prose) for item in value]
    if isinstance(value, dict):
        return {_clean(key, depth): _clean(item, depth - 1, key in PROSE) for key, item in value.items()}
    return value
