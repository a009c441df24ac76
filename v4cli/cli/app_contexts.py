"""The commands of `v4 contexts`."""

from pathlib import Path
from typing import Annotated

import typer

from v4cli.cli import complete
from v4cli.cli.parameters import Json, Model, Typer

contexts = Typer(
    help="Computed contexts that are stored: what begins like one of them goes on from there. Alone it lists them.",
    epilog="V4_CACHE_DISK (20G, 0 is off) bounds what they take, V4_CACHE_WRITES (50G) what is written per day.",
)
ContextId = Annotated[
    str,
    typer.Argument(metavar="ID", help="The beginning of an ID from v4 contexts.", autocompletion=complete.contexts),
]


@contexts.callback(invoke_without_command=True)
def contexts_default(ctx: typer.Context, as_json: Json = False) -> None:
    """Computed contexts that are stored: what begins like one of them goes on from there. Alone it lists them."""
    if ctx.invoked_subcommand is None:
        contexts_ls(as_json)
    elif as_json:
        ctx.fail(f"--json goes behind it: v4 contexts {ctx.invoked_subcommand} --json")


@contexts.command("ls")
def contexts_ls(as_json: Json = False) -> None:
    """List them, those used last first."""
    from v4cli.cli.sessions import ls

    ls(as_json)


@contexts.command("show")
def contexts_show(wanted: ContextId, as_json: Json = False) -> None:
    """Show one with its text."""
    from v4cli.cli.sessions import show

    show(wanted, as_json)


@contexts.command("rm")
def contexts_rm(
    wanted: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID...", help="Beginnings of IDs.", autocompletion=complete.contexts),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete some. What others share stays."""
    from v4cli.cli.sessions import rm

    rm(wanted or [], everything, yes)


@contexts.command("export")
def contexts_export(wanted: ContextId, to: Annotated[Path, typer.Argument(metavar="FILE")]) -> None:
    """Write one to a file that v4 contexts import takes on any machine."""
    from v4cli.cli.sessions import export

    export(wanted, to)


@contexts.command("import")
def contexts_import(source: Annotated[Path, typer.Argument(metavar="FILE")], model: Model) -> None:
    """Store one from a file, for a model of the same configuration; its quantization may be another."""
    from v4cli.cli.sessions import import_file

    import_file(source, model)
