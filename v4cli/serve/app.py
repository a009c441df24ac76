"""The routes."""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from v4cli import __version__
from v4cli.errors import ContextError, UsageError
from v4cli.serve import chat_api, completions_api, messages_api, responses_input
from v4cli.serve.asked import Asked
from v4cli.serve.chat_api import ChatMachine
from v4cli.serve.completions_api import CompletionsMachine
from v4cli.serve.dialect import Machine
from v4cli.serve.events import Failed
from v4cli.serve.http import EventStream, Guard, Refused, Reply, aside, body_of, error_response, unless_hung_up
from v4cli.serve.messages_api import MessagesMachine
from v4cli.serve.metrics import MEDIA_TYPE
from v4cli.serve.page import page
from v4cli.serve.prompts import Encoded
from v4cli.serve.responses_api import ResponsesMachine
from v4cli.serve.service import Busy, Service, UnknownModel
from v4cli.serve.state import state

Read = Callable[[dict], Asked]
Makes = Callable[[list[Encoded], dict, str], Machine]
Endpoint = Callable[[Request], Awaitable[Response]]


def application(service: Service, hosts: frozenset[str] | None, key: str | None, pid: int = 0) -> ASGIApp:
    """Everything that is served. `hosts`: names by which it may be called, None for any; `key`: what clients must
    know, if anything; `pid` is told by /health."""
    dialects = {
        "/v1/chat/completions": _endpoint(service, chat_api.read, _chat),
        "/v1/completions": _endpoint(service, completions_api.read, _completions),
        "/v1/messages": _endpoint(service, messages_api.read, _messages),
        "/v1/responses": _endpoint(service, responses_input.read, _responses),
        "/v1/messages/count_tokens": _safely(_counter(service)),
    }
    posts = [Route(path, endpoint, methods=["POST"]) for path, endpoint in dialects.items()]
    posts += [Route(f"/anthropic{path}", e, methods=["POST"]) for path, e in dialects.items() if "messages" in path]
    gets = [
        Route(path, endpoint)
        for path, endpoint in (
            ("/", page), ("/health", _health(service, pid)), ("/metrics", _metrics(service)),
            ("/state", _state(service)), ("/v1/models", _models(service)), ("/v1/models/{name:path}", _model(service)),
        )
    ]  # fmt: skip
    handlers = {HTTPException: _http_error, Exception: _unexpected}
    return Guard(Starlette(routes=posts + gets, exception_handlers=handlers), hosts, key, service.metrics)


def _chat(encoded: list[Encoded], body: dict, model: str) -> Machine:
    return ChatMachine(encoded[0].asked, model, len(encoded[0].ids), _wants_usage(body))


def _completions(encoded: list[Encoded], body: dict, model: str) -> Machine:
    return CompletionsMachine(encoded[0].asked, model, [one.ids for one in encoded], _wants_usage(body))


def _messages(encoded: list[Encoded], body: dict, model: str) -> Machine:
    return MessagesMachine(encoded[0].asked, model, len(encoded[0].ids))


def _responses(encoded: list[Encoded], body: dict, model: str) -> Machine:
    return ResponsesMachine(encoded[0].asked, model, len(encoded[0].ids), body)


def _wants_usage(body: dict) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _endpoint(service: Service, read: Read, makes: Makes) -> Endpoint:
    """Where a dialect's requests come in. All that can be wrong with one is told before its stream begins."""

    async def answer(request: Request) -> Response:
        body = await body_of(request)
        asked = read(body)
        service.check_room()
        encoded = await aside(request, service.encoded, asked)
        machine = makes(encoded, body, asked.model or service.name)
        answering = service.answering(encoded)
        if asked.stream:
            return EventStream(answering.stream(machine), answering.cancel)
        whole = await unless_hung_up(answering.whole(machine), request.receive, answering.cancel)
        if whole is None or isinstance(whole, Failed):
            return error_response(request.url.path, whole or Failed("the client has hung up", 499))
        return Reply(whole)

    return _safely(answer)


def _safely(answer: Endpoint) -> Endpoint:
    """Errors in the envelope of the dialect."""

    async def safely(request: Request) -> Response:
        try:
            return await answer(request)
        except Refused as refused:
            failed = refused.failed
        except ContextError as error:
            failed = Failed(f"prompt is too long: {error}", 400, "context_length_exceeded")
        except UsageError as error:
            failed = Failed(str(error), 400)
        except UnknownModel as error:
            failed = Failed(str(error), 404, "model_not_found")
        except Busy as error:
            failed = Failed(str(error), 503, "overloaded")
        except ClientDisconnect:
            failed = Failed("the client has hung up", 499)
        return error_response(request.url.path, failed)

    return safely


def _counter(service: Service) -> Endpoint:
    async def count_tokens(request: Request) -> Response:
        asked = messages_api.read(await body_of(request))
        [encoded] = await aside(request, service.encoded, asked)
        return Reply({"input_tokens": len(encoded.ids)})

    return count_tokens


def _models(service: Service) -> Endpoint:
    async def models(request: Request) -> Response:
        data = service.models()
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"], "has_more": False}
        return Reply({"object": "list", "data": data, **ends})

    return models


def _model(service: Service) -> Endpoint:
    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        service.check_model(name or "/")  # a path that ends too early names none
        found = next((model for model in service.models() if model["id"] == name), service.models()[0])
        return Reply(found)

    return _safely(model)


def _health(service: Service, pid: int) -> Endpoint:
    async def health(request: Request) -> Response:
        pool = service.pool
        about = {"model": service.name, "version": __version__, "pid": pid, "loaded": service.engine is not None}
        load = {"queued": pool.n_waiting, "busy": pool.n_busy, "sessions": pool.n_kept}
        return Reply({"status": "ok", **about, **load})

    return health


def _state(service: Service) -> Endpoint:
    async def its(request: Request) -> Response:
        return Reply(state(service))

    return its


def _metrics(service: Service) -> Endpoint:
    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(service.engine, service.pool), media_type=MEDIA_TYPE)

    return metrics


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    failed = Failed(f"{request.method} {request.url.path[:80]}: {error.detail}", error.status_code)
    return error_response(request.url.path, failed, dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> Response:
    return error_response(request.url.path, Failed(f"unexpected {type(error).__name__}", 500))
