"""The `v4` command: which subcommands and options there are.

Command modules are imported when they run, so that `v4 --help` stays quick.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from v4cli import __version__
from v4cli.cli import complete, output
from v4cli.cli.app_bench import bench
from v4cli.cli.app_config import config
from v4cli.cli.app_contexts import contexts
from v4cli.cli.app_logs import logs
from v4cli.cli.parameters import (
    DEFAULT_MODEL,
    MODEL_OR_RELEASE,
    Backend,
    Chunk,
    Gpu,
    Json,
    KvHost,
    Model,
    ModelName,
    Numerics,
    Typer,
    default_model,
    defaults_of,
    takes,
)
from v4cli.options import COMMANDS, ChatOptions, LaunchOptions, RolloutOptions, RunOptions, ServeOptions

Quant = Annotated[
    str | None, typer.Option(metavar="NAME|FILE", help="native (the default), q4, q3, mix, q2, or a file of rules.")
]
ByCalibration = Annotated[
    Path | None, typer.Option("--calibration", help="Round low bits as this file of v4 calibrate says.", metavar="FILE")
]

app = Typer(
    name="v4",
    help="Run DeepSeek-V4 on your own machine.",
    epilog="Exit codes: 0 ok, 1 failure, 2 usage, 3 model, 4 memory or disk, 5 network, 6 limit, 130 Ctrl-C.",
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(contexts, name="contexts")
app.add_typer(logs, name="logs")
app.add_typer(bench, name="bench")
app.add_typer(config, name="config")


@app.callback(invoke_without_command=True)
def default(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-v", help="Print the version and exit.")] = False,
) -> None:
    """Run DeepSeek-V4 on your own machine. Without a command: chat in a terminal, run in a pipe."""
    if version:
        output.answer(f"{__version__}\n")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        if sys.stdin.isatty():
            app(["chat"])
        else:
            app(["run"])
    elif command := COMMANDS.get(ctx.invoked_subcommand):
        from v4cli import settings

        ctx.default_map = {ctx.invoked_subcommand: defaults_of(command, settings.defaults(ctx.invoked_subcommand))}


@app.command()
@takes(RunOptions)
def run(told: RunOptions) -> None:
    """Answer one prompt. Only the answer goes to stdout.

    With --tools the model works in the current folder until it is done. --output-format stream-json prints one object
    a line; its type is init, thinking, message, tool_use, tool_result, end (of a turn), error or result.
    """
    from v4cli.cli.run import run_once

    run_once(told)


@app.command()
@takes(ChatOptions)
def chat(told: ChatOptions) -> None:
    """Talk in the terminal. Ctrl-C stops an answer, Ctrl-D leaves, /help tells the rest."""
    from v4cli.cli.chat import chat

    chat(told)


@app.command()
@takes(RolloutOptions, model=default_model)
def rollout(told: RolloutOptions) -> None:
    """Let the model work on many tasks, each in a fresh sandbox, and reward what it did. Run it again to go on after
    any interruption."""
    from v4cli.cli.rollout import run_rollouts

    run_rollouts(told)


@app.command()
@takes(ServeOptions, model=default_model)
def serve(told: ServeOptions) -> None:
    """Answer editors, agents and scripts over HTTP, in the words of Chat Completions, Messages and Responses. Ctrl-C or
    v4 stop ends it, once what it is answering is answered."""
    from v4cli.cli.serve import serve

    serve(told)


@app.command()
@takes(LaunchOptions)
def launch(told: LaunchOptions) -> None:
    """Start a program for coding (claude, codex, opencode or aider) that uses a model here: that of a server which
    runs, or of one that is started and ends with it. None of its files is changed."""
    from v4cli.cli.launch import launch

    launch(told)


@app.command()
def ps(as_json: Json = False) -> None:
    """List the servers that run on this machine."""
    from v4cli.cli.serve import ps

    ps(as_json)


@app.command()
def stop(which: Annotated[str, typer.Argument(metavar="[PORT|PID|all]", help="Default: the only one.")] = "") -> None:
    """Stop a server; what it is answering is answered before."""
    from v4cli.cli.serve import stop

    stop(which)


@app.command("download", hidden=True)
@app.command()
def pull(
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME|ORG/REPO[@REV]|DIR",
            help="A release (flash, pro, flash-preview, pro-preview), nano, a repository, or a folder.",
            autocompletion=complete.models_and_releases,
        ),
    ],
    quant: Quant = None,
    name: Annotated[str | None, typer.Option(help="Call the model this.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")] = False,
    keep_source: Annotated[bool, typer.Option("--keep-source", help="Keep the official shards too.")] = False,
    part: Annotated[str | None, typer.Option(help="Make just this part or file again.")] = None,
    jobs: Annotated[int, typer.Option(min=1, max=32, help="Shards in flight.")] = 4,
    no_drafts: Annotated[
        bool, typer.Option("--no-drafts", help="Leave out the blocks that guess tokens (11 GB of flash, 42 of pro).")
    ] = False,
    calibration: ByCalibration = None,
    as_json: Json = False,
) -> None:
    """Bring a model here, made ready to run. Run it again to go on after any interruption."""
    from v4cli.cli.pull import PullRequest, pull_model

    about = what, quant, name, revision, dry_run, keep_source, part, jobs, as_json, not no_drafts, calibration
    pull_model(PullRequest(*about))


@app.command()
def quantize(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Folder with a checkpoint, GGUF file, or name from v4 ls.")
    ],
    dest: Annotated[Path, typer.Argument(metavar="DST", help="Folder of the store to make.")],
    quant: Quant = None,
    fit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Choose what is as good as fits in this much memory, like 96G.")
    ] = None,
    part: Annotated[str | None, typer.Option(help="Make just this part or file again.")] = None,
    calibration: ByCalibration = None,
    as_json: Json = False,
) -> None:
    """Make a store of a checkpoint that is on this disk. Run it again to go on after any interruption."""
    from v4cli.cli.pull import quantize_folder

    quantize_folder(source, dest, quant, fit, part, as_json, calibration)


@app.command()
def calibrate(
    model: Annotated[
        str, typer.Argument(help="A model that is here.", autocompletion=complete.models_and_releases, **DEFAULT_MODEL)
    ],
    text: Annotated[list[Path] | None, typer.Option(help="Texts of your own instead of generated ones.")] = None,
    tokens: Annotated[int, typer.Option(min=64, max=1 << 22, help="Of text, in all.")] = 1 << 16,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file; MODEL.calibration by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Find out what a model's experts are given, for v4 quantize --calibration. Run it again to go on."""
    from v4cli.cli.calibrate import calibrate_model

    calibrate_model(model, text or [], tokens, output, force, as_json)


@app.command("eval")
def evaluate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[quick] [MODEL]",
            help="quick: what ends within 30 minutes at 5 tokens/s. MODEL: a name from v4 ls, or a folder.",
            autocompletion=complete.models,
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="PARTS", help="Of kld, ppl, state, tools, needle, code. Default: all.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|FILE",
            help="Reference of kld: a model, or the file of its logits. Default: what a store was made from.",
        ),
    ] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Tell the differences from one that was measured before, too.")
    ] = None,
    ctx: Annotated[
        str | None,
        typer.Option(metavar="TOKENS", help="Longest context of kld, ppl and needle, up to 1M. Default: 65536."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is generated.")] = 0,
    ram: Annotated[str | None, typer.Option(envvar="V4_RAM", help="Memory to use, like 12G.")] = None,
    numerics: Numerics = None,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Measure what a model is worth, offline, and note it in its manifest: how far its predictions are from those of
    the weights it was made from, and how well it predicts, keeps its state, calls tools, finds what it was told long
    ago, and programs. Run it again to go on after any interruption."""
    from v4cli.cli.evals import EvalRequest, evaluate

    evaluate(EvalRequest(tuple(words or ()), only, against, compare, ctx, seed, backend, numerics, ram, as_json))


@app.command("ls")
def list_models(as_json: Json = False) -> None:
    """List the models on this machine."""
    from v4cli.cli.models import ls

    ls(as_json)


@app.command()
def show(
    model: Annotated[
        str, typer.Argument(help=MODEL_OR_RELEASE, autocompletion=complete.models_and_releases, **DEFAULT_MODEL)
    ],
    as_json: Json = False,
) -> None:
    """Show what a model is and what it costs to run; of a release that is not here, what it would."""
    from v4cli.cli.models import show_model

    show_model(model, as_json)


@app.command()
def verify(model: ModelName, as_json: Json = False) -> None:
    """Check every byte of a model. Exit 3 if one is not as it was written, with the command that repairs it."""
    from v4cli.cli.upkeep import verify as verify_model

    verify_model(model, as_json)


@app.command()
def rm(model: ModelName, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Delete a pulled model."""
    from v4cli.cli.upkeep import remove

    remove(model, yes)


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help=MODEL_OR_RELEASE, autocompletion=complete.models_and_releases)],
    ram: Annotated[str | None, typer.Option(help="RAM to use, like 12G. Default: 90 % of what is free.")] = None,
    vram: Annotated[str | None, typer.Option(help="VRAM to use; 0: none. Default: 98 % of what is free.")] = None,
    gpu_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Plan for this GPU, like 4090 or h200. Default: the one here.")
    ] = None,
    chunk: Chunk = None,
    kv_host: KvHost = False,
    ctx: Annotated[str | None, typer.Option(help="Tokens of context, like 64k. Default: 32768.")] = None,
    sessions: Annotated[int, typer.Option(min=1, max=256, help="Contexts of that length at a time.")] = 1,
    quant: Annotated[
        str | None, typer.Option(help="official, or a recipe: native, q4, q3, mix, q2. Default: the model's; native.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="4xH100", help="Plan vLLM or SGLang on these GPUs, for --engine.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show where every byte of a model would live on this machine and others, and what a token would cost."""
    if cluster is not None:
        from v4cli.cli.plan_cluster import plan_cluster, refuse_beside

        own = {"--ram": ram, "--vram": vram, "--gpu-name": gpu_name, "--chunk": chunk, "--quant": quant}
        refuse_beside("--cluster", own | {"--kv-host": kv_host or None})
        plan_cluster(model, cluster, ctx, sessions, as_json)
        return
    from v4cli.cli.plan import plan_model
    from v4cli.cli.plan_card import Wanted

    plan_model(model, ram, Wanted(vram, gpu_name, chunk, kv_host), ctx, sessions, quant, as_json)


@app.command()
def doctor(number: Gpu = None, as_json: Json = False) -> None:
    """Check this machine and this installation; of its GPUs one, against the CPU."""
    from v4cli.cli.doctor import report

    report(number, as_json)


@app.command("help")
def help_(
    ctx: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="[COMMAND]", help="Or templates.")] = None,
) -> None:
    """Tell what a command does and takes."""
    from v4cli.cli.help import text

    output.answer(text(ctx.find_root(), words or []))


@app.command()
def version() -> None:
    """Print the version."""
    output.answer(f"{__version__}\n")


@app.command()
def score(
    model: Model,
    ids: Annotated[Path | None, typer.Option(help="File of token ids, separated by commas or white space.")] = None,
    file: Annotated[Path | None, typer.Option(help="Text file, encoded with the model's tokenizer after BOS.")] = None,
    logits: Annotated[Path | None, typer.Option(help="Write ids and logits to this .npz file.")] = None,
    numerics: Numerics = None,
    backend: Backend = "reference",
    chunk: Annotated[int, typer.Option(min=1, help="Tokens per prefill chunk.")] = 512,
) -> None:
    """Token log-probabilities, NLL and perplexity of a text or of token ids, as JSON."""
    from v4cli.cli.plumbing import score_tokens

    score_tokens(model, ids, file, logits, numerics, backend, chunk)


@app.command()
def render(
    source: Annotated[Path, typer.Option("--in", help="Request as JSON; - is stdin.")],
    contract: Annotated[str, typer.Option(help="april or 0731.")],
    model: Model,
    ids: Annotated[bool, typer.Option("--ids", help="Print the token ids too.")] = False,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.json to use instead of the model's.")] = None,
) -> None:
    """Render a request to the prompt the model sees, as JSON."""
    from v4cli.cli.plumbing import render_request

    render_request(source, contract, model, ids, tokenizer)


@app.command()
def parse(
    source: Annotated[Path, typer.Option("--in", help="Sampled text; - is stdin.")],
    thinking: Annotated[bool, typer.Option("--thinking", help="The prompt ended in <think>.")] = False,
) -> None:
    """Parse sampled text to an assistant message, as JSON."""
    from v4cli.cli.plumbing import parse_text

    parse_text(source, thinking)
