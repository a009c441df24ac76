"""Rules of a grammar for JSON values by their schemas: every value that a schema allows can be written, with the keys
of an object in any order. Of what narrows a schema, types, choices, keys, bounds of integers and lengths of lists do.

In llguidance's Lark. Its lexer takes the longest lexeme and never goes back: no lexeme may begin like another that
can stand in its place, unless what follows the shorter one cannot go on in the longer.
"""

import json
from collections.abc import Iterable
from functools import reduce

import llguidance

from v4cli.chat import schemas
from v4cli.chat.dsml import CLOSER

MAX_KEYS = 64  # of one object: a bit each in llguidance's parametric rules
MAX_ITEMS = 100  # longest list that is counted
MAX_INLINE = 32  # schemas that stand for one another
MAX_LENGTH = 200_000  # characters of rules

_SURROGATES = r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # only in pairs are they text
_ESCAPE = rf'\\["\\\/bfnrt]|\\u([0-9a-cA-CefEF][0-9a-fA-F]{{3}}|[dD][0-7][0-9a-fA-F]{{2}})|{_SURROGATES}'
_DIGITS = "(0|[1-9][0-9]*)"
COMMON = rf"""
any: STRING | other
other: NUMBER | "true" | "false" | "null" | array | object
array: "[" "]" | "[" any (COMMA any)* "]"
object: "{{" "}}" | "{{" STRING COLON any (COMMA STRING COLON any)* "}}"
COMMA: /, ?/
COLON: /: ?/
STRING: /"([^"\\\x00-\x1f]|{_ESCAPE})*"/ & ~/(?s:.*){CLOSER.replace("/", chr(92) + "/")}(?s:.*)/
NUMBER: /-?{_DIGITS}(\.[0-9]+)?([eE][+\-]?[0-9]+)?/
INTEGER: /-?{_DIGITS}/
"""

# How a value may be written, by its kind; texts for strings, None if any will do; rules for others.
Forms = dict[str, tuple[str, ...] | None]
ALL: Forms = {
    "string": None,
    "number": ("NUMBER",),
    "boolean": ('"true"', '"false"'),
    "null": ('"null"',),
    "array": ("array",),
    "object": ("object",),
}
_SHAPES_ARRAY = {"items", "prefixItems", "minItems", "maxItems"}
_SHAPES_OBJECT = {"properties", "required", "additionalProperties"}
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


class TooLarge(Exception):
    """A schema needs more rules than there may be."""


class Rules:
    """Rules for the schemas of one tool, `root`; their names begin with `prefix`."""

    def __init__(self, root: dict, prefix: str):
        self.root, self.prefix = root, prefix
        self.lines: list[str] = []
        self._length = self._count = 0
        self._names: dict[int, str] = {}  # of rules, by the id of their schema
        self._forms: dict[int, Forms] = {}
        self._todo: list[dict] = []

    def finish(self) -> list[str]:
        """All rules, those of nested schemas too. TooLarge."""
        while self._todo:
            schema = self._todo.pop()
            self.add(f"{self._names[id(schema)]}: {self.written(self.forms(schema))}")
        return self.lines

    def add(self, line: str) -> None:
        self.lines.append(line)
        self._length += len(line)
        if self._length > MAX_LENGTH:
            raise TooLarge

    def name(self, kind: str) -> str:
        """A new one; terminals are in capitals."""
        self._count += 1
        return f"{self.prefix}{kind}{self._count}" if kind.islower() else f"{self.prefix.upper()}{kind}{self._count}"

    def written(self, forms: Forms) -> str:
        """Alternatives for a value as JSON; what is written in one way only makes one terminal."""
        texts = forms.get("string", ())
        rules = [rule for kind in forms if kind != "string" for rule in forms[kind]]
        fixed = [rule for rule in rules if rule.startswith('"')] + [quoted(_literal(text)) for text in texts or ()]
        rules = [rule for rule in rules if not rule.startswith('"')] + (["STRING"] if texts is None else [])
        if fixed:
            rules.append(self.name("E"))
            self.add(f"{rules[-1]}: {' | '.join(fixed)}")
        return " | ".join(rules)

    def forms(self, schema, above: tuple[int, ...] = ()) -> Forms:
        """How its values may be written. What contradicts itself, or goes in circles, may be anything."""
        if not isinstance(schema, dict) or id(schema) in above or len(above) > MAX_INLINE:
            return ALL
        if id(schema) not in self._forms:
            self._forms[id(schema)] = self._new_forms(schema, (*above, id(schema)))
        return self._forms[id(schema)]

    def _new_forms(self, schema: dict, above: tuple[int, ...]) -> Forms:
        if "$ref" in schema:
            forms = self.forms(schemas.referred(self.root, schema["$ref"]), above)
        else:
            forms = self._unreferred(schema, above)
        if schema.get("nullable") is True:
            forms = _either(forms, {"null": ALL["null"]})
        return forms or ALL

    def _unreferred(self, schema: dict, above: tuple[int, ...]) -> Forms:
        """The same of a schema without `$ref`, and without its `nullable`; none if it contradicts itself."""
        parts = [self._own(schema)]
        if "const" in schema or schema.get("enum"):
            parts.append(_choices([schema["const"]] if "const" in schema else schema["enum"]))
        for key in ("anyOf", "oneOf"):
            branches = [self.forms(branch, above) for branch in schema.get(key, ()) if branch is not False]
            parts += [reduce(_either, branches)] if branches else []
        parts += [self.forms(branch, above) for branch in schema.get("allOf", ())]
        return reduce(_both, parts)

    def _own(self, schema: dict) -> Forms:
        """By type and by what that type may have."""
        kinds = schemas.kinds(schema) or schemas.TYPES
        forms = {kind: ALL[kind] for kind in dict.fromkeys("number" if k == "integer" else k for k in kinds)}
        if "number" in forms:
            forms["number"] = _number(schema, is_integer="number" not in kinds)
        if "array" in forms and _SHAPES_ARRAY & schema.keys():
            forms["array"] = (self._array(schema),)
        if "object" in forms and _SHAPES_OBJECT & schema.keys():
            forms["object"] = (self._object(schema),)
        return forms

    def _rule(self, schema) -> str:
        """The name of the rule for values of a schema, written by `finish`."""
        if not isinstance(schema, dict):
            return "any"
        if id(schema) not in self._names:
            self._names[id(schema)] = self.name("v")
            self._todo.append(schema)
        return self._names[id(schema)]

    def _array(self, schema: dict) -> str:
        items = schema.get("items", True)
        item = "any" if "prefixItems" in schema else self._rule(items)
        least, most = schema.get("minItems", 0), schema.get("maxItems", MAX_ITEMS + 1)
        least = int(least) if 0 <= least <= MAX_ITEMS else 0
        name = self.name("a")
        if most == 0:
            self.add(f'{name}: "[" "]"')
            return name
        more = f"(COMMA {item}){{{max(least - 1, 0)},{int(most) - 1}}}"
        if not max(least, 1) <= most <= MAX_ITEMS:
            more = f"(COMMA {item}){{{max(least - 1, 0)}}} (COMMA {item})*" if least > 1 else f"(COMMA {item})*"
        self.add(f'{name}: "[" {item} {more} "]"' + (' | "[" "]"' if least == 0 else ""))
        return name

    def _object(self, schema: dict) -> str:
        required = list(dict.fromkeys(schema.get("required", ())))
        declared = {key: True for key in required} | schema.get("properties", {})
        declared = {key: value for key, value in declared.items() if value is not False or key in required}
        others = "patternProperties" in schema or schema.get("additionalProperties", True)
        if len(declared) > MAX_KEYS or (not declared and others in (True, {})):
            return "object"
        keys = {key: quoted(_literal(key)) for key in declared}
        members = [(f"{keys[key]} COLON {self._rule(declared[key])}", bit) for bit, key in enumerate(keys)]
        if others is not False:
            members.append((f"{self._other_key(keys.values())} COLON {self._rule(others)}", None))
        name, later = self.name("o"), [(f"COMMA {member}", bit) for member, bit in members]
        more = self.each_once(f"{name}m", '"}"', later, len(required))
        first = self.each_once(f"{name}f", '"}"', members, len(required), more)
        self.add(f'{name}: "{{" {first}')
        return name

    def each_once(self, name: str, end: str, members: list[tuple[str, int | None]], n_required: int, then="") -> str:
        """The start of members in any order, those with a bit once at most, up to `end`, which must wait for the bits
        below `n_required`; after the first member comes `then`."""
        is_counted = any(bit is not None for _, bit in members)
        then = (then or name).partition("::")[0]
        lines = [end + (f" %if is_ones([0:{n_required}])" if n_required else "")]
        for member, bit in members:
            counted = f"::set_bit({bit}) %if bit_clear({bit})" if bit is not None else "::_"
            lines.append(f"{member} {then}" + (counted if is_counted else ""))
        self.add(name + ("::_: " if is_counted else ": ") + "\n  | ".join(lines))
        return name + ("::0" if is_counted else "")

    def _other_key(self, keys: Iterable[str]) -> str:
        """Any key of an object but these."""
        if not (known := " | ".join(keys)):
            return "STRING"
        self.add(f"{(name := self.name('K'))}: STRING & ~({known})")
        return name


def _choices(values: list) -> Forms:
    """The forms of these values. Of arrays and objects, any will do."""
    forms: dict[str, dict] = {}
    for value in values:
        if isinstance(value, str):
            kind, new = "string", (value,)
        elif value is None or isinstance(value, bool):
            kind, new = "null" if value is None else "boolean", (quoted(json.dumps(value)),)
        elif isinstance(value, (int, float)):
            whole = [int(value)] if value == int(value) else []
            kind, new = "number", (quoted(json.dumps(number)) for number in (value, *whole))
        else:
            kind = "array" if isinstance(value, list) else "object"
            new = ALL[kind]
        forms.setdefault(kind, {}).update(dict.fromkeys(new))
    return {kind: tuple(found) for kind, found in forms.items()}


def _number(schema: dict, is_integer: bool) -> tuple[str, ...]:
    """Numbers; whole ones between their bounds, if llguidance can tell them. Of others it does not know exponents."""
    if not is_integer:
        return ALL["number"]
    bounds = {key: schema[key] for key in _BOUNDS if isinstance(schema.get(key), (int, float))}
    bounds = {key: value for key, value in bounds.items() if not isinstance(value, bool)}
    text = json.dumps({"type": "integer", **bounds})
    wrong = llguidance.LLMatcher.validate_grammar(llguidance.LLMatcher.grammar_from_json_schema(text))
    return ("INTEGER",) if wrong or not bounds else (f"%json {text}",)


def _either(a: Forms, b: Forms) -> Forms:
    """What has one of two forms."""
    forms = a | b
    for kind in a.keys() & b.keys():
        is_any = ALL[kind] in (a[kind], b[kind])
        forms[kind] = ALL[kind] if is_any else tuple(dict.fromkeys((*a[kind], *b[kind])))
    return forms


def _both(a: Forms, b: Forms) -> Forms:
    """At least what has both forms: where both say something of a kind, what the second says."""
    return {kind: a[kind] if b[kind] == ALL[kind] else b[kind] for kind in a if kind in b}


def _literal(text: str) -> str:
    """A string as JSON in which no closing tag can be read."""
    return json.dumps(text, ensure_ascii=False).replace(CLOSER, CLOSER.replace("<", "\\u003c"))


def quoted(text: str) -> str:
    """A text as it stands in a grammar."""
    return json.dumps(text)
