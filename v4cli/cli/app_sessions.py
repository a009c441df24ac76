"""The commands of `v4 sessions`."""

from pathlib import Path
from typing import Annotated

import typer

from v4cli.cli.parameters import Json, Model, Typer

sessions = Typer(
    help="Contexts that are stored: what begins like one of them goes on from there.",
    epilog="V4_CACHE_DISK (20G, 0 is off) bounds what they take, V4_CACHE_WRITES (50G) what is written per day.",
    no_args_is_help=True,
)
SessionId = Annotated[str, typer.Argument(metavar="ID", help="The beginning of an ID from v4 sessions ls.")]


@sessions.command("ls")
def sessions_ls(as_json: Json = False) -> None:
    """List them, those used last first."""
    from v4cli.cli.sessions import ls

    ls(as_json)


@sessions.command("show")
def sessions_show(wanted: SessionId, as_json: Json = False) -> None:
    """Show one with its text."""
    from v4cli.cli.sessions import show

    show(wanted, as_json)


@sessions.command("rm")
def sessions_rm(
    wanted: Annotated[list[str] | None, typer.Argument(metavar="ID...", help="Beginnings of IDs.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete some. What others share stays."""
    from v4cli.cli.sessions import rm

    rm(wanted or [], everything, yes)


@sessions.command("export")
def sessions_export(wanted: SessionId, to: Annotated[Path, typer.Argument(metavar="FILE")]) -> None:
    """Write one to a file that v4 sessions import takes on any machine."""
    from v4cli.cli.sessions import export

    export(wanted, to)


@sessions.command("import")
def sessions_import(source: Annotated[Path, typer.Argument(metavar="FILE")], model: Model) -> None:
    """Store one from a file, for a model of the same configuration; its quantization may be another."""
    from v4cli.cli.sessions import import_file

    import_file(source, model)
