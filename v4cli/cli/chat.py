"""`v4 chat`: starts the REPL, on a terminal with everything it has, elsewhere line by line."""

import contextlib
import sys
from dataclasses import replace
from pathlib import Path

from v4cli import paths, settings, system
from v4cli.cli import output
from v4cli.errors import UsageError
from v4cli.options import ChatOptions, Said
from v4cli.repl.setup import Setup
from v4cli.store import library
from v4cli.streams import is_screen


def chat(told: ChatOptions) -> None:
    """Talk until the user leaves. Contradicting options fail before anything is loaded."""
    draws = not told.plain and _is_terminal()
    setup = _setup(told, draws)
    if draws:
        from v4cli.repl.app import run
    else:
        from v4cli.repl.plain import run
    run(setup)


def _is_terminal() -> bool:
    """Whether the three streams are one that the REPL knows: the keys of Windows' consoles are of another kind."""
    return not system.WINDOWS and all(map(is_screen, (sys.stdin, sys.stdout, sys.stderr)))


def _setup(told: ChatOptions, draws: bool) -> Setup:
    """`draws`: whoever shows the conversation has a status line, which says what is waited for."""
    opening = _opening(told.said)
    if told.shape.format or told.shape.schema:
        from v4cli.chat import constraints, formats

        wanted = formats.wanted(told.shape.format, told.shape.schema)
        constraints.check_early(wanted)
        told = replace(told, answer=replace(told.answer, format=wanted))
    if told.loading.engine:
        from v4cli.cli import remote

        told = replace(told, model=remote.model_of(told.model or settings.default_model(), told.loading))
    if told.model is not None:
        library.model_folder(told.model)
    output.ram_budget(told.loading.ram)

    def open_model(name: str):
        from v4cli.cli import found, progress, sessions

        notes: list[str] = []
        with contextlib.nullcontext() if draws else progress.waiting(f"loading {name}"):
            chat = sessions.open_chat(name, found.nearest(name, told.loading, notes.append))
        chat.notes = notes
        return chat

    return Setup(told, paths.here(), _resumed(told.said), open_model, _keep, _greet, _stats_line, opening)


def _opening(told: Said) -> str:
    """The first line, if the command line says one."""
    if told == Said():
        return ""
    from v4cli.cli.said import STDIN, said, typed

    if STDIN in told.files:
        raise UsageError("-f - is stdin, where the lines of the chat come from", 'v4 run -f - "question"')
    said(told, piped=False)  # what cannot be read is refused before the model is loaded
    return typed(told)


def _resumed(told: Said) -> Path | None:
    """The file of the conversation to go on with."""
    if not told.go_on and told.resume is None:
        return None
    from v4cli.agent.transcript import find

    return find(paths.chats_dir(), told.resume or "").path


# -- for the REPL, which has loaded a model by then, so that these imports cost nothing ------


def _keep(session) -> list[str]:
    from v4cli.cli.sessions import store

    return store(session)


def _greet(dialogue) -> list[tuple[str, str]]:
    from v4cli.cli.welcome import greeting

    return greeting(dialogue, alone=len(sys.argv) == 1)


def _stats_line(stats) -> str:
    from v4cli.cli.run_output import stats_line

    return stats_line(stats)
