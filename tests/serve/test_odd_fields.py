"""Whatever stands in any field of a request, it is understood or refused: nothing else comes of it."""

import copy
import json
from collections.abc import Iterator

import pytest

from v4cli.errors import RequestError, UsageError
from v4cli.serve import chat_api, completions_api, messages_api, responses_input
from v4cli.serve.asked import MOST_STOPS
from v4cli.serve.http import parsed

TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
SAMPLED = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 3, "stream": False, "model": "nano"}
BODIES = {
    chat_api: SAMPLED
    | {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "assistant", "content": None, "reasoning_content": "r", "reasoning_details": [{"text": "x"}],
             "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "ok"},
            {"role": "user", "content": [{"type": "text", "text": "and"}]},
        ],
        "tools": [{"type": "function", "function": TOOL}], "tool_choice": {"function": {"name": "f"}},
        "max_tokens": 3, "max_completion_tokens": 3, "stop": ["z"], "n": 1, "logprobs": True, "top_logprobs": 2,
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}, "strict": False}},
        "parallel_tool_calls": True, "reasoning_effort": "low", "thinking": {"type": "enabled"},
        "reasoning": {"effort": "low"},
    },
    messages_api: SAMPLED
    | {
        "system": [{"type": "text", "text": "s"}],
        "messages": [
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "t", "signature": "s"}, {"type": "text", "text": "x"},
                {"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [], "is_error": 1}]},
        ],
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}, "type": "custom"}],
        "tool_choice": {"type": "tool", "name": "f"}, "max_tokens": 3, "stop_sequences": ["z"],
        "thinking": {"type": "enabled"},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    },
    responses_input: SAMPLED
    | {
        "instructions": "i",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "reasoning", "summary": [{"text": "s"}], "content": [{}], "encrypted_content": "v4r1.z"},
            {"type": "custom_tool_call", "call_id": "c", "name": "g", "input": "i", "namespace": "n"},
            {"type": "function_call_output", "call_id": "c", "output": "ok"},
        ],
        "tools": [
            {"type": "function"} | TOOL,
            {"type": "custom", "name": "g", "description": "d", "format": {"syntax": "lark", "definition": "d"}},
            {"type": "namespace", "name": "n", "tools": [{"type": "function"} | TOOL]},
        ],
        "tool_choice": {"type": "function", "name": "f"}, "max_output_tokens": 3,
        "reasoning": {"effort": "low"}, "text": {"format": {"type": "json_object"}}, "previous_response_id": None,
    },
    completions_api: SAMPLED
    | {"prompt": [1, 2], "max_tokens": 3, "n": 1, "logprobs": 2, "echo": False, "stop": "z", "return_token_ids": True,
       "structured_outputs": {"grammar": "start: /a/"}},
}  # fmt: skip
ODD = (
    None, True, -1, 1.5, 10**400, 1e308, "", "x", "\ud800", [], [None], [[1]], [{}], {}, {"type": ["a"], "name": {}},
    {"type": "function", "function": {"name": []}},
)  # fmt: skip


def places(value: object, at: tuple = ()) -> Iterator[tuple]:
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*at, key))


def replaced(body: dict, at: tuple, value: object) -> object:
    if not at:
        return value
    body = copy.deepcopy(body)
    inner = body
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return body


@pytest.mark.parametrize("dialect", BODIES, ids=lambda dialect: dialect.__name__.rsplit(".", 1)[-1])
def test_any_value_in_any_field_is_understood_or_refused(dialect, service):
    its, n_understood, n_refused = service(), 0, 0
    assert all(encoded.ids for encoded in its.encoded(dialect.read(BODIES[dialect])))
    for i, at in enumerate(places(BODIES[dialect])):
        for j, value in enumerate(ODD):
            try:
                asked = dialect.read(parsed(json.dumps(replaced(BODIES[dialect], at, value)).encode()))
                if (i + j) % 8 == 0:  # which takes longer
                    its.encoded(asked)
                n_understood += 1
            except (RequestError, UsageError) as error:
                assert str(error)
                n_refused += 1
    assert n_understood > 50 and n_refused > 50


@pytest.mark.parametrize("number", ("1e999", "-1e999", "NaN", "Infinity"))
def test_numbers_that_are_none_are_refused(number):
    with pytest.raises(RequestError, match="number"):
        parsed(b'{"temperature": %s}' % number.encode())


def test_a_mark_of_byte_order_before_the_body_does_not_matter():
    assert parsed(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(("dialect", "name"), [(chat_api, "stop"), (messages_api, "stop_sequences")])
def test_so_many_stop_strings_and_no_more(dialect, name):
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    assert len(dialect.read(body | {name: ["x"] * MOST_STOPS}).stop) == MOST_STOPS
    with pytest.raises(RequestError, match=name):
        dialect.read(body | {name: ["x"] * (MOST_STOPS + 1)})


@pytest.mark.parametrize("ids", [[-1], [5, 1024], [2**70]])
def test_tokens_that_are_none_are_refused_before_a_stream_begins(server, ids):
    body = {"model": "nano", "prompt": ids, "max_tokens": 1, "stream": True}
    reply = server.http.post("/v1/completions", json=body)
    assert reply.status_code == 400 and str(ids[-1]) in reply.json()["error"]["message"]


def test_text_that_is_no_text_is_named_by_its_place():
    with pytest.raises(RequestError, match=r"messages\[0\]\.content\[0\]\.text must be text"):
        chat_api.read({"messages": [{"role": "user", "content": [{"type": "text", "text": {}}]}]})
