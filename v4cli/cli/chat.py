"""`v4 chat`: starts the REPL, on a terminal with everything it has, elsewhere line by line."""

import sys
import time
from pathlib import Path

from v4cli import paths
from v4cli.cli import output
from v4cli.errors import UsageError
from v4cli.options import ChatOptions
from v4cli.repl.setup import Setup
from v4cli.store import library
from v4cli.streams import is_screen


def chat(told: ChatOptions) -> None:
    """Talk until the user leaves. Contradicting options fail before anything is loaded."""
    if told.list_all:
        _list(told.as_json)
        return
    if told.as_json:
        raise UsageError("--json is for --list", "v4 chat --list --json")
    setup = _setup(told)
    if told.plain or not _is_terminal():
        from v4cli.repl.plain import run
    else:
        from v4cli.repl.app import run
    run(setup)


def _is_terminal() -> bool:
    return all(map(is_screen, (sys.stdin, sys.stdout, sys.stderr)))


def _setup(told: ChatOptions) -> Setup:
    if told.go_on and told.resume is not None:
        raise UsageError("--continue and --resume exclude each other", "drop --continue")
    if told.model is not None:
        library.model_folder(told.model)
    output.ram_budget(told.loading.ram)

    def open_model(name: str):
        from v4cli.cli import sessions

        return sessions.open_chat(name, told.loading)

    return Setup(told, paths.here(), _resumed(told), open_model, _keep, _stats_line)


def _resumed(told: ChatOptions) -> Path | None:
    """The file of the conversation to go on with."""
    if not told.go_on and told.resume is None:
        return None
    from v4cli.agent.transcript import find

    return find(paths.chats_dir(), told.resume or "").path


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
