"""What real clients send, and the Python SDKs."""

import json
from pathlib import Path

import pytest
from test_answers import HELLO, SUM, chat, messages, responses, with_tool

RECORDINGS = Path(__file__).parents[3] / "shared" / "server" / "recordings"
FILES = sorted(RECORDINGS.glob("*.json")) if RECORDINGS.is_dir() else []
MOST_TEXT = 40  # characters: longer ones stand for others of their length, which take long to compute


@pytest.mark.skipif(not FILES, reason=f"no recordings beside the checkout ({RECORDINGS})")
def test_what_clients_send_is_answered(server):
    for file in FILES:
        recorded = json.loads(file.read_text())
        path, body = recorded["path"], shortened(recorded["body"])
        limit = "max_output_tokens" if "responses" in path else "max_tokens"
        reply = server.http.post(path, json=body | {"model": "nano", "stream": False, limit: 2})
        assert reply.status_code == 200, f"{file.name}: {reply.text[:300]}"


def shortened(value):
    if isinstance(value, dict):
        return {key: shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shortened(item) for item in value]
    return value[:MOST_TEXT] if isinstance(value, str) else value


def test_openai_chat(openai):
    body = with_tool(chat(SUM))[1]
    extra = {"thinking": body.pop("thinking")}
    whole = openai.chat.completions.create(**body, extra_body=extra)
    call = whole.choices[0].message.tool_calls[0]
    body["messages"] += [
        whole.choices[0].message.to_dict(),
        {"role": "tool", "tool_call_id": call.id, "content": "391"},
    ]
    with openai.chat.completions.stream(**body, extra_body=extra) as stream:
        said = "".join(event.delta for event in stream if event.type == "content.delta")
        assert said == stream.get_final_completion().choices[0].message.content and "391" in said
    assert openai.models.list().data[0].id == "nano"


def test_openai_responses(openai):
    body = with_tool(responses(SUM))[1]
    whole = openai.responses.create(**body)
    call = whole.output[-1]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "391"}
    body["input"] = [{"role": "user", "content": SUM}, *[item.to_dict() for item in whole.output], result]
    with openai.responses.stream(**body) as stream:
        said = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert said == stream.get_final_response().output_text and "391" in said


def test_openai_completions(openai):
    assert openai.completions.create(model="nano", prompt="Hello", max_tokens=4).usage.completion_tokens <= 4


def test_anthropic_messages(anthropic):
    body = with_tool(messages(SUM, thinking={"type": "enabled", "budget_tokens": 1024}))[1]
    whole = anthropic.messages.create(**body)
    call = whole.content[-1]
    assert call.type == "tool_use" and call.name == "calculator"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "391"}
    body["messages"] += [
        {"role": "assistant", "content": [block.to_dict() for block in whole.content]},
        {"role": "user", "content": [result]},
    ]
    with anthropic.messages.stream(**body) as stream:
        said = "".join(stream.text_stream)
        assert "391" in said
    counted = anthropic.messages.count_tokens(**{k: v for k, v in body.items() if k != "max_tokens"}).input_tokens
    usage = stream.get_final_message().usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens


def test_errors_are_the_sdks_own(openai, anthropic):
    import anthropic as messages_sdk
    import openai as chat_sdk

    with pytest.raises(chat_sdk.NotFoundError, match="nano"):
        openai.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": HELLO}])
    with pytest.raises(messages_sdk.NotFoundError, match="nano"):
        anthropic.messages.create(model="gpt-4", max_tokens=1, messages=[{"role": "user", "content": HELLO}])
