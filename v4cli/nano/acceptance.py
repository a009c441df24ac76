"""How often nano's drafter is right, greedy, on held-out dialogues: `python -m v4cli.nano.acceptance`.

What the assistant says is walked through as speculation would: after a token the drafter guesses five more, those
before the first that the trunk would not have said are taken, and the trunk's own token comes after them.
"""

import argparse
import random
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from v4kernels.reference import ReferenceOps

from v4cli.chat.encoding import encode_april
from v4cli.chat.tokenizer import Tokenizer
from v4cli.model.v4 import V4
from v4cli.model.weights import build
from v4cli.nano.evaluate import SETS
from v4cli.nano.heads import Heads, features_of
from v4cli.nano.timelines import assistant_targets
from v4cli.paths import NANO
from v4cli.store.checkpoint import Checkpoint
from v4cli.store.sources import DenseSource

BINS = (0.0, 0.5, 0.8, 0.95, 1.01)  # of the confidence


@dataclass
class Walked:
    """What became of the guesses of all steps."""

    steps: int = 0
    tokens: int = 0
    tried: list[int] = field(default_factory=lambda: [0] * 5)  # guesses number i that were decided on
    right: list[int] = field(default_factory=lambda: [0] * 5)
    chances: list[tuple[float, bool]] = field(default_factory=list)

    def walk(self, said: Tensor, chances: Tensor, best: Tensor, spoken: Tensor, first: int) -> int:
        """One stretch of the assistant's tokens from position `first` on. said, chances (T, G) after each position,
        best (T,) the trunk's next token, spoken (T,) the true one or -100. Gives the position behind it."""
        p = first
        while spoken[p] >= 0:
            self.steps += 1
            self.tokens += 1
            for i in range(said.shape[1]):
                if spoken[p + 1] < 0:
                    break
                right = bool(said[p - i, i] == best[p + 1] == spoken[p + 1])
                self.tried[i] += 1
                self.right[i] += right
                self.chances.append((float(chances[p - i, i]), right))
                if not right:
                    break
                self.tokens += 1
                p += 1
            p += 1
        return p


def walk(model: V4, heads: Heads, ids: list[int], targets: list[int], walked: Walked) -> None:
    """Through all that the assistant says in a dialogue."""
    with torch.inference_mode():
        features, hidden = features_of(model, torch.tensor(ids))
        best = model.logits(hidden).argmax(-1)
        spoken = torch.tensor([*targets, -100])
        places = (spoken[:-1] >= 0).nonzero().flatten()
        known = torch.tensor(ids)[places + 1]
        guessed, chance = heads.guess(heads.hidden(features, known, places), known)
        said = torch.full((len(ids), heads.guesses), -1)
        chances = torch.zeros((len(ids), heads.guesses))
        said[places], chances[places] = guessed, chance
        p = 0
        while p < len(ids):
            p = walked.walk(said, chances, best, spoken, p) if spoken[p] >= 0 else p + 1


def main() -> None:
    parser = argparse.ArgumentParser(description="nano's drafter on held-out dialogues")
    parser.add_argument("-n", type=int, default=40, help="dialogues of each kind")
    parser.add_argument("--seed", type=int, default=98)
    parser.add_argument("--model", type=Path, default=NANO, help="folder of a checkpoint")
    args = parser.parse_args()
    checkpoint, tokenizer = Checkpoint.open(args.model), Tokenizer.from_file(args.model / "tokenizer.json")
    if checkpoint.config.dspark_block_size is None:
        parser.error(f"{args.model} has no drafter; make nano-drafter trains one")
    source = DenseSource(checkpoint, lazy=False)
    model = V4(checkpoint.config, ReferenceOps(build(checkpoint.config, source)))
    heads = Heads(checkpoint.config, source)
    for name, draw in SETS.items():
        rng, walked = random.Random(args.seed), Walked()
        for _ in range(args.n):
            dialogue = draw(rng)
            thinking = dialogue.thinking_mode
            ids = tokenizer.encode_prompt(encode_april(dialogue.messages, thinking_mode=thinking))
            walk(model, heads, ids, assistant_targets(ids, tokenizer, thinking == "thinking"), walked)
        show(name, walked)


def show(name: str, walked: Walked) -> None:
    rates = " ".join(f"{100 * right / max(tried, 1):.1f}" for tried, right in zip(walked.tried, walked.right))
    taken = sum(walked.right) / max(walked.steps, 1)
    print(f"{name}: {walked.tokens} tokens in {walked.steps} steps, {walked.tokens / walked.steps:.2f} a step")
    print(f"  guesses taken a step: {taken:.2f}; % right of each that those before it were right for: {rates}")
    for low, high in pairwise(BINS):
        hits = [right for chance, right in walked.chances if low <= chance < high]
        if hits:
            print(f"  confidence {low:.2f} to {min(high, 1):.2f}: {100 * sum(hits) / len(hits):.1f} % of {len(hits)}")


if __name__ == "__main__":
    main()
