"""Random schemas under a grammar: what an independent validator finds valid can be called; there is always a way on."""

import random

import jsonschema
import numpy as np
import pytest
from test_tool_schemas import KEYS, TEXTS, of, stopped_at, tool

from v4cli.chat import schemas
from v4cli.chat.parser import StreamParser
from v4cli.chat.special import PromptBuilder

NUMBERS = (0, 1, -1, 5, 12, 99, 100, -7, 10**25, 0.5, -0.25, 1e-7)


def random_value(rng: random.Random, depth: int = 0):
    kind = rng.randrange(6 if depth < 3 else 4)
    if kind < 4:
        return (rng.choice(TEXTS), rng.choice(NUMBERS), rng.random() < 0.5, None)[kind]
    values = [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return values if kind == 4 else dict(zip(rng.sample(TEXTS, len(values)), values))


def random_schema(rng: random.Random, depth: int = 0):
    def inner():
        return random_schema(rng, depth + 1)

    kind = rng.random()
    if kind < 0.05:
        return rng.choice([True, {}, {"title": "t"}, {"unheardOf": [1]}])
    if kind < 0.12:
        return {"$ref": rng.choice(["#/$defs/d0", "#/$defs/d1", "#/definitions/e", "#"])}
    if kind < 0.22:
        return rng.choice([{"enum": [random_value(rng) for _ in range(3)]}, {"const": random_value(rng)}])
    if kind < 0.35 and depth < 3:
        some = {rng.choice(["anyOf", "oneOf", "allOf"]): [inner() for _ in range(rng.randrange(1, 4))]}
        return some | rng.choice([{}, {"type": rng.choice(schemas.TYPES)}, {"default": 1}])
    name = rng.choice(schemas.TYPES if depth < 3 else schemas.TYPES[1:5])
    schema = {"type": name} if rng.random() < 0.8 else {"type": sorted({name, rng.choice(schemas.TYPES)})}
    if name == "string":
        schema |= rng.choice(
            [{}, {"minLength": 2}, {"pattern": "a"}, {"format": "date"}, {"enum": rng.sample(TEXTS, 3)}]
        )
    elif name in ("integer", "number"):
        schema |= rng.choice([{}, {"minimum": 0}, {"exclusiveMinimum": -2, "maximum": 50}, {"multipleOf": 5}])
    elif name == "array":
        schema |= rng.choice([{}, {"items": inner()}, {"prefixItems": [inner()]}, {"contains": inner()}])
        schema |= rng.choice(
            [{}, {"maxItems": 2}, {"minItems": 1, "maxItems": 3}, {"maxItems": 0}, {"uniqueItems": True}]
        )
    elif name == "object":
        schema["properties"] = {key: inner() for key in rng.sample(KEYS, rng.randrange(4))}
        schema["required"] = rng.sample(list(schema["properties"]), len(schema["properties"]) // 2)
        schema |= rng.choice([{}, {"additionalProperties": False}, {"additionalProperties": inner()},
                              {"patternProperties": {"^a": inner()}}, {"minProperties": 1}])  # fmt: skip
    return schema


def random_root(rng: random.Random) -> dict:
    root = of(**{key: random_schema(rng) for key in rng.sample(KEYS, rng.randrange(1, 5))})
    root["required"] = rng.sample(list(root["properties"]), rng.randrange(2))
    root |= rng.choice([{}, {}, {"additionalProperties": random_schema(rng)}, {"not": {"required": ["b"]}},
                        {"patternProperties": {"^a": random_schema(rng)}}, {"anyOf": [of(z=random_schema(rng)), True]},
                        ])  # fmt: skip
    kept = {"$defs": {f"d{i}": random_schema(rng) for i in range(2)}, "definitions": {"e": random_schema(rng)}}
    if rng.random() < 0.2:
        return {rng.choice(["allOf", "anyOf"]): [root]} | kept
    if rng.random() < 0.2:
        return {"$ref": "#/$defs/root"} | kept | {"$defs": kept["$defs"] | {"root": root}}
    return root | kept


def aimed(rng: random.Random, schema, root: dict, depth: int = 0):
    """A value that may suit a schema."""
    if not isinstance(schema, dict) or depth > 6:
        return random_value(rng, min(depth, 3))
    if "$ref" in schema:
        return aimed(rng, schemas.referred(root, schema["$ref"]), root, depth + 1)
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else rng.choice(schema["enum"])
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema and "properties" not in schema:
            return aimed(rng, rng.choice(schema[key]), root, depth + 1)
    kind = rng.choice(schemas.kinds(schema) or schemas.TYPES)
    if kind == "array":
        return [aimed(rng, schema.get("items"), root, depth + 1) for _ in range(rng.randrange(4))]
    if kind == "object":
        given = {key: schema["properties"][key] for key in schema.get("properties", ())
                 if key in schema["required"] or rng.random() < 0.6}  # fmt: skip
        if rng.random() < 0.4:
            given.setdefault(rng.choice(KEYS), schema.get("additionalProperties"))
        keys = rng.sample(list(given), len(given))
        return {key: aimed(rng, given[key], root, depth + 1) for key in keys}
    choices = {"string": TEXTS, "integer": NUMBERS[:9], "number": NUMBERS, "boolean": (True, False), "null": (None,)}
    return rng.choice(choices[kind])


def valid_calls(rng: random.Random, schema: dict, n: int) -> list[dict]:
    """What a validator that knows nothing of ours accepts. Of a schema that lists its parameters, only those."""
    validator, has, calls = jsonschema.Draft202012Validator(schema), schemas.parameters(schema), []
    for _ in range(n):
        call = aimed(rng, {"type": "object", "properties": {}, "required": []} | schema, schema)
        if isinstance(call, dict) and has.others is False:
            call = {key: value for key, value in call.items() if key in has.declared}
        try:
            if isinstance(call, dict) and validator.is_valid(call):
                calls.append(call)
        except RecursionError:  # a schema that refers to itself only
            return []
    return calls


@pytest.mark.parametrize(
    "seeds", [range(80), pytest.param(range(80, 2000), marks=pytest.mark.slow)], ids=["80", "2000"]
)
def test_every_valid_call_of_random_schemas_is_accepted(guide, seeds):
    n_calls = n_given = 0
    for seed in seeds:
        rng = random.Random(seed)
        schema = random_root(rng)
        schemas.check(schema, "it")
        for call in valid_calls(rng, schema, 8):
            assert stopped_at(guide, [tool(schema)], call, rng.random() < 0.5) is None, (seed, schema, call)
            n_calls, n_given = n_calls + 1, n_given + len(call)
    assert guide.notes == [] and n_calls > 3 * len(seeds) and n_given > n_calls


@pytest.mark.parametrize(
    "seeds", [range(60), pytest.param(range(60, 1000), marks=pytest.mark.slow)], ids=["60", "1000"]
)
def test_there_is_always_a_token_to_go_on_with_and_the_end_parses(guide, seeds):
    tokenizer, opening, ended = guide.tokenizer, PromptBuilder(), 0
    opening.markup("\n\n<｜DSML｜")
    closers = [
        i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i)[:1] in tuple(b"%c" % c for c in b'<">}],/\n')
    ]
    for seed in seeds:
        rng = random.Random(seed)
        constraint = guide.constraint([tool(random_root(rng), name) for name in ("f", "f2")])
        tokens = tokenizer.encode_prompt(opening.build())
        while len(tokens) < 250 and tokens[-1] != tokenizer.eos_id:
            mask = constraint(tokens)
            assert mask is not None and mask.any(), (seed, tokenizer.decode(tokens), guide.notes)
            ends = [token for token in closers if mask[token]]
            if mask[guide.dsml] and rng.random() < 0.8:
                ends = [guide.dsml]
            anything = not ends or rng.random() < 0.3
            tokens.append(int(rng.choice(np.flatnonzero(mask))) if anything else rng.choice(ends))
        parser = StreamParser(False)
        parser.push(tokenizer.decode(tokens[:-1]))
        if parser.stopped:
            parser.finish()
            ended += 1
            assert not any(parser.faults), (seed, tokenizer.decode(tokens))
    assert ended > len(seeds) // 2
