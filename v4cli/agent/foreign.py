"""Names, descriptions and schemas that come from outside, made harmless: bounded, and free of hidden characters."""

import json
import re
import unicodedata

MAX_NAME = 64
MAX_DESCRIPTION = 2000
MAX_SCHEMA = 20_000  # characters of JSON
MAX_DEPTH = 12


def name(*parts: str) -> str:
    """The parts joined by "__", of letters, digits, "_" and "-" only."""
    return "__".join(re.sub(r"[^A-Za-z0-9_-]", "_", part) or "_" for part in parts)[:MAX_NAME]


def text(value: str, limit: int = MAX_DESCRIPTION) -> str:
    """Without control, format (direction, zero width, tags), private and surrogate characters, and not too long."""
    seen = "".join(c for c in value[: 2 * limit] if c in "\n\t" or unicodedata.category(c)[0] != "C")
    return seen if len(seen) <= limit else seen[: limit - 1] + "…"


def parameters(schema) -> dict:
    """A tool's JSON schema with harmless texts. ValueError says why it cannot be used."""
    import jsonschema

    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise ValueError("its parameters are not an object")
    clean = _clean(schema, MAX_DEPTH)
    if len(json.dumps(clean)) > MAX_SCHEMA:
        raise ValueError("its schema is too long")
    try:
        jsonschema.Draft202012Validator.check_schema(clean)
    except jsonschema.SchemaError as error:
        raise ValueError(f"its schema is not valid ({text(error.message, 80)})") from None
    bad = [key for key in clean.get("properties", {}) if not re.fullmatch(r"[^\s\"<>｜]{1,64}", key)]
    if bad:
        raise ValueError(f"it has a parameter with the name {text(bad[0], 40)!r}")
    return clean


def _clean(value, depth: int):
    """JSON with all its texts cleaned, names of keys too."""
    if depth < 0:
        raise ValueError("its schema is nested too deeply")
    if isinstance(value, str):
        return text(value)
    if isinstance(value, list):
        return [_clean(item, depth - 1) for item in value]
    if isinstance(value, dict):
        return {text(key, 200): _clean(item, depth - 1) for key, item in value.items()}
    return value
