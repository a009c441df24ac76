"""The commands of `v4 config`."""

import os
from typing import Annotated

import typer

from v4cli import terminal
from v4cli.cli import complete
from v4cli.cli.parameters import Json, Typer

config = Typer(
    help="Settings: what is used where a command is not told otherwise.",
    epilog="A flag goes before a V4_* variable, that before .v4cli.toml in the current folder, that before the "
    "file of v4 config path. A project's file may say how to answer, never what may run.",
)


@config.callback(invoke_without_command=True)
def config_default(ctx: typer.Context, as_json: Json = False) -> None:
    """Settings: what is used where a command is not told otherwise. Alone it shows them."""
    if ctx.invoked_subcommand is None:
        config_show(as_json)
    elif as_json:
        ctx.fail(f"--json goes behind it: v4 config {ctx.invoked_subcommand} --json")


@config.command("show")
def config_show(as_json: Json = False) -> None:
    """Show every setting and where it comes from."""
    from v4cli.cli.config import show

    show(as_json)


@config.command("set")
def config_set(
    key: Annotated[str, typer.Argument(metavar="KEY", autocompletion=complete.settings, help="A name of v4 config.")],
    value: Annotated[str, typer.Argument(metavar="VALUE", help="Its value; default takes the setting back.")],
) -> None:
    """Settle one, in your file of settings; what else is in it stays as it is."""
    from v4cli.cli.config import change

    change(key, value)


@config.command("path")
def config_path() -> None:
    """Print where your file of settings is or would be."""
    from v4cli import paths

    terminal.out.line(os.fsencode(paths.config_file()))
