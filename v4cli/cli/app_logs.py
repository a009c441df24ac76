"""The commands of `v4 logs`."""

from typing import Annotated

import typer

from v4cli.cli import complete
from v4cli.cli.parameters import Json, Typer

logs = Typer(help="Conversations that are kept: what v4 run and v4 chat said. Alone it lists them.")
Most = Annotated[int, typer.Option("--most", "-n", min=1, help="How many, those used last first.")]
LogId = typer.Argument(metavar="ID", help="The beginning of an ID from v4 logs.", autocompletion=complete.conversations)


@logs.callback(invoke_without_command=True)
def logs_default(ctx: typer.Context, most: Most = 20, as_json: Json = False) -> None:
    """Conversations that are kept: what v4 run and v4 chat said. Alone it lists them."""
    if ctx.invoked_subcommand is None:
        logs_ls(most, as_json)
    elif as_json:
        ctx.fail(f"--json goes behind it: v4 logs {ctx.invoked_subcommand} --json")


@logs.command("ls")
def logs_ls(most: Most = 20, as_json: Json = False) -> None:
    """List those used last."""
    from v4cli.cli.logs import ls

    ls(most, as_json)


@logs.command("show")
def logs_show(wanted: Annotated[str, LogId] = "", as_json: Json = False) -> None:
    """Show one as markdown, by default the one used last."""
    from v4cli.cli.logs import show

    show(wanted, as_json)


@logs.command("search")
def logs_search(
    words: Annotated[list[str], typer.Argument(metavar="WORDS...", help="All of them, in one message.")],
    as_json: Json = False,
) -> None:
    """Find those in which something was said."""
    from v4cli.cli.logs import search

    search(" ".join(words), as_json)


@logs.command("rm")
def logs_rm(
    wanted: Annotated[list[str], LogId],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete some."""
    from v4cli.cli.logs import rm

    rm(wanted, yes)
