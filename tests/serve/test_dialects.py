"""Typed events into each dialect: what is streamed is what the whole answer says, wherever it is cut."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v4cli.serve import asked as fields
from v4cli.serve.asked import Asked, ToolName
from v4cli.serve.chat_api import ChatMachine
from v4cli.serve.completions_api import CompletionsMachine
from v4cli.serve.events import Call, Failed, Finish, Text, Thinking, Usage
from v4cli.serve.messages_api import MessagesMachine
from v4cli.serve.responses_api import ResponsesMachine

ASKED = Asked(model="m", names={"patch": ToolName("patch", custom=True), "a__b": ToolName("b", "a")})
USAGE = Usage(prompt=9, cached=4, completion=5, reasoning=2)

words = st.text(min_size=1, max_size=5)
names = st.sampled_from(["tool", "a__b"])
answers = st.tuples(
    st.lists(st.builds(Thinking, words), max_size=3),
    st.lists(st.builds(Text, words), max_size=3),
    st.lists(st.builds(Call, st.uuids().map(str), names, st.just('{"x": "ü"}')), max_size=2, unique_by=lambda c: c.id),
    st.sampled_from(["stop", "length"]),
    st.sets(st.integers(0, 10)),
)


def played(machine, answer):
    """All events of the stream, heartbeats after some; and the whole answer."""
    thoughts, texts, calls, reason, beats = answer
    reason = "tool_calls" if calls and reason == "stop" else reason
    out = machine.begin()
    for i, event in enumerate([*thoughts, *texts, *calls, Finish(reason)]):
        out += machine.take(0, event) + (machine.beat() if i in beats else [])
    out += machine.end(USAGE)
    return read("".join(out)), machine.final()


def read(stream: str) -> list[dict]:
    """Data of the events of a stream; the name of each is its type."""
    events = []
    for block in stream.removesuffix("\n\n").split("\n\n"):
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        data = next((line.removeprefix("data: ") for line in lines if line.startswith("data: ")), None)
        if data and data != "[DONE]":
            events.append(json.loads(data))
            name = next((line.removeprefix("event: ") for line in lines if line.startswith("event: ")), None)
            assert name in (None, events[-1].get("type"))
    return events


def joined(events) -> str:
    return "".join(event.text for event in events)


@given(answers)
def test_chat(answer):
    chunks, whole = played(ChatMachine(ASKED, "m", 9, usage_asked_for=True), answer)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    message = whole["choices"][0]["message"]
    assert deltas[0]["role"] == "assistant" and len({chunk["id"] for chunk in chunks}) == 1
    assert "".join(delta.get("content") or "" for delta in deltas) == (message["content"] or "") == joined(answer[1])
    said = "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert said == message.get("reasoning_content", "") == joined(answer[0])
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert [call.pop("index") for call in calls] == list(range(len(answer[2])))
    assert calls == message.get("tool_calls", [])
    assert chunks[-1]["usage"] == whole["usage"] and chunks[-1]["usage"]["prompt_cache_miss_tokens"] == 5
    finishes = [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]]
    assert [finish for finish in finishes if finish] == [whole["choices"][0]["finish_reason"]]


@given(answers)
def test_messages(answer):
    stream, whole = played(MessagesMachine(ASKED, "m", 9), answer)
    stream = [event for event in stream if event["type"] != "ping"]
    blocks = []
    for event in stream[1:-2]:
        if event["type"] == "content_block_start":
            blocks.append(event["content_block"] | {"open": True, "json": ""})
            assert event["index"] == len(blocks) - 1
        elif event["type"] == "content_block_stop":
            blocks[-1]["open"] = False
        else:
            assert blocks[-1]["open"] and event["index"] == len(blocks) - 1
            for key, text in event["delta"].items():
                into = "json" if key == "partial_json" else key
                blocks[-1][into] = event["delta"]["type"] if key == "type" else blocks[-1].get(into, "") + text
    for block, final in zip(blocks, whole["content"], strict=True):
        for key in ("text", "thinking", "signature"):
            assert block.get(key) == final.get(key)
        assert json.loads(block["json"] or "{}") == final.get("input", {})
        assert final["type"] != "thinking" or final["signature"]
    assert stream[-2]["delta"]["stop_reason"] == whole["stop_reason"] and stream[-1]["type"] == "message_stop"
    assert stream[-2]["usage"] == whole["usage"]
    assert (whole["stop_reason"] == "tool_use") == (bool(answer[2]) and answer[3] == "stop")


@given(answers, st.booleans())
def test_responses(answer, sums_up):
    body = {"reasoning": {"summary": "auto"} if sums_up else None, "include": ["reasoning.encrypted_content"]}
    stream, whole = played(ResponsesMachine(ASKED, "m", 9, body), answer)
    assert [event["sequence_number"] for event in stream] == list(range(len(stream)))
    items = []
    for event in stream:
        if event["type"] == "response.output_item.done":
            items.append(event["item"])
        elif event["type"] == "response.in_progress":
            assert all(shown["id"] == item["id"] for shown, item in zip(event["response"]["output"], items))
    assert items == whole["output"] == stream[-1]["response"]["output"]
    assert stream[-1]["type"] == f"response.{whole['status']}"
    assert whole["status"] == ("incomplete" if answer[3] == "length" else "completed")
    texts = [item["content"][0]["text"] for item in items if item["type"] == "message"]
    assert "".join(texts) == joined(answer[1])
    for item in items:
        if item["type"] == "reasoning":
            assert item["content"][0]["text"] == joined(answer[0]) and item["encrypted_content"]
            assert bool(item["summary"]) == sums_up


@given(answers)
def test_completions(answer):
    chunks, whole = played(CompletionsMachine(ASKED, "m", [range(9)]), (*[[], answer[1], []], *answer[3:]))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"] == joined(answer[1])


def test_custom_and_namespaced_calls_are_told_as_the_client_knows_them():
    machine = ResponsesMachine(ASKED, "m", 9, {})
    machine.begin()
    machine.take(0, Call("1", "patch", '{"input": "*** Begin"}'))
    machine.take(0, Call("2", "a__b", "{}"))
    machine.take(0, Finish("tool_calls"))
    machine.end(USAGE)
    custom, spaced = machine.final()["output"]
    assert (custom["type"], custom["name"], custom["input"]) == ("custom_tool_call", "patch", "*** Begin")
    assert (spaced["type"], spaced["name"], spaced["namespace"]) == ("function_call", "b", "a")


@pytest.mark.parametrize("machine", [ChatMachine, MessagesMachine, CompletionsMachine])
def test_a_failure_ends_the_stream(machine):
    made = machine(ASKED, "m", [range(9)] if machine is CompletionsMachine else 9)
    made.begin()
    assert "broken" in "".join(made.end(Failed("broken")))


def test_a_failed_response_says_so_and_closes_its_item():
    machine = ResponsesMachine(ASKED, "m", 9, {})
    machine.begin()
    machine.take(0, Text("a"))
    stream = read("".join(machine.end(Failed("broken", 503, "overloaded"))))
    assert stream[-2]["type"] == "response.output_item.done"
    assert stream[-1]["type"] == "response.failed" and stream[-1]["response"]["error"]["code"] == "overloaded"


def test_bounds_are_moved_into():
    told = fields.sampling({"temperature": 1e9, "top_p": 0, "top_k": -1, "seed": -5})
    assert told["temperature"] == 100 and 0 < told["top_p"] < 1e-3 and told["top_k"] == 0 and told["seed"] > 0
