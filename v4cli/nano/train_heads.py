"""Train nano's drafter on its frozen trunk: `python -m v4cli.nano.train_heads` (make nano-drafter).

As DeepSeek's DSpark paper and its DeepSpec repository have it: places are drawn where the assistant speaks; the
trunk's own distributions are what is learned (0.9 of the total variation, 0.1 of the cross entropy of the true
token, the later guesses weighing less), and confidence is what share of the trunk's distribution a guess covers.
"""

import argparse
import csv
import math
import random
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from v4cli.chat.tokenizer import Tokenizer
from v4cli.model.schema import expected_tensors
from v4cli.model.v4 import V4
from v4cli.model.weights import build
from v4cli.nano import recipe
from v4cli.nano.dialogues import generate, meeting
from v4cli.nano.heads import Heads, features_of
from v4cli.nano.muon import Muon
from v4cli.nano.parameters import Parameters
from v4cli.nano.timelines import of_dialogues
from v4cli.nano.training_ops import TrainingOps
from v4cli.paths import NANO
from v4cli.store.checkpoint import Checkpoint
from v4cli.store.sources import DenseSource
from v4cli.store.writer import encoded, write_stored

STEPS, PEAK_LR, WARMUP_STEPS = 900, 8e-3, 20
TOKENS, PLACES = 1024, 192  # of a timeline, and where guesses are learned in it
MEETINGS_SHARE = 0.7
SHARE_OF_VARIATION = 0.9
FADING = 4.0  # guesses over which the weight falls by e


class Both:
    """Weights of the trunk, and of the drafter."""

    def __init__(self, trunk: DenseSource, drafter: Parameters):
        self.trunk, self.drafter = trunk, drafter

    def _of(self, name: str) -> DenseSource | Parameters:
        return self.drafter if name.startswith("mtp.") else self.trunk

    def weight(self, name: str):
        return self._of(name).weight(name)

    def vector(self, name: str):
        return self._of(name).vector(name)


def drawn_places(targets: Tensor, n: int, rng: random.Random) -> Tensor:
    """n positions (n,) whose next token the assistant says, and the one after; some twice if there are too few."""
    spoken = targets[:-8] >= 0
    found = (spoken[:-1] & spoken[1:]).nonzero().flatten().tolist()
    return torch.tensor(sorted(rng.sample(found, n) if len(found) >= n else rng.choices(found, k=n)))


def heads_loss(heads: Heads, ids: Tensor, targets: Tensor, places: Tensor, features: Tensor, trunk: Tensor) -> Tensor:
    """Of the guesses after `places` (A,); trunk (T, V) logits, targets (T,)."""
    at = places[:, None] + 1 + torch.arange(heads.guesses)  # (A, G): the trunk at these says what is to be guessed
    counts = (targets[at] >= 0).cumprod(1) * torch.exp(-torch.arange(heads.guesses) / FADING)
    hidden = heads.hidden(features, ids[places + 1], places)
    before = ids[at]
    logits = heads.logits(hidden, before)
    variation = (logits.softmax(-1) - trunk[at].softmax(-1)).abs().sum(-1)
    entropy = F.cross_entropy(logits.flatten(0, 1), ids[at + 1].flatten(), reduction="none").unflatten(0, at.shape)
    covered = (1 - variation.detach() / 2).clamp(0, 1)
    doubt = F.binary_cross_entropy_with_logits(heads.confidence(hidden, before), covered, reduction="none")
    each = SHARE_OF_VARIATION * variation + (1 - SHARE_OF_VARIATION) * entropy + doubt
    return (each * counts).sum() / counts.sum()


def train(steps: int, seed: int, log_path: Path, out: Path) -> None:
    """Read the trunk in `out`, write it back with its drafter."""
    torch.manual_seed(seed)
    config, rng, tokenizer = (
        recipe.config_with_drafter(),
        random.Random(seed),
        Tokenizer.from_file(out / "tokenizer.json"),
    )
    checkpoint = Checkpoint.open(out)
    trunk, drafter = DenseSource(checkpoint, lazy=False), Parameters(config, seed, drafter=True)
    model = V4(config, TrainingOps(build(config, trunk), TOKENS))
    heads = Heads(config, Both(trunk, drafter), partial(TrainingOps, batch_tokens=PLACES * 5))
    matrices, others = drafter.groups()
    optimizers = (Muon(matrices, PEAK_LR), torch.optim.AdamW(others, PEAK_LR, betas=(0.9, 0.95), weight_decay=0.0))
    timelines = of_dialogues(
        tokenizer, TOKENS, lambda i: meeting(rng) if rng.random() < MEETINGS_SHARE else generate(rng, "train", 0.5)
    )
    log_path.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log_path.open("w", newline="") as file:
        log = csv.writer(file)
        log.writerow(["step", "loss", "lr", "elapsed_s"])
        for step, timeline in zip(range(steps), timelines):
            lr = PEAK_LR * min(1.0, (step + 1) / WARMUP_STEPS, 2 * (steps - step) / steps)
            drafter.requantize()
            ids, targets, _ = map(torch.tensor, timeline)
            with torch.no_grad():
                features, hidden = features_of(model, ids)
                said = model.logits(hidden)
            loss = heads_loss(heads, ids, targets, drawn_places(targets, PLACES, rng), features, said)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(matrices + others, 1.0)
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = lr
                if math.isfinite(norm):
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            heads.ops.balance()
            model.ops.loads.clear()
            log.writerow([step, f"{loss:.4f}", f"{lr:.2e}", f"{time.monotonic() - start:.0f}"])
            if step % 10 == 0:
                file.flush()
                print(f"step {step}/{steps} loss {loss:.4f} {time.monotonic() - start:.0f} s", flush=True)
    stored = {name: checkpoint.tensor(name).clone() for name in expected_tensors(config, with_mtp=False)}
    stored |= encoded(config, {name: tensor.detach() for name, tensor in drafter.tensors.items()})
    write_stored(out, config, stored, recipe.GENERATION_CONFIG)


def main() -> None:
    parser = argparse.ArgumentParser(description="train nano's drafter")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=20261130)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--log", type=Path, default=Path("runs/nano/heads.csv"))
    parser.add_argument("--out", type=Path, default=NANO)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.steps, args.seed, args.log, args.out)


if __name__ == "__main__":
    main()
