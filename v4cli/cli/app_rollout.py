"""Options of `v4 rollout`."""

from pathlib import Path
from typing import Annotated

import typer

from v4cli.cli.options import Json, Model, Ram


def rollout(
    tasks: Annotated[Path, typer.Argument(metavar="TASKS.jsonl", help="One task per line (README).")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the trajectories, one JSON file each.")],
    model: Model,
    n: Annotated[int, typer.Option("--n", min=1, help="Rollouts of each task.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="At a time, on one loaded model.")] = 1,
    tools: Annotated[str, typer.Option(help="nano, read, edit, all, or names. A task may say otherwise.")] = "all",
    think: Annotated[bool, typer.Option("--think", help="Think before answering.")] = False,
    temp: Annotated[float | None, typer.Option(help="Temperature. Default: the release's.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of a turn.")] = None,
    seed: Annotated[int, typer.Option(help="Every rollout's seed is made from it, its task and its number.")] = 0,
    max_rounds: Annotated[int, typer.Option(min=1, help="Most turns of the model in a rollout.")] = 50,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds a rollout may take, and its check again.")] = 600.0,
    ram: Ram = None,
    as_json: Json = False,
) -> None:
    """Let the model work on many tasks, each in a fresh sandbox, and reward what it did. Run it again to go on after
    any interruption."""
    options = dict(locals())
    from v4cli.cli.rollout import RolloutRequest, run_rollouts

    run_rollouts(RolloutRequest(**options))
