"""`v4 serve`, `v4 ps`, `v4 stop`."""

import os
import shlex
import sys
import threading
import time
from dataclasses import replace

from v4cli import paths
from v4cli.cli import output, sessions
from v4cli.entries import typed
from v4cli.errors import UsageError, V4Error
from v4cli.options import ServeOptions
from v4cli.store import library

UNIT = """\
[Unit]
Description=v4 serve
After=network.target

[Service]
ExecStart={command}
KillSignal=SIGTERM
TimeoutStopSec=90
Restart=on-failure

[Install]
WantedBy=default.target
"""
WAIT_S = 60.0  # that v4 stop waits for a server to end


def serve(told: ServeOptions) -> None:
    """Load the model, then answer until a signal comes."""
    if told.print_unit:
        output.answer(UNIT.format(command=_command(told)))
        return
    from v4cli.serve import server
    from v4cli.serve.app import application
    from v4cli.serve.http import LOOPBACK
    from v4cli.serve.running import registered
    from v4cli.serve.served import Served
    from v4cli.serve.service import Service

    idle_s = output.parse_duration(told.idle, "--idle") if told.idle else None
    local = server.is_loopback(told.host)
    if not local and not told.api_key:
        raise UsageError(f"--host {told.host} lets others in, who need a key", "--api-key KEY, or V4_API_KEY")
    if not local:
        output.note(
            f"v4: {told.host} is no address of this machine alone: what is said goes over the network unencrypted"
        )
    sock = server.listening(told.host, told.port)
    try:
        log, name = _Log(), _name(told.model)
        served = Served(lambda: sessions.open_chat(told.model, told.loading), log.line)
        service = Service(served, name, told.sessions, log.line, told.loops == "stop")
        app = application(service, LOOPBACK | {told.host} if local else None, told.api_key, os.getpid())
        shown = f"[{told.host}]" if ":" in told.host else told.host
        url = f"http://{shown}:{sock.getsockname()[1]}"
        folder = library.model_folder(told.model)
        with registered(url, name, told.sessions, folder, bool(told.api_key)):
            output.note(f"v4: {name} is served at {url}/v1 (Ctrl-C ends it)")
            notes = server.serve(app, service, sock, idle_s)
        for note in notes:
            output.note(f"v4: {note}", dim=True)
    finally:
        sock.close()


class _Log:
    """Lines for people, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def line(self, text: str) -> None:
        with self._lock:
            output.note(f"{time.strftime('%H:%M:%S')} {text}", dim=True)


def _name(model: str) -> str:
    """What clients call a model."""
    return os.path.basename(os.path.normpath(model))


def _command(told: ServeOptions) -> str:
    """The command line that serves the same."""
    kv_dir = told.loading.kv_dir and told.loading.kv_dir.absolute()
    told = replace(told, api_key=None, print_unit=False, loading=replace(told.loading, kv_dir=kv_dir))
    model = os.path.abspath(told.model) if os.sep in told.model else told.model
    words = [sys.executable, "-m", "v4cli", "serve", model, *typed(told)]
    if home := os.environ.get("V4_HOME"):
        words = ["/usr/bin/env", f"V4_HOME={paths.expanded(home).absolute()}", *words]
    return shlex.join(words).replace("%", "%%")


def ps(as_json: bool) -> None:
    """All servers."""
    from dataclasses import asdict

    from v4cli.serve.running import servers

    found = servers()
    if as_json:
        output.json_page([asdict(server) for server in found])
        return
    if not found:
        output.note("no server runs; v4 serve starts one")
        return
    rows = [("PID", "MODEL", "URL", "SESSIONS")]
    rows += [(str(server.pid), server.model, server.url, str(server.sessions)) for server in found]
    output.table(rows)


def stop(which: str) -> None:
    """Stop one, or all; wait until it has ended. UsageError if it is not clear which."""
    from v4cli.serve.running import servers

    found = servers()
    chosen = [s for s in found if which in ("", "all", str(s.pid)) or s.url.endswith(f":{which}")]
    if not chosen:
        raise UsageError(f"no server {which or 'runs'}".strip(), "v4 ps lists those that run")
    if which != "all" and len(chosen) > 1:
        raise UsageError(f"{len(chosen)} servers run", f"v4 stop {chosen[0].pid}, or v4 stop all")
    for one in chosen:
        one.stop()
    end = time.monotonic() + WAIT_S
    while any(one.is_alive for one in chosen):
        if time.monotonic() > end:
            raise V4Error("it is still answering", f"kill {chosen[0].pid} again ends it at once")
        time.sleep(0.05)
    output.note(f"stopped {', '.join(str(one.pid) for one in chosen)}")
