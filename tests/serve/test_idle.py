"""Memory is given back when nobody asks, and taken again for who asks next."""

import gc
import threading
import weakref

import pytest
from test_answers import HELLO, chat, post
from test_fairness import until
from test_reuse import SLACK, usage_of, went_on

from v4cli import paths
from v4cli.chat.turn import Chat
from v4cli.cli.output import parse_duration
from v4cli.engine.engine import Engine
from v4cli.errors import ModelError, ResourceError, UsageError
from v4cli.serve.served import Served
from v4cli.serve.service import Service


@pytest.fixture
def alone(tmp_path):
    """A service whose model nobody else holds, with stored prefixes."""

    def session(engine: Engine):
        return engine.session(None, engine.prefixes(tmp_path, 1 << 30, 1 << 30))

    lines: list[str] = []
    its = Service(Served(lambda: Chat.open(paths.NANO, session=session), lines.append), "nano", 2, lines.append)
    its.lines = lines
    return its


def test_the_model_goes_and_comes_back(alone, served):
    http = served(alone)
    request = chat(HELLO * 10)
    first = post(http, request, max_tokens=8).json()
    engine = weakref.ref(alone.engine)
    assert http.get("/health").json()["loaded"] and "v4_model_loaded 1" in http.get("/metrics").text
    assert alone.served.give_back(alone.pool) and not alone.served.give_back(alone.pool)
    gc.collect()
    assert engine() is None
    assert alone.pool.n_kept == 0 and not http.get("/health").json()["loaded"]
    assert "v4_model_loaded 0" in http.get("/metrics").text and http.get("/v1/models").json()["data"]
    again = post(http, went_on("chat", request, first, "Go on.", True), max_tokens=8).json()
    prompt, _, answer = usage_of(first)
    assert usage_of(again)[1] >= prompt + answer - SLACK and alone.engine is not None  # what was computed was stored


def test_who_is_answered_keeps_the_model(alone):
    with alone.pool.session([1], lambda: False):
        assert alone.pool.idle_s == 0.0 and not alone.served.give_back(alone.pool)
    assert alone.pool.idle_s >= 0.0 and alone.served.give_back(alone.pool)


def test_it_goes_by_itself_after_a_while(alone):
    with alone.pool.session([1], lambda: False):
        pass
    ended = threading.Event()
    watch = threading.Thread(target=alone.give_back_when_idle, args=(0.01, ended))
    watch.start()
    until(lambda: alone.engine is None)
    ended.set()
    watch.join()


@pytest.mark.parametrize(("error", "status"), [(ResourceError("no room"), 503), (ModelError("gone"), 500)])
def test_where_it_cannot_be_loaded_again_the_next_request_may(alone, served, monkeypatch, error, status):
    http = served(alone)
    alone.served.give_back(alone.pool)

    def fails():
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(alone.served, "_open", fails)
        path, body = chat(HELLO)
        reply = http.post(path, json=body)
        assert reply.status_code == status and str(error) in reply.json()["error"]["message"]
    assert post(http, chat(HELLO)).status_code == 200 and alone.pool.n_busy == 0


def test_another_model_in_its_place_is_refused(alone, served, monkeypatch):
    alone.served.give_back(alone.pool)
    monkeypatch.setattr(alone.served, "_content", ("config", "others"))
    path, body = chat(HELLO)
    reply = served(alone).post(path, json=body)
    assert reply.status_code == 500 and "no longer" in reply.json()["error"]["message"]
    assert alone.engine is None


def test_times():
    assert [parse_duration(text, "--idle") for text in ("90s", "30m", "1.5h", "1D")] == [90, 1800, 5400, 86400]
    for text in ("0s", "30", "m", "-1s", "1w", "9" * 12 + "d", ""):
        with pytest.raises(UsageError, match="--idle"):
            parse_duration(text, "--idle")
