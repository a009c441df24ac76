"""vLLM's and SGLang's words, and everything that can be wrong with a server."""

import contextlib
import json
import random
import threading
import time
from itertools import islice

import pytest
from remote.exchanges import EOS, Scripted, models, reply, sglang, sse, vllm

from v4cli import paths
from v4cli.engine.sampler import Sampling
from v4cli.errors import ContextError, NetworkError, ResourceError, UsageError
from v4cli.remote import engine as remote
from v4cli.remote.client import Client
from v4cli.remote.engine import RemoteEngine, Served
from v4cli.remote.wire import Completions, Generate, Wanted

HOW = Sampling(0.7, 0.9, 5, 0.1, 11)
IDS = [40, 41, 42, 43, EOS]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAITS", ())
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.01))


@pytest.fixture
def session(request):
    """`session(replies…)`: at a prompt of two tokens, of a server that answers so."""
    servers = []

    def begun(*replies: bytes, owner: str = "vllm", **about):
        its = Scripted(models(owner, **about), *replies)
        servers.append(its)
        made = RemoteEngine(Served(its.url, "secret"), "nano", paths.NANO).session()
        made.sync([5, 6])
        return made, its

    yield begun
    for server in servers:
        server.close()


def told(session, limit: int = 50, **more):
    return list(session.generate(HOW, limit, (EOS,), **more))


@pytest.mark.parametrize("per_event", [1, 2, 5])
def test_vllm_gives_ids_and_logprobs(session, per_event):
    its, server = session(vllm(IDS, cached=1, per_event=per_event))
    steps = told(its)
    assert [step.token for step in steps] == IDS and {step.logprob for step in steps} == {-0.5}
    assert [step.finish for step in steps] == [None] * 4 + ["stop"]
    assert (its.stats.cached_tokens, its.stats.prefill_tokens, its.stats.completion_tokens) == (1, 1, 5)
    path, headers, body = server.asked[1]
    assert path == "/v1/completions" and headers["authorization"] == "Bearer secret"
    assert body["prompt"] == [5, 6] and body["return_token_ids"] and body["logprobs"] == 0 and body["model"] == "nano"
    assert [body[key] for key in ("temperature", "top_p", "top_k", "min_p", "seed")] == [0.7, 0.9, 5, 0.1, 11]


@pytest.mark.parametrize("incremental", [False, True])
def test_sglang_gives_ids_and_logprobs(session, incremental):
    its, server = session(sglang(IDS, cached=1, incremental=incremental), owner="sglang", max_model_len=99)
    steps = told(its)
    assert [step.token for step in steps] == IDS and {step.logprob for step in steps} == {-0.5}
    assert steps[-1].finish == "stop" and its.stats.cached_tokens == 1
    assert its.engine.config.max_position_embeddings == 99
    path, _, body = server.asked[1]
    assert path == "/generate" and body["input_ids"] == [5, 6] and body["return_logprob"]
    assert body["sampling_params"]["sampling_seed"] == 11 and body["sampling_params"]["max_new_tokens"] == 50


@pytest.mark.parametrize(
    ("owner", "answer"),
    [
        ("vllm", vllm(IDS, per_event=2, by_id=True)),
        ("sglang", sglang(IDS)),
        ("sglang", sglang(IDS, incremental=True)),
    ],
)
def test_the_likeliest_tokens_are_told_by_their_ids(session, owner, answer):
    its, server = session(answer, owner=owner)
    steps = told(its, n_likeliest=2)
    assert [step.likeliest for step in steps] == [((9, -0.25), (token, -0.5)) for token in IDS]
    body = server.asked[1][2]
    assert (
        (body["logprobs"], body["return_tokens_as_token_ids"]) == (2, True)
        if owner == "vllm"
        else (body["top_logprobs_num"] == 2)
    )


@pytest.mark.parametrize("names", [{"x": -0.5}, {"token_id:x": -0.5}, None])
def test_who_does_not_name_them_so_is_refused(session, names):
    logprobs = {"token_logprobs": [-0.5], "top_logprobs": names and [names]}
    its, _ = session(reply(sse({"choices": [{"token_ids": [40], "logprobs": logprobs}]})))
    with pytest.raises(NetworkError, match="likeliest tokens") as error:
        told(its, n_likeliest=1)
    assert error.value.hint == "--logprobs 0"


def test_a_limit_ends_an_answer(session):
    its, _ = session(vllm([40, 41]))
    assert [step.finish for step in told(its, 2)] == [None, "length"]


def test_what_is_lost_is_gone_on_with(session):
    half, whole = vllm(IDS), vllm(IDS[2:])
    cut = half[: half.index(b'"token_ids": [42]') - 200]
    its, server = session(cut, reply(b"{}", "application/json", "503 Service Unavailable"), whole)
    assert [step.token for step in told(its)] == IDS
    first, _, last = (body for _, _, body in server.asked[1:])
    n_there = len(last["prompt"]) - 2
    assert last["prompt"] == [5, 6, *IDS[:n_there]] and last["max_tokens"] == first["max_tokens"] - n_there
    assert n_there == 2


def test_nobody_there_is_a_network_error(session):
    its, server = session(b"")
    with pytest.raises(NetworkError, match=f"{server.url}: "):
        told(its)
    with pytest.raises(NetworkError, match="nobody answers there"):
        Served(server.url)


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (reply(b'{"error": {"message": "no key"}}', "application/json", "401 Unauthorized"), UsageError, "no key"),
        (reply(b'{"object": "error", "message": "maximum context length is 9"}', "application/json", "400 Bad Request"),
         ContextError, "context length is 9"),
        (reply(b"<html>no</html>", "text/html", "404 Not Found"), UsageError, "there is nothing"),
        (reply(b"<html>hello</html>", "text/html"), NetworkError, "does not speak JSON"),
        (reply(b"oh", "text/plain", "500 Internal Server Error"), NetworkError, "oh"),
        (reply(sse({"error": {"message": "EngineCore has died", "code": 500}})), NetworkError, "EngineCore has died"),
        (reply(sse({"choices": [{"index": 0, "text": "hello", "finish_reason": "stop"}]}, b"[DONE]")),
         NetworkError, "tells no token ids"),
        (reply(sse({"choices": [{"token_ids": [9999], "logprobs": {"token_logprobs": [-1.0]}}]})),
         NetworkError, "token 9999 of nano is none of"),
        (reply(sse({"choices": [{"token_ids": ["a"], "logprobs": {"token_logprobs": [-1.0]}}]})),
         NetworkError, "no numbers"),
        (reply(sse({"choices": [{"token_ids": [7]}]})), NetworkError, "log-probability"),
        (vllm([40, 41]), ResourceError, "ended the answer after 2 tokens"),
        (b"HTTP/1.1 nonsense\r\n\r\n", NetworkError, "127.0.0.1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(session, answer, error, says):
    its, _ = session(answer, answer, answer)
    with pytest.raises(error, match=says) as raised:
        told(its)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


VALUES = (None, [], {}, "x", -1, 1.5, True, [None], {"a": 1}, [[0.5]], 10**30)


def damaged(value, rng):
    """A copy in which some things are others."""
    if rng.random() < 0.08:
        return rng.choice(VALUES)
    if isinstance(value, dict):
        return {key: damaged(item, rng) for key, item in value.items() if rng.random() > 0.05}
    return [damaged(item, rng) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("answer", "wire"), [(vllm, Completions), (sglang, Generate)])
def test_whatever_a_server_says_is_an_answer_or_a_network_error(answer, wire, monkeypatch):
    rng, its = random.Random(1), RemoteEngine.__new__(RemoteEngine)
    its.client, its._wire, its.served_name = Client("http://here"), wire, "nano"
    events = [json.loads(line[6:]) for line in answer(IDS).split(b"\n") if line.startswith(b"data: {")]
    for _ in range(300):
        told = [damaged(event, rng) for event in events]
        monkeypatch.setattr(its.client, "events", lambda *args, told=told: (event for event in told))
        with contextlib.suppress(NetworkError):
            for piece in its.pieces(Wanted([5], HOW, 9, (EOS,)), lambda: False):
                assert len(piece.ids) == len(piece.logprobs) and all(type(token) is int for token in piece.ids)
                assert piece.cached is None or type(piece.cached) is int


@pytest.mark.parametrize("url", ["", "nowhere", "ftp://a", "http://", "http://a:x", "http://u:p@a", "http://a?b=1"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(UsageError, match="--engine"):
        Client(url)


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/"])
def test_an_address_may_end_in_v1(tail):
    assert Client(f"http://here:8000/proxy{tail}").url == "http://here:8000/proxy"


def test_several_models_have_to_be_named():
    listed = {"data": [{"id": "a"}, {"id": "b"}]}
    server = Scripted(reply(json.dumps(listed).encode(), "application/json"))
    served = Served(server.url)
    assert served.model("b")["id"] == "b"
    with pytest.raises(UsageError, match="serves a, b"):
        served.model("nano")


def test_an_answer_that_nobody_wants_any_more_is_hung_up_on(session):
    going = vllm(IDS).replace(b"data: [DONE]\n\n", b"")
    going = going[: going.index(b'"token_ids": [42]')].rpartition(b"data: ")[0] + b": goes on\n\n"
    its, server = session(going, going)
    stop, start = threading.Event(), time.monotonic()
    threading.Timer(0.2, stop.set).start()
    steps = told(its, cancelled=stop.is_set)
    assert [step.token for step in steps] == [40, 41] and steps[-1].finish is None
    assert server.hung_up.wait(5) and time.monotonic() - start < 5
    server.hung_up.clear()
    its.sync([5, 6])
    list(islice(its.generate(HOW, 9, (EOS,)), 1))  # who stops to read hangs up, too
    assert server.hung_up.wait(5)
