"""Answers of nano in every dialect, over a real port."""

import json

import numpy as np
import pytest

from v4cli.chat import loops
from v4cli.serve.outbox import Outbox

HELLO = "Hello, who are you?"
SUM = "What is 17*23?"
PARAMETERS = {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}
ABOUT = {"name": "calculator", "description": "Evaluate an arithmetic expression"}


def chat(text, **more):
    return "/v1/chat/completions", {
        "model": "nano", "messages": [{"role": "user", "content": text}], "thinking": {"type": "disabled"}, **more,
    }  # fmt: skip


def messages(text, **more):
    return "/v1/messages", {"model": "nano", "max_tokens": 200, "messages": [{"role": "user", "content": text}], **more}


def responses(text, **more):
    return "/v1/responses", {"model": "nano", "input": text, "reasoning": {"effort": "none"}, **more}


LIMITS = {chat: "max_tokens", messages: "max_tokens", responses: "max_output_tokens"}


def with_tool(request):
    path, body = request
    if "messages" in path:
        tool: dict = {**ABOUT, "input_schema": PARAMETERS}
    elif "chat" in path:
        tool = {"type": "function", "function": {**ABOUT, "parameters": PARAMETERS}}
    else:
        tool = {"type": "function", **ABOUT, "parameters": PARAMETERS}
    return path, body | {"tools": [tool]}


def post(http, request, **more):
    path, body = request
    reply = http.post(path, json=body | more)
    assert reply.status_code == 200, reply.text
    return reply


def data_of(reply) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_three_dialects_say_the_same(server):
    text = post(server.http, chat(HELLO)).json()["choices"][0]["message"]["content"]
    assert text
    assert post(server.http, messages(HELLO)).json()["content"][0]["text"] == text
    assert post(server.http, responses(HELLO)).json()["output"][0]["content"][0]["text"] == text


@pytest.mark.parametrize("dialect", [chat, messages, responses])
def test_a_stream_says_what_the_whole_answer_says(server, dialect):
    whole = post(server.http, dialect(HELLO)).json()
    stream = post(server.http, dialect(HELLO), stream=True)
    assert stream.headers["content-type"].startswith("text/event-stream")
    text = json.dumps(whole)
    pieces = [e.get("delta") or (e.get("choices") or [{}])[0].get("delta") for e in data_of(stream)]
    said = "".join(p if isinstance(p, str) else p.get("text") or p.get("content") or "" for p in pieces if p)
    assert said and said in text


@pytest.mark.parametrize("dialect", [chat, messages, responses])
def test_the_calculator_is_called(server, dialect):
    whole = post(server.http, with_tool(dialect(SUM))).json()
    if dialect is chat:
        call = whole["choices"][0]["message"]["tool_calls"][0]
        name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
        assert whole["choices"][0]["finish_reason"] == "tool_calls"
    elif dialect is messages:
        block = whole["content"][-1]
        name, arguments = block["name"], block["input"]
        assert whole["stop_reason"] == "tool_use"
    else:
        item = whole["output"][-1]
        name, arguments = item["name"], json.loads(item["arguments"])
    assert name == "calculator" and "17" in arguments["expression"]


def test_tool_choice(server):
    tool = {"type": "function", "function": {"name": "calculator"}}
    for choice, calls in (("none", False), ("required", True), (tool, True)):
        for thinking in ("enabled", "disabled"):
            request = with_tool(chat(SUM if choice == "none" else HELLO))
            more = {"tool_choice": choice, "max_tokens": 200, "thinking": {"type": thinking}}
            its = post(server.http, request, **more).json()["choices"][0]
            assert bool(its["message"].get("tool_calls")) == calls or its["finish_reason"] == "length"


def test_json_follows_its_schema(server):
    schema = {
        "type": "object",
        "properties": {"on": {"type": "boolean"}},
        "required": ["on"],
        "additionalProperties": False,
    }
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    whole = post(server.http, chat("Is it on?"), response_format=format_, max_tokens=64).json()["choices"][0]
    assert whole["finish_reason"] == "stop" and type(json.loads(whole["message"]["content"])["on"]) is bool


def test_a_schema_that_is_none_is_refused(server):
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
    path, body = chat("Is it on?", response_format=format_)
    reply = server.http.post(path, json=body)
    assert reply.status_code == 400 and "response_format" in reply.json()["error"]["message"]


def test_choices_seeds_and_logprobs(server):
    more = {"n": 2, "seed": 7, "temperature": 1.8, "max_tokens": 20, "logprobs": True, "top_logprobs": 2}
    first, second = (post(server.http, chat(HELLO), **more).json() for _ in range(2))
    texts = [[choice["message"]["content"] for choice in its["choices"]] for its in (first, second)]
    assert texts[0] == texts[1] and texts[0][0] != texts[0][1]
    entries = first["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode("utf-8", "replace").startswith(texts[0][0][:4])
    assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] <= 0 for entry in entries)
    assert first["usage"]["completion_tokens"] >= len(entries)


def test_what_is_read_late_is_read_the_same(server, monkeypatch):
    """Text of several tokens is read in one piece, unless something depends on it: nothing more is sampled for that."""
    thinks = {"thinking": {"type": "enabled"}}
    requests = [chat(HELLO, temperature=3, seed=1, max_tokens=40, **thinks), with_tool(chat(SUM))]
    requests += [with_tool(chat(SUM, parallel_tool_calls=False, **thinks)), chat(HELLO, stop=["am"])]
    for request in requests:
        said = []
        for is_due in (True, False):
            monkeypatch.setattr(Outbox, "is_due", is_due)
            its = post(server.http, request).json()
            message = its["choices"][0]["message"]
            calls = [call["function"] for call in message.get("tool_calls", [])]
            text = message["content"], message.get("reasoning_content")
            said.append((text, calls, its["choices"][0]["finish_reason"], its["usage"]["completion_tokens"]))
        assert said[0] == said[1] and any(said[0][:2])


def test_stop_strings_are_named(server):
    text = post(server.http, messages(HELLO)).json()["content"][0]["text"]
    stop = " ".join(text.split()[2:4])
    whole = post(server.http, messages(HELLO), stop_sequences=["%never%", stop]).json()
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("stop_sequence", stop)
    assert whole["content"][0]["text"] == text[: text.index(stop)]


def test_an_answer_that_was_begun_is_gone_on_with(server):
    whole = post(server.http, chat(HELLO)).json()["choices"][0]["message"]["content"]
    start = whole[: len(whole) // 2].rsplit(" ", 1)[0]
    path, body = chat(HELLO)
    body["messages"].append({"role": "assistant", "content": start, "prefix": True})
    rest = post(server.http, (path, body)).json()["choices"][0]["message"]["content"]
    assert rest and not rest.startswith(start)


def test_count_tokens_counts_what_the_answer_counts(server):
    path, body = with_tool(messages(SUM, system="Be brief."))
    counted = post(server.http, (f"{path}/count_tokens?beta=true", body)).json()["input_tokens"]
    usage = post(server.http, (path, body), max_tokens=1).json()["usage"]
    assert counted == usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_completions_take_text_or_ids(server, nano):
    ids = [nano.tokenizer.bos_id, *nano.tokenizer.encode("Hello")]
    about = {"model": "nano", "max_tokens": 8, "temperature": 0, "logprobs": 2}
    texts = []
    for prompt in ("Hello", ids, [ids]):
        whole = post(server.http, ("/v1/completions", about | {"prompt": prompt})).json()
        assert whole["usage"]["prompt_tokens"] == len(ids)
        assert len(whole["choices"][0]["logprobs"]["tokens"]) == len(whole["choices"][0]["logprobs"]["token_logprobs"])
        texts.append(whole["choices"][0]["text"])
    assert len(set(texts)) == 1
    echoed = post(server.http, ("/v1/completions", about | {"prompt": "Hello", "echo": True})).json()
    assert echoed["choices"][0]["text"] == "Hello" + texts[0]


@pytest.mark.parametrize("dialect", [chat, messages, responses])
def test_an_answer_that_goes_round_in_circles_ends_as_at_a_limit(server, monkeypatch, dialect):
    for name, value in {"LENGTH": 32, "MOST": 2, "EVERY": 8}.items():
        monkeypatch.setattr(loops, name, value)
    its, only = server.service, np.zeros(server.service.served.config.vocab_size, bool)
    only[its.tokenizer.encode("the")[0]] = True
    its.constraints.of, its.stops_loops = lambda encoded: lambda tokens: only, True
    whole = post(server.http, dialect(HELLO), **{LIMITS[dialect]: 48}).json()
    ended = {"chat.completion": "length", "message": "max_tokens", "response": "incomplete"}
    assert ended[whole.get("object") or whole["type"]] in json.dumps(whole)
    usage = whole["usage"]
    assert (usage.get("output_tokens") or usage["completion_tokens"]) == 32
    assert [line for line in its.lines if "over and over" in line and "--loops keep" in line]
