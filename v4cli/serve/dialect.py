"""What the dialects have in common: a dialect reads requests, and makes of typed events its stream; what it answers
without a stream is built from what it would have streamed."""

import json
import secrets
import time
from abc import ABC, abstractmethod

from v4cli.serve.asked import Asked
from v4cli.serve.events import End, Event, Failed, Usage

_written = json.JSONEncoder(ensure_ascii=False).encode
COMMENT = ": working\n\n"  # a sign of life that is no event


class Machine(ABC):
    """The answer to one request, event by event. Each method gives what is to be sent, which may be nothing."""

    def __init__(self, asked: Asked, model: str, n_prompt: int):
        """`n_prompt`: tokens."""
        self.asked, self.model = asked, model
        self.usage = Usage(n_prompt)
        self.created = int(time.time())

    @abstractmethod
    def begin(self) -> list[str]:
        """Before anything is known: the request has been understood."""

    @abstractmethod
    def take(self, choice: int, event: Event) -> list[str]:
        """The next event of a choice."""

    @abstractmethod
    def end(self, end: End) -> list[str]:
        """The end of the answer."""

    @abstractmethod
    def beat(self) -> list[str]:
        """A sign of life, at any moment between `begin` and `end`."""

    @abstractmethod
    def final(self) -> dict:
        """The whole answer, after its end."""


def new_id(prefix: str) -> str:
    """An id that nobody can guess."""
    return f"{prefix}{secrets.token_hex(12)}"


def sse(data: dict, name: str | None = None) -> str:
    """One event of a stream."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {_written(data)}\n\n"


def openai_error(failed: Failed) -> dict:
    """The envelope of Chat Completions and Responses."""
    kind = {400: "invalid_request_error", 404: "not_found_error", 401: "authentication_error"}
    usual = "invalid_request_error" if failed.status < 500 else "server_error"
    about = {"message": failed.message, "type": kind.get(failed.status, usual), "param": None, "code": failed.code}
    return {"error": about}


def anthropic_error(failed: Failed) -> dict:
    """The envelope of Messages."""
    kind = {
        401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
        503: "overloaded_error",
    }  # fmt: skip
    usual = "invalid_request_error" if failed.status < 500 else "api_error"
    return {"type": "error", "error": {"type": kind.get(failed.status, usual), "message": failed.message}}
