"""Typer's parameters, made from the table of options."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import MISSING
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from v4cli import terminal
from v4cli.clean import harmless, on_one_line
from v4cli.cli import complete
from v4cli.entries import Option, Switch, made, table
from v4cli.errors import UsageError
from v4cli.options import RunOptions

COMPLETED = {"model": complete.models, "resume": complete.conversations, "template": complete.templates}
RENAMED = {"sessions": "contexts"}  # commands, by what they were called before


class _Once:
    """A command that takes each option once, unless it is said to be repeatable; else the last one would win unseen."""

    def parse_args(self, ctx, args):
        seen = set()
        for option in self.make_parser(ctx).parse_args(args=list(args))[2]:
            simple = option.param_type_name != "option" or option.multiple or option.count
            if simple or (option.is_flag and not option.secondary_opts):
                continue
            if option in seen:
                ctx.fail(f"{' or '.join([max(option.opts, key=len), *option.secondary_opts])} is given more than once")
            seen.add(option)
        return super().parse_args(ctx, args)


class _Command(_Once, TyperCommand):
    pass


class _Group(_Once, TyperGroup):
    """Usage errors repeat what was typed, which may be names of files: they are shown without hidden characters."""

    def resolve_command(self, ctx, args):
        if (name := RENAMED.get(args[0])) and name in self.commands:
            terminal.err.write(f"v4: {args[0]} are called {name} now: v4 {name}\n")
            args = [name, *args[1:]]
        return super().resolve_command(ctx, args)

    def make_context(self, *args, **options):
        with _errors_shown_safely():
            return super().make_context(*args, **options)

    def invoke(self, ctx):
        with _errors_shown_safely():
            return super().invoke(ctx)


@contextmanager
def _errors_shown_safely():
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message") and terminal.err.is_terminal:
            error.message = on_one_line(harmless(error.message))
        raise


class Typer(typer.Typer):
    """An application, or a group of commands, that loses nothing of what is typed."""

    def __init__(self, **about):
        super().__init__(cls=_Group, **about)

    def command(self, *args, **about):
        return super().command(*args, cls=_Command, **about)


def takes(command: type, **factories: Callable[[], Any]) -> Callable[[Callable], Callable]:
    """Makes a Typer command of a function of one argument, the options `command` of the table. `factories` make the
    defaults of options, by name."""

    def decorate(function: Callable) -> Callable:
        def run(**given: Any) -> Any:
            return function(made(command, _chosen(command, given)))

        parameters = [one for entry in table(command) for one in _parameters(entry, factories.get(entry.name))]
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        run.__signature__ = inspect.Signature(parameters)
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def defaults_of(command: type, settled: Mapping[str, Any]) -> dict[str, Any]:
    """Typer's defaults for what is settled: of an option with switches, the one that says so."""
    switches = {entry.name: entry.switches for entry in table(command) if entry.switches}
    values = {name: value for name, value in settled.items() if name not in switches}
    for name in switches.keys() & settled.keys():
        values |= {_name(switch): switch.value == settled[name] for switch in switches[name]}
    return values


def _chosen(command: type, given: dict[str, Any]) -> dict[str, Any]:
    """Values by the names of options: switches stand for one, and exclude each other. UsageError."""
    for entry in table(command):
        chosen = [switch for switch in entry.switches if given.pop(_name(switch))]
        if len(chosen) > 1:
            flags = " and ".join(switch.flag for switch in chosen)
            raise UsageError(f"{flags} exclude each other", f"drop {chosen[-1].flag}")
        if chosen:
            given[entry.name] = chosen[0].value
    return given


def _parameters(entry: Option, factory: Callable[[], Any] | None) -> list[inspect.Parameter]:
    """Of an option; of one with switches, theirs."""
    if not entry.switches:
        return [_parameter(entry.name, _annotation(entry, factory), MISSING if factory else entry.default)]
    names = {_name(switch) for switch in entry.switches}

    def unless_told(ctx: typer.Context, param: typer.CallbackParam, value: bool) -> bool:
        """What is settled gives way to a flag that says something else."""
        told = any(ctx.params.get(name) for name in names - {param.name})
        return value and not (told and ctx.get_parameter_source(param.name).name == "DEFAULT_MAP")

    return [
        _parameter(_name(switch), Annotated[bool, typer.Option(switch.flag, callback=unless_told, help=switch.help)])
        for switch in entry.switches
    ]


def _parameter(name: str, annotation: Any, default: Any = False) -> inspect.Parameter:
    default = inspect.Parameter.empty if default is MISSING else None if default == () else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _annotation(entry: Option, factory: Callable[[], Any] | None = None) -> Any:
    """The type of a parameter and what Typer should know of it."""
    kind = list[entry.kind] if entry.many else entry.kind
    optional = entry.many or entry.default is None
    about = {"help": entry.help, "metavar": entry.metavar, "min": entry.least, "max": entry.most}
    about |= {"show_default": entry.shown_default or True} | ({"default_factory": factory} if factory else {})
    about |= {"autocompletion": complete.words(entry.choices) if entry.choices else COMPLETED.get(entry.name)}
    told = typer.Argument(**about) if entry.argument else typer.Option(*entry.flags, envvar=entry.variable, **about)
    return Annotated[kind | None if optional else kind, told]


def _name(switch: Switch) -> str:
    return switch.flag.removeprefix("--").replace("-", "_")


# -- for commands whose other options are nobody else's ----------------------------------------------------------


def default_model() -> str:
    """The model that is settled, or there."""
    from v4cli.settings import default_model

    return default_model()


_ENTRIES = {entry.name: entry for entry in table(RunOptions)}
DEFAULT_MODEL = {"default_factory": default_model, "show_default": _ENTRIES["model"].shown_default}
Model = _annotation(_ENTRIES["model"], default_model)
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=_ENTRIES["model"].help, autocompletion=complete.models)]
MODEL_OR_RELEASE = "A name from v4 ls, a folder, or a release that need not be here (flash, pro)."
Backend = _annotation(_ENTRIES["backend"])
Numerics = _annotation(_ENTRIES["numerics"])
Gpu = _annotation(_ENTRIES["gpu"])
Chunk = _annotation(_ENTRIES["chunk"])
KvHost = _annotation(_ENTRIES["kv_host"])
Json = _annotation(_ENTRIES["as_json"])
