"""A server that is there already: so that no command loads a model a second time."""

import os
from collections.abc import Callable
from contextlib import suppress

from v4cli import settings
from v4cli.entries import made
from v4cli.errors import NetworkError, UsageError, V4Error
from v4cli.options import Loading
from v4cli.serve.running import Running, servers
from v4cli.store import library

PATIENCE_S = 10.0  # that a server of this machine has to say what it serves


def of_model(model: str) -> Running | None:
    """The server of this model that was started last, if one runs."""
    there = servers()
    if not there:
        return None
    with settings.blamed("model", model):
        folder = str(library.model_folder(model).resolve())
    return max((server for server in there if server.folder == folder), key=lambda s: s.created, default=None)


def nearest(model: str, loading: Loading, say: Callable[[str], None], command: str = "run") -> Loading:
    """How to come by a model: from the server of this machine that has it, which `say` is told; unless another way is
    asked for, or how to load it. `command`: whose settings are obeyed."""
    if loading.local or loading.engine or loading != made(Loading, settings.defaults(command)):
        return loading
    server = of_model(model)
    if server is None:
        return loading
    try:
        at(server.url, os.environ.get("V4_API_KEY", ""))
    except V4Error as error:
        say(f"{error}; the model is loaded here")
        return loading
    say(f"the server at {server.url} has {server.model} and answers (--local loads it here)")
    return Loading(engine=server.url)


def running() -> Running | None:
    """The only server that runs; of several, that of the model which is usual. UsageError if it is not clear which."""
    found = servers()
    if len(found) < 2:
        return found[0] if found else None
    usual = None
    with suppress(V4Error):
        usual = of_model(settings.default_model())
    if usual is None:
        names = ", ".join(sorted({server.model for server in found}))
        raise UsageError(f"{len(found)} servers run, of {names}", f"--model {found[0].model}")
    return usual


def at(url: str, key: str) -> tuple[str, int]:
    """The model that a server of ours serves, and the tokens of its context. NetworkError, UsageError."""
    import httpx2

    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        reply = httpx2.get(f"{url}/v1/models", headers=headers, timeout=PATIENCE_S, trust_env=False)
        if reply.status_code == 401:
            raise UsageError(
                f"{url} wants another key" if key else f"{url} wants a key", "V4_API_KEY=KEY, as it was started with"
            )
        model = reply.json()["data"][0]
        return str(model["id"]), int(model["context_length"])
    except httpx2.HTTPError as error:
        raise NetworkError(f"{url}: {error}", "v4 ps lists the servers that run") from None
    except (ValueError, LookupError, TypeError):
        raise V4Error(f"{url} is no server of v4", "v4 ps lists those that run") from None
