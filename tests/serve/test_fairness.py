"""Signs of life, hang-ups, queues, and faults that stay where they are. Nothing here measures time: what is waited for
is held until it has been seen."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx2
import numpy as np
import pytest
from test_answers import LIMITS, SUM, chat, messages, post, responses, with_tool
from test_reuse import SLACK, usage_of, went_on

from v4cli.engine.session import Session
from v4cli.serve import service as services
from v4cli.serve.server import listening

PATIENCE_S = 60.0
HELLO = "Hello, who are you?"
BEATS = {
    "chat": (chat, lambda e: e.startswith(": ")),
    "messages": (messages, lambda e: "event: ping" in e),
    "responses": (responses, lambda e: "event: response.in_progress" in e),
}


@pytest.fixture
def quick_beats(monkeypatch):
    monkeypatch.setattr(services, "BEAT_S", 0.02)


def until(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def blocks(reply):
    """Events of a stream, as they come."""
    text = ""
    for piece in reply.iter_text():
        text += piece
        *whole, text = text.split("\n\n")
        yield from whole


def endless(service):
    """Answers go on until they are cancelled."""
    mask = np.ones(service.engine.config.vocab_size, bool)
    mask[service.tokenizer.eos_id] = False
    service.constraints.of = lambda encoded: lambda tokens: mask


@contextmanager
def streaming(http, request, **more):
    with http.stream("POST", request[0], json=request[1] | more | {"stream": True}) as reply:
        assert reply.status_code == 200
        yield reply


@contextmanager
def held(service):
    """The only session is in use."""
    with service.pool.session([1], lambda: False):
        yield


@pytest.mark.parametrize("dialect", BEATS)
def test_who_waits_hears_signs_of_life_and_is_answered(service, served, quick_beats, dialect):
    its, (make, is_beat) = service(1), BEATS[dialect]
    http, n_beats = served(its), 0
    with ExitStack() as stack:
        stack.enter_context(held(its))
        with streaming(http, make(HELLO)) as reply:
            for event in blocks(reply):
                n_beats += is_beat(event)
                if is_beat(event) and n_beats == 4:
                    assert its.pool.n_waiting == 1
                    stack.close()
    assert n_beats >= 4 and its.metrics.done["answers"] == 1


@pytest.mark.parametrize("dialect", BEATS)
def test_a_prefill_gives_signs_of_life(server, quick_beats, dialect):
    make, is_beat = BEATS[dialect]
    seen = threading.Event()
    server.service.metrics.prefilled = lambda done, total: seen.wait(PATIENCE_S)
    with streaming(server.http, make("a b c " * 40), **{LIMITS[make]: 8}) as reply:
        n_beats = 0
        for event in blocks(reply):
            n_beats += is_beat(event)
            if n_beats == 3:
                seen.set()
    assert n_beats >= 3 and seen.is_set()


@pytest.mark.parametrize("dialect", BEATS)
def test_a_withheld_call_gives_signs_of_life(server, quick_beats, dialect):
    make, is_beat = BEATS[dialect]
    seen = threading.Event()

    def held_up(tokens):
        if len(tokens) == 6:
            seen.wait(PATIENCE_S)

    server.service.constraints.of = lambda encoded: held_up
    n_beats = 0
    with streaming(server.http, with_tool(make(SUM))) as reply:
        for event in blocks(reply):
            n_beats += is_beat(event)
            if n_beats == 4:  # the first may come with the start
                seen.set()
    assert seen.is_set() and server.service.metrics.done["answers"] == 1


@pytest.mark.parametrize("streams", [True, False])
def test_a_hang_up_frees_the_session_and_keeps_the_work(service, served, streams):
    its = service(1)
    http, usual = served(its), its.constraints.of
    endless(its)
    path, body = chat(HELLO * 20, stream=streams, max_tokens=1_000_000)
    if streams:
        with http.stream("POST", path, json=body) as reply:
            stream = blocks(reply)  # which hangs up when it is let go
            next(stream)
            until(lambda: its.metrics.sampled > 3)
    else:
        gone = threading.Thread(target=_give_up, args=(str(http.base_url), path, body, its))
        gone.start()
        gone.join()
    until(lambda: its.pool.n_busy == 0 and its.metrics.cancelled == 1)
    its.constraints.of = usual
    prompt, cached, _ = usage_of(post(http, (path, body | {"stream": False, "max_tokens": 2})).json())
    assert cached > 0.9 * prompt - 32


def test_an_answer_does_not_wait_until_it_is_stored_and_the_next_turn_does(service, served, monkeypatch):
    may_end = threading.Event()

    def keep(session, worth_s=None):
        if session.stats.completion_tokens:
            may_end.wait(60)

    monkeypatch.setattr(Session, "is_worth_keeping", lambda session, worth_s=None: True)
    monkeypatch.setattr(Session, "keep", keep)
    its = service()
    http, request = served(its), chat("Hello, who are you? " * 10)
    whole = post(http, request).json()
    prompt, _, answer = usage_of(whole)
    assert its.pool.n_busy == 1
    with ThreadPoolExecutor(1) as thread:
        turn = thread.submit(post, http, went_on("chat", request, whole, "Thank you!", True))
        until(lambda: its.pool.n_busy == 2)
        may_end.set()
        assert usage_of(turn.result().json())[1] >= prompt + answer - SLACK
    assert its.pool.n_kept == 1


def _give_up(url: str, path: str, body: dict, its) -> None:
    """Ask, and hang up once it is being answered."""
    data = json.dumps(body).encode()
    host, _, port = url.removeprefix("http://").strip("/").partition(":")
    head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
        until(lambda: its.metrics.sampled > 3)


def test_who_hangs_up_in_the_queue_is_forgotten(service, served):
    its = service(1)
    http = served(its)
    with held(its):
        with streaming(http, chat(HELLO)) as reply:
            stream = blocks(reply)
            next(stream)
            until(lambda: its.pool.n_waiting == 1)
        until(lambda: its.pool.n_waiting == 0)
    assert post(http, chat(HELLO)).status_code == 200


def test_a_full_queue_says_when_to_come_again(service, served, monkeypatch):
    monkeypatch.setattr(services, "MOST_QUEUED", 0)
    path, body = messages(HELLO)
    reply = served(service(1)).post(path, json=body)
    assert reply.status_code == 503 and reply.headers["retry-after"]
    assert reply.json()["error"]["type"] == "overloaded_error"


def test_a_fault_in_one_answer_is_its_own(server):
    usual = server.service.constraints.of

    def broken(tokens):
        raise ZeroDivisionError

    server.service.constraints.of = lambda encoded: broken
    path, body = chat(HELLO)
    reply = server.http.post(path, json=body)
    assert reply.status_code == 500 and "ZeroDivisionError" in reply.json()["error"]["message"]
    with streaming(server.http, responses(HELLO)) as reply:
        assert "response.failed" in reply.read().decode()
    server.service.constraints.of = usual
    assert post(server.http, chat(HELLO)).status_code == 200
    assert server.service.pool.n_busy == 0


def test_health_is_told_while_all_sessions_are_busy(service, served):
    its = service(1)
    http = served(its)
    with held(its):
        assert http.get("/health").json()["busy"] == 1
        assert 'v4_sessions{state="busy"} 1' in http.get("/metrics").text


def test_connections_that_say_nothing_hinder_nobody(server):
    quiet = [httpx2.Client(base_url=server.http.base_url) for _ in range(4)]
    for client in quiet:
        client.get("/health")
    assert post(server.http, chat(HELLO)).status_code == 200
    for client in quiet:
        client.close()


def test_small_pieces_are_sent_at_once():
    with listening("127.0.0.1", 0) as sock:
        assert sock.proto == socket.IPPROTO_TCP  # by which asyncio tells that it may forgo the delay
