"""Fields that few clients send, and what strict ones want back."""

import gzip
import json

import pytest
from test_answers import HELLO, PARAMETERS, chat, responses

from v4cli.errors import RequestError
from v4cli.serve import chat_api, responses_input
from v4cli.serve.events import Call, Finish

USER = {"role": "user", "content": "x"}
NAMES = ("f", "g")


def asked_of_chat(mode, *names):
    allowed = [{"type": "function", "function": {"name": name}} for name in names]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": allowed}}
    tools = [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in NAMES]
    return chat_api.read({"messages": [USER], "tools": tools, "tool_choice": choice})


def asked_of_responses(mode, *names):
    choice = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": name} for name in names]}
    tools = [{"type": "function", "name": name, "parameters": PARAMETERS} for name in NAMES]
    return responses_input.read({"input": "x", "tools": tools, "tool_choice": choice})


@pytest.mark.parametrize("read", [asked_of_chat, asked_of_responses])
def test_only_tools_that_are_allowed_are_called(read):
    for mode in ("auto", "required"):
        asked = read(mode, "g", "unknown")
        assert [tool["function"]["name"] for tool in asked.tools] == ["g"]
        assert (asked.choice, asked.named) == (mode, None)
    assert not read("auto").tools
    with pytest.raises(RequestError, match="tool_choice"):
        read("required", "unknown")


@pytest.mark.parametrize(
    "said",
    [
        {"content": [{"type": "thinking", "thinking": "t", "signature": "s"}, {"type": "text", "text": "a"}]},
        {"content": [{"type": "reasoning", "text": "t"}, {"type": "text", "text": "a"}]},
        {"content": "a", "reasoning_details": [{"type": "reasoning.summary", "summary": "t"}]},
    ],
)
def test_reasoning_is_no_text_of_the_answer(said):
    body = {"messages": [USER, {"role": "assistant", **said}, USER]}
    assert chat_api.read(body).messages[1] == {"role": "assistant", "content": "a", "reasoning_content": "t"}


def test_a_call_from_before_there_were_tools_is_one():
    call = {"name": "f", "arguments": '{"a": 1}'}
    turns = [{"role": "assistant", "content": None, "function_call": call}, {"role": "function", "name": "f"}]
    said, result = chat_api.read({"messages": [USER, *turns]}).messages[1:]
    assert said["tool_calls"] == [{"id": "f", "type": "function", "function": call}]
    assert result["tool_call_id"] == "f"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_body_that_is_compressed_is_refused_as_such(server, path):
    content = gzip.compress(json.dumps(chat(HELLO, max_tokens=1)[1]).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    reply = server.http.post(path, content=content, headers=headers)
    assert reply.status_code == 415 and "compressed" in reply.json()["error"]["message"]
    path, body = chat(HELLO, max_tokens=1)
    assert server.http.post(path, json=body, headers={"content-encoding": "identity"}).status_code == 200


def test_either_of_two_keys_may_be_the_right_one(service, served):
    http = served(service(1), key="right")
    for one, other, status in (("right", "wrong", 200), ("wrong", "right", 200), ("wrong", "wrong", 401)):
        headers = {"x-api-key": one, "authorization": f"Bearer {other}"}
        assert http.get("/v1/models", headers=headers).status_code == status


def test_a_model_is_found_by_every_name_that_may_be_asked_for(server):
    for name in ("nano", "nano[1m]", "claude-haiku-4-5"):
        found = server.http.get(f"/v1/models/{name}").json()
        assert (found["id"], found["lifecycle"]) == ("nano", "active")
    for name in ("", "other", "../nano"):
        assert server.http.get(f"/v1/models/{name}").status_code == 404


def test_counters_are_told_with_all_their_digits(server):
    server.service.metrics.sampled = 123_456_789
    reply = server.http.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    told = dict(line.rsplit(" ", 1) for line in reply.text.splitlines() if not line.startswith("#"))
    assert told["v4_sampled_tokens_total"] == "123456789"
    assert float(told["v4_start_time_seconds"]) == server.service.metrics.start


def test_usage_of_responses_has_every_field(server):
    path, body = responses(HELLO, max_output_tokens=1)
    details = server.http.post(path, json=body).json()["usage"]["input_tokens_details"]
    assert details.keys() == {"cached_tokens", "cache_write_tokens"}


@pytest.mark.parametrize("wanted", [{"top_logprobs": 2}, {"include": ["message.output_text.logprobs"]}])
def test_responses_tells_how_likely_each_token_was(server, wanted):
    path, body = responses(HELLO, max_output_tokens=6, temperature=0, **wanted)
    part = server.http.post(path, json=body).json()["output"][0]["content"][0]
    entries = part["logprobs"]
    assert len(entries) == 6 and part["text"] == "".join(entry["token"] for entry in entries)
    assert all(len(entry["top_logprobs"]) == wanted.get("top_logprobs", 0) for entry in entries)
    told = server.http.post(path, json=body | {"stream": True}).text.split("data: ")[1:]
    events = [json.loads(text.partition("\n")[0]) for text in told]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [entry for event in deltas for entry in event["logprobs"]] == entries
    done = next(event for event in events if event["type"] == "response.output_text.done")
    assert (done["text"], done["logprobs"]) == (part["text"], entries)


def test_responses_tells_no_likelihood_unasked(server):
    path, body = responses(HELLO, max_output_tokens=2)
    assert server.http.post(path, json=body).json()["output"][0]["content"][0]["logprobs"] == []


def test_custom_tools_of_chat_are_called_with_text():
    tool = {"type": "custom", "custom": {"name": "patch", "description": "Edits.", "format": {
        "type": "grammar", "grammar": {"syntax": "lark", "definition": "start: /.+/"},
    }}}  # fmt: skip
    called = {"id": "c", "type": "custom", "custom": {"name": "patch", "input": "*** Begin"}}
    asked = chat_api.read({"messages": [USER, {"role": "assistant", "tool_calls": [called]}], "tools": [tool]})
    function = asked.tools[0]["function"]
    assert function["parameters"]["required"] == ["input"] and "start: /.+/" in function["description"]
    assert json.loads(asked.messages[1]["tool_calls"][0]["function"]["arguments"]) == {"input": "*** Begin"}
    machine = chat_api.ChatMachine(asked, "m", 3)
    machine.begin()
    [chunk] = machine.take(0, Call("c", "patch", '{"input": "*** Begin"}'))
    machine.take(0, Finish("tool_calls"))
    delta = json.loads(chunk.removeprefix("data: "))["choices"][0]["delta"]["tool_calls"]
    assert delta == [{"index": 0, **called}]
    assert machine.final()["choices"][0]["message"]["tool_calls"] == [called]


def test_each_of_several_choices_ends_at_a_stop_string(server):
    asked = {"model": "nano", "n": 3, "temperature": 0, "max_tokens": 40, "thinking": {"type": "disabled"}}
    asked["messages"] = [{"role": "user", "content": "Hello, who are you?"}]

    def choices(**more):
        return server.http.post("/v1/chat/completions", json=asked | more).json()["choices"]

    whole = choices()
    stop = whole[0]["message"]["content"][3:5]
    cut = choices(stop=stop)
    assert stop and [choice["index"] for choice in cut] == [0, 1, 2]
    for before, after in zip(whole, cut, strict=True):
        assert after["finish_reason"] == "stop"
        assert after["message"]["content"] == before["message"]["content"].partition(stop)[0]


@pytest.mark.parametrize("choice", [{"name": "g"}, "auto", "none", None])
def test_functions_of_before_there_were_tools(choice):
    functions = [{"name": name, "parameters": PARAMETERS} for name in NAMES]
    asked = chat_api.read({"messages": [USER], "functions": functions, "function_call": choice})
    assert [tool["function"]["name"] for tool in asked.tools] == ["f", "g"] and asked.one_call
    assert (asked.choice, asked.named) == (
        "none" if choice == "none" else "auto",
        "g" if choice == {"name": "g"} else None,
    )
    machine, call = chat_api.ChatMachine(asked, "m", 3), {"name": "g", "arguments": "{}"}
    machine.begin()
    [chunk], [last] = machine.take(0, Call("c", "g", "{}")), machine.take(0, Finish("tool_calls"))
    assert json.loads(chunk.removeprefix("data: "))["choices"][0]["delta"] == {"function_call": call}
    assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "function_call"
    [whole] = machine.final()["choices"]
    assert whole["message"]["function_call"] == call and "tool_calls" not in whole["message"]
    assert whole["finish_reason"] == "function_call"
    with pytest.raises(RequestError, match="functions"):
        chat_api.read({"messages": [USER], "functions": "f"})
