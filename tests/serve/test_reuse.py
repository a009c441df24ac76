"""Nothing is computed twice: what a turn computed, the next one has."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_answers import SUM, chat, messages, post, responses, with_tool

from v4cli.serve.pool import common

SLACK = 8  # tokens of an answer that may be computed again: its last is not fed before the next turn
DIALECTS = {"chat": chat, "messages": messages, "responses": responses}
THINKING = {
    "chat": {"thinking": {"type": "enabled"}},
    "messages": {"thinking": {"type": "enabled"}},
    "responses": {"reasoning": {"effort": "high"}, "include": ["reasoning.encrypted_content"]},
}


def usage_of(whole: dict) -> tuple[int, int, int]:
    """Tokens of the prompt, cached of them, and of the answer."""
    u = whole["usage"]
    if "prompt_tokens" in u:
        return u["prompt_tokens"], u["prompt_tokens_details"]["cached_tokens"], u["completion_tokens"]
    if "cache_read_input_tokens" in u:
        return u["input_tokens"] + u["cache_read_input_tokens"], u["cache_read_input_tokens"], u["output_tokens"]
    return u["input_tokens"], u["input_tokens_details"]["cached_tokens"], u["output_tokens"]


def went_on(dialect: str, request, whole: dict, text: str, forgetful: bool):
    """The next request of a conversation: the answer, results of its calls, more text. `forgetful`: without the
    reasoning, and with arguments written in another way."""
    path, body = request
    if dialect == "chat":
        said = dict(whole["choices"][0]["message"])
        calls = said.get("tool_calls") or []
        if forgetful:
            said.pop("reasoning_content", None)
            for call in calls:
                call["function"]["arguments"] = rewritten(call["function"]["arguments"])
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "391"} for call in calls]
        more = results or [{"role": "user", "content": text}]
        return path, body | {"messages": [*body["messages"], said, *more]}
    if dialect == "messages":
        blocks = [b for b in whole["content"] if not (forgetful and b["type"] == "thinking")]
        results = [
            {"type": "tool_result", "tool_use_id": b["id"], "content": "391"} for b in blocks if b["type"] == "tool_use"
        ]
        more = [{"role": "user", "content": results or text}]
        return path, body | {"messages": [*body["messages"], {"role": "assistant", "content": blocks}, *more]}
    before = body["input"] if isinstance(body["input"], list) else [{"role": "user", "content": body["input"]}]
    items = [i for i in whole["output"] if not (forgetful and i["type"] == "reasoning")]
    calls = [i for i in items if i["type"] == "function_call"]
    if forgetful:
        for call in calls:
            call["arguments"] = rewritten(call["arguments"])
    results = [{"type": "function_call_output", "call_id": call["call_id"], "output": "391"} for call in calls]
    return path, body | {"input": [*before, *items, *(results or [{"role": "user", "content": text}])]}


def rewritten(arguments: str) -> str:
    return json.dumps(json.loads(arguments), separators=(",", ":"), ensure_ascii=True)


@pytest.mark.parametrize("forgetful", [False, True])
@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_turn_costs_its_new_tokens_only(server, dialect, tools, thinks, forgetful):
    request = DIALECTS[dialect](SUM if tools else "Hello, who are you?")
    request = with_tool(request) if tools else request
    request = (request[0], request[1] | (THINKING[dialect] if thinks else {}))
    whole = post(server.http, request).json()
    for text in ("Thank you!", "What can you do?"):
        prompt, _, answer = usage_of(whole)
        request = went_on(dialect, request, whole, text, forgetful)
        whole = post(server.http, request).json()
        assert usage_of(whole)[1] >= prompt + answer - SLACK, server.service.lines


def test_a_line_that_changes_with_every_request_changes_nothing(server):
    cached = []
    for cch in ("1", "2"):
        system = [{"type": "text", "text": f"x-anthropic-billing-header: cc_version=1; cch={cch}"}]
        system.append({"type": "text", "text": "Be brief. " * 40})
        whole = post(server.http, messages("Hello", system=system), max_tokens=2).json()
        cached.append(usage_of(whole)[1])
    assert cached[1] > 40


def test_a_note_in_the_middle_does_not_change_the_beginning(server):
    request = messages("Hello, who are you?" * 10)
    whole = post(server.http, request).json()
    prompt, _, answer = usage_of(whole)
    path, body = went_on("messages", request, whole, "Thank you!", False)
    body["messages"].append({"role": "system", "content": "The user has opened a file."})
    assert usage_of(post(server.http, (path, body)).json())[1] >= prompt + answer - SLACK


def test_another_answer_than_the_model_s_is_taken_as_it_is(server):
    request = with_tool(chat(SUM))
    whole = post(server.http, request).json()
    path, body = went_on("chat", request, whole, "", False)
    body["messages"][-2]["tool_calls"][0]["function"]["arguments"] = '{"expression": "1 + 1"}'
    _, cached, _ = usage_of(post(server.http, (path, body), max_tokens=1).json())
    assert cached < usage_of(whole)[0] + usage_of(whole)[2] - SLACK


def test_why_a_prefix_missed_is_told(server):
    shared = "a b c d e f g " * 10
    post(server.http, chat(shared + "one two three"), max_tokens=1)
    post(server.http, chat(shared + "four five six"), max_tokens=1)
    assert any("four" in line and "one" in line for line in server.service.lines)


def conversations(http, n: int, turns: int, jobs: int) -> tuple[int, int]:
    """Tokens computed, and the fewest possible, of conversations that take turns."""
    system = [{"role": "system", "content": "You are one of many. " * 20}]
    requests = [("/v1/chat/completions", chat(f"Number {i}: hello.")[1]) for i in range(n)]
    for _, body in requests:
        body |= {"messages": system + body["messages"], "max_tokens": 12}
    computed = least = 0
    known: list[int] = [0] * n  # tokens of each that have been computed
    with ThreadPoolExecutor(jobs) as pool:
        for turn in range(turns):
            wholes = list(pool.map(lambda request: post(http, request).json(), requests))
            for i, whole in enumerate(wholes):
                prompt, cached, answer = usage_of(whole)
                computed += prompt - cached + answer
                least += prompt - known[i] + answer
                known[i] = prompt + answer - 1
                requests[i] = went_on("chat", requests[i], whole, f"And {turn}?", True)
    return computed, least


def test_more_conversations_than_sessions(service, served, nano, tmp_path):
    prefixes = nano.engine.prefixes(tmp_path, 1 << 30, 1 << 30)
    computed, least = conversations(served(service(3, prefixes)), 8, 4, 1)
    assert computed <= least


def test_at_once_they_get_what_they_get_alone(service, served):
    texts = [f"What is {i}7*{i}3?" for i in range(8)]

    def answers(http, jobs):
        with ThreadPoolExecutor(jobs) as pool:
            replies = pool.map(
                lambda text: post(http, with_tool(chat(text)), max_tokens=40, logprobs=True).json(), texts
            )
            return [(r["choices"][0]["message"]["content"], r["choices"][0]["logprobs"]) for r in replies]

    assert answers(served(service(8)), 8) == answers(served(service(1)), 1)


def test_common_prefix():
    a = list(range(5000))
    assert common(a, a) == 5000 and common(a, a[:3000]) == 3000 and common([], a) == 0
    for at in (0, 1, 1023, 1024, 1025, 4999):
        assert common(a, [*a[:at], -1, *a[at + 1 :]]) == at
