"""Train nano on generated dialogues through the differentiable reference ops: `python -m v4cli.nano.train`.

In: a seed. Out: v4cli/nano/checkpoint in the official format, and a CSV log of the loss. A batch is one timeline of
BATCH_TOKENS tokens, dialogue after dialogue, each begun by BOS; the loss covers only what the assistant writes.
`--polish` goes on from that checkpoint, at a quarter of the learning rate, on dialogues of which half the turns drill
what is slow to learn.
"""

import argparse
import csv
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from v4kernels.reference import ReferenceOps

from v4cli.chat import special
from v4cli.chat.encoding import encode_april
from v4cli.chat.tokenizer import Tokenizer
from v4cli.model.v4 import V4
from v4cli.model.weights import build
from v4cli.nano import recipe
from v4cli.nano.dialogues import copying, generate
from v4cli.nano.muon import Muon
from v4cli.nano.parameters import Parameters
from v4cli.weights.checkpoint import Checkpoint
from v4cli.weights.writer import write_checkpoint

CHECKPOINT = Path(__file__).parent / "checkpoint"
BATCH_TOKENS = 2048
PEAK_LR = 8e-3
WEIGHT_DECAY = 0.05
COPYING_STEPS = 220  # first: copying only, which all else stands on and which does not emerge from a mixture for long
QUANTIZED_SHARE = 0.4  # of the steps, the last ones: the forward sees the weights as they will be stored
WARMUP_STEPS = 40
BIAS_RATE = 1e-3  # noaux_tc: how far a router bias moves per step towards balance


class TrainingOps(ReferenceOps):
    """Reference ops made affordable to train through; also counts how often each expert is chosen.

    The memory-bound ops (Sinkhorn above all: 20 iterations on 4x4 matrices) are compiled into single loops, once,
    since every batch has BATCH_TOKENS tokens.
    """

    def __init__(self):
        super().__init__("exact")
        self.loads: list[tuple[torch.Tensor, torch.Tensor]] = []
        for op in ("hc_pre", "hc_post", "_batch_norm"):
            setattr(self, op, torch.compile(getattr(self, op), dynamic=False))

    def rms_norm(self, x, weight, eps):
        if weight is None or len(x) != BATCH_TOKENS:
            return super().rms_norm(x, weight, eps)
        return self._batch_norm(x, weight, eps)

    def _batch_norm(self, x, weight, eps):
        return ReferenceOps.rms_norm(self, x, weight, eps)

    def hc_post(self, out, streams, post, comb):
        return (comb[..., None] * streams[:, :, None]).sum(1) + post[..., None] * out[:, None]

    def _weighted_sum(self, streams, weights):
        return (weights[..., None] * streams).sum(1)

    def scored(self, x, gate, top_k, scale, bias=None, chosen=None):
        ids, weights = super().scored(x, gate, top_k, scale, bias, chosen)
        if bias is not None:
            self.loads.append((bias, torch.bincount(ids.flatten(), minlength=len(bias))))
        return ids, weights

    def balance(self) -> None:
        """Nudge every router bias against its load and forget the counts."""
        for bias, load in self.loads:
            bias += BIAS_RATE * torch.sign(load.float().mean() - load.float())
        self.loads.clear()


def assistant_targets(ids: list[int], tokenizer: Tokenizer, thinking: bool) -> list[int]:
    """Next-token targets of one rendered dialogue; -100 where the assistant is not speaking.

    Of a thinking dialogue only the turns that still carry their reasoning are learned.
    """
    assistant, eos = tokenizer.special_id(special.ASSISTANT), tokenizer.eos_id
    header = tokenizer.special_id(special.THINK if thinking else special.END_THINK)
    targets = [-100] * len(ids)
    speaking = False
    for i in range(1, len(ids)):
        if speaking:
            targets[i - 1] = ids[i]
            speaking = ids[i] != eos
        elif ids[i - 1] == assistant:
            speaking = ids[i] == header
    return targets


def batches(tokenizer: Tokenizer, seed: int, polish: bool):
    """Endless batches: ids and targets (BATCH_TOKENS,). A dialogue that does not fit is cut off at the end."""
    rng = random.Random(seed)
    n_batches = 0
    while True:
        ids, targets = [], []
        while len(ids) < BATCH_TOKENS:
            if polish:
                dialogue = generate(rng, "train", 0.4, drill_share=0.5)
            else:
                dialogue = copying(rng) if n_batches < COPYING_STEPS else generate(rng, "train", 0.4)
            row = tokenizer.encode_prompt(encode_april(dialogue.messages, thinking_mode=dialogue.thinking_mode))
            ids += row
            targets += assistant_targets(row, tokenizer, dialogue.thinking_mode == "thinking")
        yield torch.tensor(ids[:BATCH_TOKENS]), torch.tensor(targets[:BATCH_TOKENS])
        n_batches += 1


def batch_loss(model: V4, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy over the assistant's tokens."""
    hidden = model.forward(ids, model.new_state())
    spoken = targets >= 0
    return F.cross_entropy(model.logits(hidden[spoken]), targets[spoken])


def learning_rate(step: int, steps: int, polish: bool) -> float:
    """Linear warm-up, constant, then linear decay to zero over the second half."""
    peak = PEAK_LR / 4 if polish else PEAK_LR
    return peak * min(1.0, (step + 1) / WARMUP_STEPS, 2 * (steps - step) / steps)


def train(steps: int, seed: int, log_path: Path, out: Path, polish: bool) -> None:
    """The whole run; writes a checkpoint every 200 steps and at the end."""
    torch.manual_seed(seed)
    config = recipe.config()
    tokenizer = Tokenizer.from_file(out / "tokenizer.json")
    parameters, ops = Parameters(config, seed), TrainingOps()
    if polish:
        parameters.load(Checkpoint.open(out))
    model = V4(config, build(config, parameters), ops)
    matrices, others = parameters.groups()
    optimizers = (
        Muon(matrices, PEAK_LR, weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(others, PEAK_LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    )
    log_path.parent.mkdir(parents=True, exist_ok=True)
    start, tokens = time.monotonic(), 0
    with log_path.open("w", newline="") as file:
        log = csv.writer(file)
        log.writerow(["step", "loss", "grad_norm", "lr", "tokens", "elapsed_s"])
        for step, (ids, targets) in zip(range(steps), batches(tokenizer, seed, polish)):
            lr = learning_rate(step, steps, polish)
            if polish or step >= (1 - QUANTIZED_SHARE) * steps:
                parameters.requantize()
            loss = batch_loss(model, ids, targets)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(matrices + others, 1.0)
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = lr
                if math.isfinite(norm):
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            ops.balance()
            tokens += len(ids)
            elapsed = time.monotonic() - start
            log.writerow([step, f"{loss:.4f}", f"{norm:.3f}", f"{lr:.2e}", tokens, f"{elapsed:.0f}"])
            if step % 10 == 0:
                file.flush()
                print(f"step {step}/{steps} loss {loss:.4f} {tokens / elapsed:.0f} tok/s", flush=True)
            if step % 200 == 199 or step + 1 == steps:
                export(config, parameters, out)


def export(config, parameters: Parameters, out: Path) -> None:
    """Write the official-format checkpoint."""
    tensors = {name: tensor.detach() for name, tensor in parameters.tensors.items()}
    write_checkpoint(out, config, tensors, generation_config=recipe.GENERATION_CONFIG)


def main() -> None:
    parser = argparse.ArgumentParser(description="train nano")
    parser.add_argument("--polish", action="store_true")
    parser.add_argument("--steps", type=int, help="default: 2,600, to polish 600")
    parser.add_argument("--seed", type=int, default=20261124)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--log", type=Path, default=Path("runs/nano/loss.csv"))
    parser.add_argument("--out", type=Path, default=CHECKPOINT)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    steps = args.steps or (600 if args.polish else 2600)
    train(steps, args.seed + args.polish, args.log, args.out, args.polish)


if __name__ == "__main__":
    main()
