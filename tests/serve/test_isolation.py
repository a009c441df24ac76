"""What happens to one request does not touch another: faults, hang-ups in a prefill, memory that is short."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import tiny
from apart import apart
from behind_port import behind_port
from test_answers import HELLO, chat, data_of, messages, post, responses
from test_fairness import PATIENCE_S, blocks, streaming, until
from test_reuse import usage_of

from v4cli import paths
from v4cli.chat.turn import Chat
from v4cli.engine.engine import Engine
from v4cli.errors import ResourceError
from v4cli.serve.served import Served
from v4cli.serve.service import Service

MARK = "zebra"  # of the request that something happens to


def beside(http, request, other, **more):
    """What a stream says, and the reply to another request that is made in its middle."""
    with streaming(http, request, **more) as reply, ThreadPoolExecutor(1) as pool:
        stream = blocks(reply)
        said = [next(stream)]
        asked = pool.submit(http.post, other[0], json=other[1])
        said += stream
        return SimpleNamespace(text="\n\n".join(said)), asked.result()


def text_of(reply) -> str:
    return "".join(e["choices"][0]["delta"].get("content") or "" for e in data_of(reply) if e["choices"])


def breaks_in_a_constraint(service) -> None:
    def broken(tokens):
        raise ZeroDivisionError

    usual = service.constraints.of
    service.constraints.of = lambda encoded: broken if MARK in str(encoded.messages) else usual(encoded)


def breaks_in_a_step(service, monkeypatch) -> None:
    """All rows of the step are lost with it, and computed again."""
    marked, model = service.tokenizer.encode(f" {MARK}"), service.engine.model
    usual = model.forward

    def forward(jobs, *more, **named):
        rows = [list(ids) for ids, _ in jobs]
        if any(ids[i : i + len(marked)] == marked for ids in rows for i in range(len(ids))):
            raise ZeroDivisionError
        return usual(jobs, *more, **named)

    monkeypatch.setattr(model, "forward", forward)


@pytest.mark.parametrize("where", ["constraint", "step"])
def test_a_fault_is_told_to_whom_it_concerns_and_the_others_go_on(server, monkeypatch, where):
    service, request = server.service, chat(HELLO, temperature=50, seed=3, max_tokens=150)
    alone = post(server.http, request).json()["choices"][0]
    if where == "step":
        breaks_in_a_step(service, monkeypatch)
    else:
        breaks_in_a_constraint(service)
    stream, reply = beside(server.http, request, chat(f"A {MARK}, please. " * 3))
    assert reply.status_code == 500 and "ZeroDivisionError" in reply.json()["error"]["message"]
    assert text_of(stream) == alone["message"]["content"] and stream.text.endswith("[DONE]")
    assert post(server.http, chat("Hello")).status_code == 200
    assert service.pool.n_busy == 0 and service.metrics.failed == 1


def test_a_hang_up_in_a_prefill_keeps_what_is_computed(service, served):
    its = service(1)
    http, chunk, seen = served(its), its.engine.scheduler.chunk, threading.Event()
    request = chat("a b c d e f " * 150)
    hung_up = threading.Event()

    def prefilled(done: int, total: int) -> None:
        if done >= chunk and not seen.is_set():
            seen.set()
            hung_up.wait(PATIENCE_S)

    usual, its.metrics.prefilled = its.metrics.prefilled, prefilled
    with streaming(http, request) as reply:
        stream = blocks(reply)  # which hangs up when it is let go
        next(stream)
        assert seen.wait(PATIENCE_S)
    until(lambda: all(answer.cancel.is_set() for answer in its._answers))
    hung_up.set()
    until(lambda: its.pool.n_busy == 0)
    its.metrics.prefilled = usual
    prompt, cached, _ = usage_of(post(http, request, max_tokens=1).json())
    assert chunk <= cached < prompt and its.metrics.cancelled == 1


# -- memory ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """nano as a store, which a budget of memory holds for."""
    return tiny.make_store(paths.NANO, tmp_path_factory.mktemp("stores") / "nano")


def short(store) -> Service:
    """A service with the least memory that the model runs in."""
    with pytest.raises(ResourceError) as caught:
        Engine.open(store, "cpu", ram=1)
    least = int(caught.value.hint.removeprefix("--ram ").removesuffix("M")) << 20
    its = Service(Served(lambda: Chat.open(store, "cpu", ram=least), print), "nano", 8, print)
    its.held = []
    its.metrics.prefilled = lambda done, total: its.held.append(its.engine.held)
    return its


def many_answers_share_what_memory_there_is(store) -> None:
    its = short(store)
    with behind_port(its) as http, ThreadPoolExecutor(8) as pool:
        requests = [chat(f"Number {i}. " * 12, max_tokens=4) for i in range(12)]
        replies = list(pool.map(lambda request: post(http, request).json(), requests))
    assert all(reply["usage"]["completion_tokens"] for reply in replies)
    assert its.held and all(ledger.held <= ledger.budget for ledger in its.held)
    assert its.pool.n_busy == 0 and 0 < its.pool.n_kept < 8  # idle contexts had to give way


def test_many_answers_share_what_memory_there_is(store):
    apart(many_answers_share_what_memory_there_is, store)


@pytest.mark.parametrize("dialect", [chat, messages, responses])
def test_a_prompt_that_memory_never_holds_is_too_long(store, served, dialect):
    its = short(store)
    most = next(n for n in range(0, 1 << 20, 1000) if not its.served.has_room(n))
    with pytest.raises(ResourceError):
        its.served.session().make_room(most)
    path, body = dialect("a b c d e f g h i j k l m n " * (most // 14), stream=True)
    reply = served(its).post(path, json=body)
    assert reply.status_code == 400 and "prompt is too long" in reply.json()["error"]["message"]


def test_who_wants_more_than_there_is_waits_for_others_and_is_refused_alone(store, served):
    its = short(store)
    http, hog = served(its), its.engine.session()
    for n_tokens in range(20_000, 1_000_000, 500):
        try:
            hog.make_room(n_tokens)
        except ResourceError:
            break
    hog.make_room(n_tokens - 900)  # of context are left
    request = chat("Hello", temperature=50, seed=3, max_tokens=60)
    long = chat("a b c d e f " * 300, max_tokens=1)
    stream, reply = beside(http, request, long)
    assert stream.text.endswith("[DONE]") and '"finish_reason": "length"' in stream.text
    error = reply.json()["error"]
    assert reply.status_code == 503 and error["code"] == "overloaded" and "--ram" not in str(reply.headers)
    hog.engine.account.sessions.discard(hog)
    assert post(http, long).status_code == 200
