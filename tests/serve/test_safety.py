"""Who may ask, and what is read."""

import json

import pytest
from test_answers import chat, messages, post

from v4cli.errors import RequestError
from v4cli.serve import http as guard
from v4cli.serve.http import parsed

BODY = chat("Hello", max_tokens=1)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:1234"}, 200),
        ({"host": "[::1]:80"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "127.0.0.1@evil.example"}, 403),
        ({"origin": "http://localhost:3000"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"content-type": ""}, 200),
    ],
)
def test_who_may_ask(server, headers, status):
    content = json.dumps(BODY[1]).encode()
    reply = server.http.post(BODY[0], content=content, headers={"content-type": "application/json"} | headers)
    assert reply.status_code == status, reply.text
    assert reply.headers["x-request-id"] and "access-control-allow-origin" not in reply.headers
    assert status == 200 or reply.json()["error"]["message"]


@pytest.mark.parametrize(("path", "envelope"), [("/v1/messages", "type"), ("/v1/chat/completions", "error")])
def test_the_key(service, served, path, envelope):
    http = served(service(1), key="sécret")
    for headers in ({}, {"x-api-key": "wrong"}, {"authorization": "Bearer sécre".encode()}):
        reply = http.post(path, json={}, headers=headers)
        assert reply.status_code == 401 and envelope in reply.json()
    assert http.get("/health").status_code == 200 and http.get("/v1/models").status_code == 401
    for name, value in (
        ("x-api-key", "sécret"), ("authorization", "Bearer sécret"), ("authorization", "bearer sécret"),
    ):  # fmt: skip
        assert http.get("/v1/models", headers={name: value.encode()}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{", b'{"a": NaN}', b"\xff", b"[" * 100_000, b'{"a":' * 100_000,
        b'{"a":' + b"[" * 200 + b"]" * 200 + b"}",
    ],
)  # fmt: skip
def test_bodies_that_are_none(server, body):
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses"):
        reply = server.http.post(path, content=body, headers={"content-type": "application/json"})
        assert reply.status_code == 400 and isinstance(reply.json()["error"], dict)


def test_a_body_that_is_too_large_is_not_read_to_its_end(server, monkeypatch):
    monkeypatch.setattr(guard, "MOST_BODY", 1000)
    for content in (b" " * 2000, iter([b" " * 600] * 3)):
        reply = server.http.post(BODY[0], content=content, headers={"content-type": "application/json"})
        assert reply.status_code == 413 and reply.headers["connection"] == "close"


def test_a_body_that_does_not_come(server, monkeypatch):
    monkeypatch.setattr(guard, "BODY_S", 0.01)
    import socket

    url = server.http.base_url
    with socket.create_connection((url.host, url.port)) as sock:
        sock.sendall(f"POST {BODY[0]} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n".encode())
        assert b" 408 " in sock.recv(65536)


def test_halves_of_characters_are_replaced(server):
    content = json.dumps(BODY[1]).replace("Hello", "\\ud83d").encode()
    reply = server.http.post(BODY[0], content=content, headers={"content-type": "application/json"})
    assert reply.status_code == 200
    assert parsed(b'{"\\ud800": ["\\udc00"]}') == {"?": ["?"]}


def test_depth_has_a_bound():
    def nested(depth: int) -> bytes:
        return b'{"a":' * depth + b"1" + b"}" * depth

    assert parsed(nested(guard.MOST_DEPTH))
    with pytest.raises(RequestError, match="too deeply"):
        parsed(nested(guard.MOST_DEPTH + 1))


@pytest.mark.parametrize("name", ["../nano", "/etc", "./v4cli/nano/checkpoint", "gpt-4"])
def test_a_model_is_never_a_path(server, name):
    for path, body in (BODY, messages("Hello")):
        reply = server.http.post(path, json=body | {"model": name})
        assert reply.status_code == 404 and "nano" in reply.json()["error"]["message"]
    assert server.http.get(f"/v1/models/{name.lstrip('/.')}x").status_code == 404


def test_a_prompt_that_is_too_long_is_told_as_clients_expect(server, monkeypatch):
    monkeypatch.setattr(server.service.prompts, "context", 20)
    path, body = chat("Hello " * 50)
    error = server.http.post(path, json=body | {"stream": True}).json()["error"]
    assert error["code"] == "context_length_exceeded"
    path, body = messages("Hello " * 50)
    assert "prompt is too long" in server.http.post(path, json=body).json()["error"]["message"]


def test_images_are_refused_but_not_in_results(server):
    image = {"type": "image", "source": {"type": "base64", "data": "x"}}
    path, body = messages("Hello", max_tokens=1)
    refused = body | {"messages": [{"role": "user", "content": [image]}]}
    assert server.http.post(path, json=refused).status_code == 400
    result = {"type": "tool_result", "tool_use_id": "x", "content": [image]}
    post(server.http, (path, body | {"messages": [{"role": "user", "content": [result]}]}))


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/v1/nothing", 404), ("GET", "/v1/responses/resp_1", 404), ("GET", "/v1/messages", 405),
    ("DELETE", "/v1/models", 405), ("HEAD", "/", 200), ("GET", "/", 200), ("HEAD", "/health", 200),
    ("GET", "/v1/models/nano", 200),
])  # fmt: skip
def test_paths_and_methods(server, method, path, status):
    reply = server.http.request(method, path)
    assert reply.status_code == status
    assert status == 200 or isinstance(reply.json()["error"], dict)
