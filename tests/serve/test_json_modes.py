"""Answers that have to be JSON: by hard schemas, in every dialect, streamed and not; and schemas that are none."""

import json

import pytest
from test_answers import chat, data_of, messages, post, responses

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

WORD = {"enum": ["red", "grün", "蓝", 'a "quote"', "back\\slash", "tab\t"]}
NODE = {
    "type": "object", "required": ["name", "children"], "additionalProperties": False,
    "properties": {"name": WORD, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1}},
}  # fmt: skip


POINT = {"$ref": "#/$defs/point"}


def thing(required=True, **properties) -> dict:
    names = list(properties)
    about = {"type": "object", "properties": properties, "additionalProperties": False}
    return about | ({"required": names} if required else {})


SCHEMAS = {
    "nested": thing(a=thing(b=thing(c=thing(d={"type": "boolean"}, e={"type": "null"})))),
    "enums": thing(color=WORD, size={"enum": [1, 2.5, "x", None, True]}, kind={"const": "thing"}),
    "refs": thing(a={"$ref": "#/$defs/line"}) | {"$defs": {"line": thing(a=POINT, b=POINT), "point": thing(x=WORD)}},
    "recursive": {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
    "arrays": thing(
        ns={"type": "array", "items": {"type": "integer", "minimum": -5, "maximum": 5}, "minItems": 2, "maxItems": 3},
        pair={"type": "array", "prefixItems": [{"type": "boolean"}, WORD], "items": False, "minItems": 2},
        empty={"type": "array", "maxItems": 0},
    ),
    "keys": thing(**{"ключ": {"type": "boolean"}, "a b": {"type": "boolean"}, 'q"q': {"type": "null"}, "😀": WORD}),
    "unions": thing(a={"anyOf": [{"type": "null"}, thing(x={"type": "boolean"})]}, b={"type": ["boolean", "null"]}),
    "others": thing(z={"type": "null"}) | {"patternProperties": {"^[a-c]$": WORD}, "maxProperties": 2},
    "patterns": thing(id={"type": "string", "pattern": "^[A-Z]{2}-[0-9]$"}, day={"type": "string", "format": "date"}),
    "optional": thing(required=False, a={"type": "boolean"}, b={"type": "boolean"}),
    "array": {"type": "array", "items": WORD, "minItems": 1, "maxItems": 3},
    "one of": {"oneOf": [thing(k={"const": "a"}, n={"type": "boolean"}), thing(k={"const": "b"})]},
    "strings": thing(s={"type": "string", "minLength": 2, "maxLength": 5}),
}  # fmt: skip
DIALECTS = {"chat": chat, "messages": messages, "responses": responses}


def asking(dialect: str, schema: dict | None, strict: bool | None = True, **more):
    """A request for JSON by a schema; None: any object."""
    path, body = DIALECTS[dialect]("Tell me anything, as JSON.", **more)
    format_ = {"type": "json_object"} if schema is None else {"type": "json_schema", "name": "x", "schema": schema}
    format_ |= {} if schema is None or strict is None else {"strict": strict}
    if dialect == "chat":
        inner = {key: value for key, value in format_.items() if key != "type"}
        body["response_format"] = format_ if schema is None else {"type": "json_schema", "json_schema": inner}
    elif dialect == "messages":
        body["output_format"] = format_
    else:
        body["text"] = {"format": format_}
    body[{"responses": "max_output_tokens"}.get(dialect, "max_tokens")] = 200
    return path, body


def text_of(dialect: str, whole: dict) -> tuple[str, str]:
    """What was said, and why it ended."""
    if dialect == "chat":
        its = whole["choices"][0]
        return its["message"]["content"], {"stop": "end"}.get(its["finish_reason"], its["finish_reason"])
    if dialect == "messages":
        text = "".join(block["text"] for block in whole["content"] if block["type"] == "text")
        return text, {"end_turn": "end"}.get(whole["stop_reason"], whole["stop_reason"])
    text = whole["output"][-1]["content"][0]["text"]
    return text, {"completed": "end"}.get(whole["status"], whole["status"])


def streamed(reply) -> str:
    said = ""
    for event in data_of(reply):
        delta = event.get("delta") or (event.get("choices") or [{}])[0].get("delta") or {}
        kind = event.get("type", "")
        if isinstance(delta, str):
            said += delta if kind == "response.output_text.delta" else ""
        else:
            said += delta.get("content") or delta.get("text") or ""
    return said


@pytest.mark.parametrize("name", SCHEMAS)
def test_answers_keep_to_their_schema(server, name):
    schema = SCHEMAS[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    texts, own = set(), list(DIALECTS)[list(SCHEMAS).index(name) % len(DIALECTS)]
    for dialect in DIALECTS if name == "nested" else (own,):  # which differ in their words, not in what is sampled
        request = asking(dialect, schema)
        text, end = text_of(dialect, post(server.http, request, temperature=0.0).json())
        assert end == "end" or name == "recursive", f"{dialect}: {text[:200]}"
        if end == "end":
            jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
        texts.add(text)
    assert len(texts) == 1
    assert streamed(post(server.http, asking(own, schema), temperature=0.0, stream=True)) == text
    text, end = text_of("chat", post(server.http, asking("chat", schema), temperature=2.0, seed=1).json())
    if end == "end":  # whatever the model would rather say
        jsonschema.validate(json.loads(text), schema)


def test_thinking_goes_before_json(server):
    request = asking("chat", SCHEMAS["nested"], thinking={"type": "enabled"})
    request[1]["max_tokens"] = 2000
    message = post(server.http, request, temperature=0.0).json()["choices"][0]["message"]
    jsonschema.validate(json.loads(message["content"]), SCHEMAS["nested"])


def test_any_object(server):
    for dialect in ("chat", "responses"):
        for seed in range(2):
            request = asking(dialect, None)
            text, end = text_of(dialect, post(server.http, request, temperature=1.0, seed=seed).json())
            try:
                assert isinstance(json.loads(text), dict)
            except json.JSONDecodeError as error:  # cut off: up to its end it is JSON
                assert end != "end" and (error.msg.startswith("Unterminated") or error.pos > len(text) - 6), text


def test_tools_with_a_schema_get_what_fits(server):
    schema = thing(color=WORD, on={"type": "boolean"}, n={"type": "array", "items": {"type": "boolean"}, "maxItems": 2})
    path, body = messages("Set it.", tools=[{"name": "set", "description": "", "input_schema": schema}])
    whole = post(server.http, (path, body), tool_choice={"type": "tool", "name": "set"}).json()
    assert whole["stop_reason"] == "tool_use"
    jsonschema.validate(whole["content"][-1]["input"], schema)
    tool = {"type": "function", "function": {"name": "set", "description": "", "parameters": schema}}
    choice = {"type": "function", "function": {"name": "set"}}
    events = data_of(post(server.http, chat("Set it.", tools=[tool], tool_choice=choice), stream=True))
    calls = [call for e in events for call in (e["choices"][0]["delta"].get("tool_calls") or ()) if e["choices"]]
    jsonschema.validate(json.loads("".join(call["function"]["arguments"] for call in calls)), schema)


WRONG = {  # schema, the place that the answer names
    "a type": (thing(a=thing(b={"type": "strin"})), "properties.a.properties.b.type"),
    "required": ({"type": "object", "required": "a"}, "required"),
    "properties": ({"type": "object", "properties": []}, "properties"),
    "items": (thing(a={"type": "array", "items": 5}), "properties.a.items"),
    "an enum": (thing(a={"enum": "red"}), "properties.a.enum"),
    "no choice": (thing(a={"enum": []}), ""),
    "a bound": (thing(a={"type": "integer", "minimum": "x"}), "properties.a.minimum"),
    "a pattern": (thing(a=thing(b={"type": "string", "pattern": "["})), "properties.a.properties.b"),
    "a reference": (thing(a={"$ref": "#/nowhere"}), "properties.a"),
    "another document": (thing(a={"$ref": "https://example.com/x.json"}), "properties.a"),
    "a contradiction": (thing(a={"type": "string", "minLength": 5, "maxLength": 2}), "properties.a"),
    "deep in definitions": ({"$ref": "#/$defs/n", "$defs": {"n": thing(x={"type": 5})}}, "$defs/n.properties.x.type"),
}
LEFT_OUT = {
    "not": (thing(a={"type": "boolean", "not": {"const": True}}), "properties.a.not"),
    "uniqueItems": (thing(a={"type": "array", "uniqueItems": True, "items": WORD, "maxItems": 1}), "a.uniqueItems"),
    "contains": (thing(a={"type": "array", "contains": WORD, "items": WORD, "maxItems": 2}), "properties.a.contains"),
    "a format": (thing(a={"type": "string", "format": "hue", "maxLength": 3}), "properties.a"),
}  # fmt: skip
AT = {
    "chat": "response_format.json_schema.schema",
    "messages": "output_format.schema",
    "responses": "text.format.schema",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_schema_that_is_none_is_named_by_its_place(server, name):
    schema, place = WRONG[name]
    for dialect, at in AT.items():
        for strict, stream in ((True, False), (False, True)):
            path, body = asking(dialect, schema, strict)
            reply = server.http.post(path, json=body | {"stream": stream})
            said = reply.json()["error"]["message"]
            assert reply.status_code == 400 and said.startswith(at), said
            assert place in said and len(said) < 500 and "\n" not in said, said


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_no_grammar_can_say_is_refused_where_strictness_was_asked_for(server, name):
    schema, place = LEFT_OUT[name]
    path, body = asking("chat", schema, True)
    reply = server.http.post(path, json=body)
    assert reply.status_code == 400 and place in reply.json()["error"]["message"]
    for strict in (False, None):
        whole = post(server.http, asking("chat", schema, strict), temperature=0.0).json()
        assert json.loads(text_of("chat", whole)[0]).keys() == {"a"}
    assert any(place in line for line in server.service.lines)
    assert (
        server.http.post(*[asking("messages", schema, None)[0]], json=asking("messages", schema, None)[1]).status_code
        == 400
    )


@pytest.mark.parametrize("wrong", ["json", 5, ["json_object"], {"type": "xml"}, {"type": "json_schema"},
                                   {"type": "json_schema", "json_schema": {"schema": []}},
                                   {"type": "json_schema", "json_schema": 5},
                                   {"type": "json_schema", "json_schema": {"schema": {}, "strict": 1}}])  # fmt: skip
def test_a_format_that_is_none_is_refused(server, wrong):
    path, body = chat("hello", response_format=wrong)
    reply = server.http.post(path, json=body)
    assert (reply.status_code == 400 and "response_format" in reply.text) or "strict" in reply.text


def test_a_grammar_that_allows_nothing_is_given_up_in_one_line(server):
    body = {"prompt": "Hello", "max_tokens": 6, "structured_outputs": {"grammar": "start: x\nx: x"}}
    assert post(server.http, ("/v1/completions", body)).json()["usage"]["completion_tokens"]
    (line,) = [line for line in server.service.lines if "given up" in line]
    assert "\n" not in line


@pytest.mark.parametrize("strict", [True, False])
def test_a_schema_that_nothing_fits_is_refused(server, strict):
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "strict": strict, "schema": {"$ref": "#"}}}
    path, body = chat("Hello", response_format=format_)
    reply = server.http.post(path, json=body)
    assert reply.status_code == 400 and "response_format.json_schema.schema: no value" in reply.text
