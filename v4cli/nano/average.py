"""Average two checkpoints of nano, weight by weight: `python -m v4cli.nano.average BEFORE AFTER --share 0.6`.

A stage learns something new and pushes aside some of the old. On the straight line between the weights before and
after it both are there (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").
"""

import argparse
from pathlib import Path

import torch

from v4cli.nano import recipe
from v4cli.nano.parameters import Parameters
from v4cli.nano.train import export
from v4cli.store.checkpoint import Checkpoint


def average(before: Path, after: Path, share: float) -> Parameters:
    """`share` of the weights in folder `after`, the rest of those in `before`."""
    old, new = Parameters(recipe.config(), 0), Parameters(recipe.config(), 0)
    old.load(Checkpoint.open(before))
    new.load(Checkpoint.open(after))
    with torch.no_grad():
        for name, tensor in old.tensors.items():
            if tensor.is_floating_point():
                tensor.lerp_(new.tensors[name], share)
    return old


def main() -> None:
    parser = argparse.ArgumentParser(description="average two checkpoints of nano; AFTER is replaced")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--share", type=float, required=True, help="of AFTER's weights, 0 to 1")
    args = parser.parse_args()
    export(average(args.before, args.after, args.share), args.after)


if __name__ == "__main__":
    main()
