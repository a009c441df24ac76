"""`v4 chat`: starts the REPL, on a terminal with everything it has, elsewhere line by line."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from v4cli import paths
from v4cli.cli import output
from v4cli.cli.run_input import one_way_of_thinking
from v4cli.errors import UsageError
from v4cli.files import argument
from v4cli.repl.setup import Setup
from v4cli.settings import APPROVE
from v4cli.store import library
from v4cli.streams import is_screen


@dataclass(frozen=True)
class ChatRequest:
    """The options of `v4 chat`, as typed; the defaults are those of the command line."""

    model: str | None = None
    system: str = ""
    think: bool = False
    no_think: bool = False
    think_max: bool = False
    go_on: bool = False
    resume: str | None = None
    list_all: bool = False
    as_json: bool = False
    tools: str | None = None
    approve: str = "ask"
    network: bool = False
    constrain: bool = False
    max_tokens: int | None = None
    temp: float | None = None
    top_p: float | None = None
    top_k: int = 0
    min_p: float = 0.0
    plain: bool = False
    backend: str | None = None
    numerics: str | None = None
    ram: str | None = None
    kv_dir: Path | None = None
    no_cache: bool = False


def chat(request: ChatRequest) -> None:
    """Talk until the user leaves. Contradicting options fail before anything is loaded."""
    if request.list_all:
        _list(request.as_json)
        return
    if request.as_json:
        raise UsageError("--json is for --list", "v4 chat --list --json")
    one_way_of_thinking(request)
    setup = _setup(request)
    if request.plain or not _is_terminal():
        from v4cli.repl.plain import run
    else:
        from v4cli.repl.app import run
    run(setup)


def _is_terminal() -> bool:
    return all(map(is_screen, (sys.stdin, sys.stdout, sys.stderr)))


def _setup(request: ChatRequest) -> Setup:
    if request.approve not in APPROVE:
        raise UsageError(f"--approve must be one of {', '.join(APPROVE)}", "v4 chat --approve ask")
    if request.go_on and request.resume is not None:
        raise UsageError("--continue and --resume exclude each other", "drop --continue")
    if request.model is not None:
        library.model_folder(request.model)
    ram = output.ram_budget(request.ram)

    def open_model(name: str):
        from v4cli.chat.turn import Chat
        from v4cli.cli import sessions

        folder, session = library.model_folder(name), sessions.session_maker(request.kv_dir, not request.no_cache)
        return Chat.open(folder, request.backend, request.numerics, session, ram, paths.use_dir())

    sampling = {
        "temperature": request.temp, "top_p": request.top_p, "top_k": request.top_k, "min_p": request.min_p,
        "max_tokens": request.max_tokens, "constrain": request.constrain,
        "effort": "max" if request.think_max else None,
    }  # fmt: skip
    return Setup(
        model=request.model, system=argument(request.system, "--system"), thinking=not request.no_think,
        tools=request.tools, approve=request.approve, folder=paths.here(), resume=_resumed(request), open=open_model,
        keep=_keep, stats_line=_stats_line, sampling=sampling, network=request.network,
    )  # fmt: skip


def _resumed(request: ChatRequest) -> Path | None:
    """The file of the conversation to go on with."""
    if not request.go_on and request.resume is None:
        return None
    from v4cli.agent.transcript import find

    return find(paths.chats_dir(), request.resume or "").path


def _list(as_json: bool) -> None:
    """The conversations that are kept, those used last first."""
    from v4cli.agent.transcript import transcripts

    found = [
        kept.about | {"messages": len(kept.messages), "used": int(kept.path.stat().st_mtime)}
        for kept in transcripts(paths.chats_dir(), lambda error: output.note(f"not listed: {error}"))
    ]
    if as_json:
        output.json_page(found)
    elif not found:
        output.note(f"no conversation is kept yet under {paths.chats_dir()}")
    else:
        rows = [("ID", "USED", "MESSAGES", "MODEL", "TITLE")]
        for about in found:
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(about["used"]))
            model = str(about.get("model", ""))
            rows.append((about["id"], used, str(about["messages"]), model, about["title"]))
        output.table(rows)


# -- for the REPL, which has loaded a model by then, so that these imports cost nothing ------


def _keep(session) -> list[str]:
    from v4cli.cli.sessions import store

    return store(session)


def _stats_line(stats) -> str:
    from v4cli.cli.run_output import stats_line

    return stats_line(stats)
