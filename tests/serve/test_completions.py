"""/v1/completions: several prompts at once, and prompts that are told again."""

import math

import pytest
from test_answers import HELLO, data_of, post

from v4cli.engine.sampler import logprob

PATH = "/v1/completions"
ABOUT = {"model": "nano", "max_tokens": 6, "temperature": 0}
PROMPTS = ["Hello", "What is 17*23?", "Hello"]


def test_several_prompts_are_answered_as_each_alone(server):
    alone = [post(server.http, (PATH, ABOUT | {"prompt": prompt})).json() for prompt in PROMPTS]
    whole = post(server.http, (PATH, ABOUT | {"prompt": PROMPTS})).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert [choice["text"] for choice in whole["choices"]] == [one["choices"][0]["text"] for one in alone]
    for count in ("prompt_tokens", "completion_tokens"):
        assert whole["usage"][count] == sum(one["usage"][count] for one in alone)
    told, ended = [""] * 3, {}
    for chunk in data_of(post(server.http, (PATH, ABOUT | {"prompt": PROMPTS, "stream": True}))):
        for choice in chunk["choices"]:
            told[choice["index"]] += choice["text"]
            ended |= {choice["index"]: choice["finish_reason"]} if choice["finish_reason"] else {}
    assert told == [choice["text"] for choice in whole["choices"]] and len(ended) == 3


def test_choices_are_counted_prompt_by_prompt(server, nano):
    """With a seed every prompt has the choices that it has alone; its ids are told with each of them."""
    about = ABOUT | {"temperature": 5.0, "seed": 3, "n": 2, "return_token_ids": True}
    alone = [post(server.http, (PATH, about | {"prompt": prompt})).json()["choices"] for prompt in PROMPTS[:2]]
    whole = post(server.http, (PATH, about | {"prompt": PROMPTS[:2]})).json()["choices"]
    assert [choice["index"] for choice in whole] == [0, 1, 2, 3]
    for choice, wanted in zip(whole, [*alone[0], *alone[1]], strict=True):
        for key in ("text", "token_ids", "prompt_token_ids"):
            assert choice[key] == wanted[key]


@pytest.mark.parametrize("as_ids", [False, True])
def test_an_echo_tells_how_likely_the_prompt_was(server, nano, as_ids):
    ids = [nano.tokenizer.bos_id, *nano.tokenizer.encode(f"{HELLO} é {HELLO}" * 9)]
    text = nano.tokenizer.decode(ids[1:])
    assert len(ids) > 130, "more than is computed at a time"
    session = nano.engine.session()
    session.sync(ids[:1])
    rows = [session.logits, *session.feed(ids[1:], all_logits=True)]
    wanted = [logprob(row, token) for row, token in zip(rows, ids[1:])]
    about = ABOUT | {"prompt": ids if as_ids else text, "echo": True, "logprobs": 2, "max_tokens": 2}
    reply = post(server.http, (PATH, about)).json()
    [choice] = reply["choices"]
    told = choice["logprobs"]
    assert choice["text"].startswith(nano.tokenizer.decode(ids) if as_ids else text)
    assert 0 <= len(ids) + reply["usage"]["completion_tokens"] - len(told["tokens"]) <= 1, "the last may be no text"
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    assert told["token_logprobs"][1 : len(ids)] == pytest.approx(wanted, abs=1e-6)
    assert all(1 <= len(top) <= 2 for top in told["top_logprobs"][1:]), "parts of characters have one name"
    for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
        assert "\ufffd" in token or choice["text"][offset:].startswith(token)
    streamed = data_of(post(server.http, (PATH, about | {"stream": True})))
    parts = [choice for chunk in streamed for choice in chunk["choices"]]
    assert "".join(part["text"] for part in parts) == choice["text"]
    assert [offset for part in parts for offset in (part["logprobs"] or {}).get("text_offset", [])] == told[
        "text_offset"
    ]


def test_what_an_echo_has_computed_is_no_cached_token(server):
    about = ABOUT | {"prompt": HELLO, "echo": True, "logprobs": 0, "max_tokens": 1}
    for _ in range(2):
        reply = post(server.http, (PATH, about)).json()
        assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert all(p is None or math.isfinite(p) for p in reply["choices"][0]["logprobs"]["token_logprobs"])


@pytest.mark.parametrize(
    "prompt", [[], [[]], [1, "a"], [[1], "a", None], {"a": 1}, None, 3, ["a"] * 129, [True], [[1, -1]], [[10**9]]]
)
def test_prompts_that_are_none_are_refused(server, prompt):
    reply = server.http.post(PATH, json=ABOUT | {"prompt": prompt})
    assert reply.status_code == 400 and "prompt" in reply.json()["error"]["message"]
