"""Options that several commands share."""

from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup

from v4cli import paths, terminal
from v4cli.clean import harmless, on_one_line


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


def _unless_told(ctx: typer.Context, param: typer.CallbackParam, value: bool) -> bool:
    """What the settings say about thinking gives way to a flag that says something else."""
    told = any(ctx.params.get(name) for name in {"think", "no_think", "think_max"} - {param.name})
    return value and not (told and ctx.get_parameter_source(param.name).name == "DEFAULT_MAP")


def _default_model() -> str:
    from v4cli.settings import default_model

    return default_model()


DEFAULT_MODEL = {
    "default_factory": _default_model,
    "show_default": "the one of v4 config; the pulled model if exactly one is complete; nano",
}
Model = Annotated[str, typer.Option("--model", "-m", help="A name from v4 ls, or a folder.", **DEFAULT_MODEL)]
ChatModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A name from v4 ls, or a folder.", show_default=DEFAULT_MODEL["show_default"]),
]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A name from v4 ls, or a folder.")]
MODEL_OR_RELEASE = "A name from v4 ls, a folder, or a release that need not be here (flash, pro)."
Backend = Annotated[str | None, typer.Option(help="cpu (int8 kernels; default) or reference (plain torch).")]
Numerics = Annotated[
    str | None, typer.Option(help="Of the reference: exact (fp32; default) or official (simulated quantization).")
]
KvDir = Annotated[
    Path | None,
    typer.Option(
        envvar="V4_KV_DIR",
        help="Keep the KV cache in a file in this folder, so that it may exceed the RAM.",
        callback=lambda folder: folder and paths.expanded(folder),
    ),
]
Ram = Annotated[
    str | None,
    typer.Option(envvar="V4_RAM", help="Memory to use, like 12G; experts that do not fit are read on demand."),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither use nor store computed prefixes (v4 sessions).")]
Temp = Annotated[float | None, typer.Option(help="Temperature; 0 is greedy. Default: the release's.")]
TopP = Annotated[float | None, typer.Option(help="Nucleus sampling. Default: the release's.")]
TopK = Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 is off.")]
MinP = Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest; 0 is off.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", "-n", min=1, help="Most tokens to write.")]
Constrain = Annotated[
    bool, typer.Option("--constrain", help="Let a grammar keep tool calls well-formed (needs v4cli[grammar]).")
]
Network = Annotated[bool, typer.Option("--network", help="Let what the model runs in the sandbox use the network.")]
Think = Annotated[
    bool, typer.Option("--think", callback=_unless_told, help="Think before answering (default of v4 chat).")
]
NoThink = Annotated[
    bool, typer.Option("--no-think", callback=_unless_told, help="Answer directly (default of v4 run).")
]
ThinkMax = Annotated[bool, typer.Option("--think-max", callback=_unless_told, help="Think with the highest effort.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
