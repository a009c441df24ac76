"""`v4 launch`: a program for coding, with a server of ours: one that runs, or one for as long as the program does."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from v4cli import interrupts, settings, system
from v4cli.cli import output
from v4cli.cli.clients import CLIENTS, Place
from v4cli.cli.found import at, of_model, running
from v4cli.entries import typed
from v4cli.errors import UsageError, V4Error
from v4cli.options import LaunchOptions
from v4cli.serve.running import Running, servers

LOOK_S = 0.05  # between two looks whether a server is there
STOP_S = 60.0  # that a server of our own has to store what it computed


def launch(told: LaunchOptions) -> None:
    """Run the client; this process ends as it does."""
    client = CLIENTS.get(told.client)
    if client is None:
        raise UsageError(f"there is no client {told.client[:60]!r}", f"v4 launch {' | '.join(CLIENTS)}")
    program = shutil.which(client.program)
    if program is None:
        raise UsageError(f"{client.program} is not installed", client.install)
    with tempfile.TemporaryDirectory(prefix="v4-launch-") as name, _server(told, Path(name)) as url:
        key = os.environ.get("V4_API_KEY", "")
        model, context = at(url, key)
        output.note(f"v4: {client.program} uses {model} at {url}", dim=True)
        start = client.start(Place(url, model, context, key, Path(name)), told.arguments)
        environment = {**os.environ, **start.environment}
        environment = {name: value for name, value in environment.items() if value is not None}
        status = _run([program, *start.flags, *told.arguments], environment)
    sys.exit(status)


@contextlib.contextmanager
def _server(told: LaunchOptions, folder: Path) -> Iterator[str]:
    """Within: the address of one that is named, or runs and has the model that is wanted, or is new."""
    if told.loading.engine:
        yield told.loading.engine.rstrip("/").removesuffix("/v1")
        return
    found = of_model(told.model) if told.model else running()
    if found is not None:
        yield found.url
        return
    with _started(told, folder / "server.log") as server:
        yield server.url


@contextlib.contextmanager
def _started(told: LaunchOptions, log: Path) -> Iterator[Running]:
    """Within: a server of our own, which writes what it has to say into `log`. V4Error if it does not start."""
    model = told.model or settings.default_model()
    command = [sys.executable, "-m", "v4cli", "serve", model, "--port", "0", *typed(told.loading)]
    output.note(f"v4: a server of {model} is started", dim=True)
    with open(log, "wb") as to:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=to, stderr=to, **system.APART)
    try:
        with interrupts.killing(process.terminate):
            yield _there(process, log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _there(process: subprocess.Popen, log: Path) -> Running:
    """The server, once it takes requests."""
    while True:
        found = next((server for server in servers() if server.pid == process.pid), None)
        if found is not None:
            return found
        if process.poll() is not None:
            lines = log.read_text("utf-8", "replace").splitlines()
            said = next((line.removeprefix("v4: ") for line in reversed(lines) if not line.startswith("hint: ")), "")
            hint = next((line.removeprefix("hint: ") for line in reversed(lines) if line.startswith("hint: ")), "")
            raise V4Error(f"the server has not started: {said or process.returncode}", hint)
        time.sleep(LOOK_S)


def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    """Let a program have the terminal; its exit code. Ctrl-C there is for the program, which hears it by itself, and
    on Windows whatever else there is."""
    hears_itself = sys.stdin.isatty()
    process = subprocess.Popen(command, env=environment)

    def heard(number: int, frame: object) -> None:
        if not system.WINDOWS and (number != signal.SIGINT or not hears_itself):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    with interrupts.handed_over(heard):
        status = process.wait()
    return status if status >= 0 else 128 - status
