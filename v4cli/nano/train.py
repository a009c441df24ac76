"""Train nano through the differentiable reference ops: `python -m v4cli.nano.train --stage start`, `polish` …

In: a seed. Out: v4cli/nano/checkpoint in the official format, and a CSV log of the loss. A batch is one timeline; the
loss covers only what the assistant writes. stages.py says what each stage learns.
"""

import argparse
import csv
import dataclasses
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from v4cli.chat.tokenizer import Tokenizer
from v4cli.model.v4 import V4
from v4cli.model.weights import build
from v4cli.nano import recipe
from v4cli.nano.muon import Muon
from v4cli.nano.parameters import Parameters
from v4cli.nano.stages import STAGES, Stage
from v4cli.paths import NANO
from v4cli.store.checkpoint import Checkpoint
from v4cli.store.writer import write_checkpoint

WEIGHT_DECAY = 0.05
WARMUP_STEPS = 40


def batch_loss(model: V4, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy over the assistant's tokens."""
    hidden = model.forward([(ids, model.new_state())])
    spoken = targets >= 0
    return F.cross_entropy(model.logits(hidden[spoken]), targets[spoken])


def learning_rate(step: int, stage: Stage) -> float:
    """Linear warm-up, constant, then linear decay to zero over the second half, unless the stage goes on in another."""
    ending = 2 * (stage.steps - step) / stage.steps if stage.decays else 1.0
    return stage.peak_lr * min(1.0, (step + 1) / WARMUP_STEPS, ending)


def starting_point(stage: Stage, seed: int, out: Path) -> Parameters:
    """The parameters a stage begins with, those frozen that it does not train."""
    parameters = Parameters(recipe.config(), seed)
    if not stage.fresh:
        parameters.load(Checkpoint.open(out))
    stage.prepare(parameters.tensors)
    parameters.freeze(stage.trains)
    return parameters


def train(stage: Stage, seed: int, log_path: Path, out: Path) -> None:
    """One stage; writes a checkpoint at every 100th step and at the end."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer.from_file(out / "tokenizer.json")
    parameters = starting_point(stage, seed, out)
    ops = stage.ops(build(recipe.config(), parameters), stage.batch_tokens)
    model = V4(recipe.config(), ops)
    matrices, others = parameters.groups()
    optimizers = (
        Muon(matrices, stage.peak_lr, weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(others, stage.peak_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    )
    timelines, rng = stage.timelines(tokenizer, random.Random(seed), stage.batch_tokens), random.Random(seed)
    log_path.parent.mkdir(parents=True, exist_ok=True)
    start, tokens = time.monotonic(), 0
    with log_path.open("w", newline="") as file:
        log = csv.writer(file)
        log.writerow(["step", "loss", "own_loss", "grad_norm", "lr", "tokens", "elapsed_s"])
        for step, timeline in zip(range(stage.steps), timelines):
            lr = learning_rate(step, stage)
            if step >= (1 - stage.quantized_share) * stage.steps:
                parameters.requantize()
            ids, targets, filler = map(torch.tensor, timeline)
            ops.begin(ids, filler, rng)
            loss = batch_loss(model, ids, targets)
            own_loss = ops.own_loss()
            (loss + own_loss).backward()
            norm = torch.nn.utils.clip_grad_norm_(matrices + others, 1.0)
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = lr
                if math.isfinite(norm):
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            ops.balance()
            tokens += len(ids)
            elapsed = time.monotonic() - start
            log.writerow([step, f"{loss:.4f}", f"{own_loss:.4f}", f"{norm:.3f}", f"{lr:.2e}", tokens, f"{elapsed:.0f}"])
            if step % 10 == 0:
                file.flush()
                print(f"step {step}/{stage.steps} loss {loss:.4f} {tokens / elapsed:.0f} tok/s", flush=True)
            if step % 100 == 99 or step + 1 == stage.steps:
                export(parameters, out)


def export(parameters: Parameters, out: Path) -> None:
    """Write the official-format checkpoint."""
    tensors = {name: tensor.detach() for name, tensor in parameters.tensors.items()}
    write_checkpoint(out, recipe.config(), tensors, generation_config=recipe.GENERATION_CONFIG)


def main() -> None:
    parser = argparse.ArgumentParser(description="train nano")
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--steps", type=int, help="fewer or more than the stage's own")
    parser.add_argument("--seed", type=int, default=20261124)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--log", type=Path, help="default: runs/nano/STAGE.csv")
    parser.add_argument("--out", type=Path, default=NANO)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    stage = STAGES[args.stage]
    if args.steps:
        stage = dataclasses.replace(stage, steps=args.steps)
    seed = args.seed + list(STAGES).index(args.stage)
    train(stage, seed, args.log or Path(f"runs/nano/{args.stage}.csv"), args.out)


if __name__ == "__main__":
    main()
