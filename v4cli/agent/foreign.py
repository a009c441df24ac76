"""Names, descriptions and schemas that come from outside, made harmless: bounded, and free of hidden characters."""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from v4cli.chat import schemas
from v4cli.clean import visible
from v4cli.errors import RequestError

MAX_NAME = 64
MAX_DESCRIPTION = 2000
MAX_SCHEMA = 20_000  # characters of JSON
MAX_DEPTH = 32
HASH = 6  # hexadecimal digits
PROSE = {"title", "description", "$comment", "default", "examples"}  # keys of a schema whose texts decide nothing


def names(parts: Sequence[tuple[str, ...]]) -> list[str]:
    """A name for each, the parts joined by "__", of letters, digits, "_" and "-" only.

    Where these are the same for several, they get a hash of what they stand for, so that every start gives them the
    same names; but one that did not have to be changed keeps its own.
    """
    plain = ["__".join(re.sub(r"[^A-Za-z0-9_-]", "_", part) or "_" for part in of)[:MAX_NAME] for of in parts]
    n_all, n_exact = Counter(plain), Counter(name for name, of in zip(plain, parts) if name == "__".join(of))
    return [
        name if n_all[name] == 1 or (n_exact[name] == 1 and name == "__".join(of)) else _hashed(name, of)
        for name, of in zip(plain, parts)
    ]


def _hashed(name: str, parts: tuple[str, ...]) -> str:
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:HASH]
    return f"{name[: MAX_NAME - HASH - 1]}_{digest}"


def text(value: str, limit: int = MAX_DESCRIPTION) -> str:
    """Without control, format (direction, zero width, tags), private and surrogate characters and others that do not
    show, and not too long."""
    seen = "".join(
        c for c in value[: 2 * limit] if c in "\n\t" or (unicodedata.category(c)[0] != "C" and visible(c) == c)
    )
    return seen if len(seen) <= limit else seen[: limit - 1] + "…"


def parameters(schema) -> dict:
    """A tool's JSON schema, of the draft that it names, with harmless texts. ValueError says why it cannot be used."""
    import jsonschema

    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise ValueError("its parameters are not an object")
    clean = _clean(schema, MAX_DEPTH)
    if len(json.dumps(clean, allow_nan=False)) > MAX_SCHEMA:
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


def _clean(value, depth: int, is_prose: bool = False):
    """JSON with its descriptions cleaned. Names and values, which the server must be given as they are, are not
    changed: ValueError if they cannot be passed on."""
    if depth < 0:
        raise ValueError("its schema is nested too deeply")
    if isinstance(value, str):
        if not is_prose and text(value) != value:
            raise ValueError(f"there are hidden characters in its schema, or it is too long, at {text(value, 40)!r}")
        return text(value)
    if isinstance(value, list):
        return [_clean(item, depth - 1, is_prose) for item in value]
    if isinstance(value, dict):
        return {_clean(key, depth - 1): _clean(item, depth - 1, key in PROSE) for key, item in value.items()}
    return value
