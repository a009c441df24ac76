"""The commands of `v4 config`."""

import os

from v4cli import terminal
from v4cli.cli.parameters import Json, Typer

config = Typer(
    help="Settings: what is used where a command is not told otherwise.",
    epilog="A flag goes before a V4_* variable, that before .v4cli.toml in the current folder, that before the "
    "file of v4 config path. A project's file may say how to answer, never what may run.",
    no_args_is_help=True,
)


@config.command("show")
def config_show(as_json: Json = False) -> None:
    """Show every setting and where it comes from."""
    from v4cli.cli.config import show

    show(as_json)


@config.command("path")
def config_path() -> None:
    """Print where your file of settings is or would be."""
    from v4cli import paths

    terminal.out.line(os.fsencode(paths.config_file()))
