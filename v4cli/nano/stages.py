"""The stages of nano's training, in order: `start` from nothing, `polish`, `long` for long contexts, and `settle`."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from v4cli.chat.tokenizer import Tokenizer
from v4cli.nano import long_context
from v4cli.nano.dialogues import copying, generate
from v4cli.nano.timelines import Timeline, of_dialogues, told_and_asked
from v4cli.nano.training_ops import TrainingOps

COPYING_STEPS = 220  # first: copying only, which all else stands on and which does not emerge from a mixture for long
FACTS_SHARE, FACTS_SHARE_SETTLED = 0.8, 0.3  # of long timelines: told facts; the others keep what nano can do


@dataclass(frozen=True)
class Stage:
    """How a stage goes: `timelines(tokenizer, rng, n)` endlessly gives timelines of n tokens."""

    steps: int
    peak_lr: float
    quantized_share: float  # of the steps, the last ones: the forward sees the weights as they will be stored
    timelines: Callable[[Tokenizer, random.Random, int], Iterator[Timeline]]
    fresh: bool = False  # from nothing, else from the checkpoint that the stage before has left
    batch_tokens: int = 2048
    ops: type[TrainingOps] = TrainingOps
    prepare: Callable[[dict], None] = lambda tensors: None  # changes the tensors it starts from
    trains: Callable[[str], bool] = lambda name: True


def start(tokenizer: Tokenizer, rng: random.Random, n_tokens: int) -> Iterator[Timeline]:
    """Copying, then all skills."""
    return of_dialogues(
        tokenizer, n_tokens, lambda i: copying(rng) if i < COPYING_STEPS else generate(rng, "train", 0.4)
    )


def polish(tokenizer: Tokenizer, rng: random.Random, n_tokens: int) -> Iterator[Timeline]:
    """All skills; half the turns drill what is slow to learn."""
    return of_dialogues(tokenizer, n_tokens, lambda i: generate(rng, "train", 0.4, drill_share=0.5))


def long(
    tokenizer: Tokenizer, rng: random.Random, n_tokens: int, facts_share: float = FACTS_SHARE
) -> Iterator[Timeline]:
    """Told facts, and what the stage before has learned from."""
    dialogues = polish(tokenizer, rng, n_tokens)
    while True:
        yield told_and_asked(tokenizer, n_tokens, rng) if rng.random() < facts_share else next(dialogues)


def settle(tokenizer: Tokenizer, rng: random.Random, n_tokens: int) -> Iterator[Timeline]:
    """Fewer facts: the other skills come back, which the stage before has pushed aside."""
    return long(tokenizer, rng, n_tokens, FACTS_SHARE_SETTLED)


STAGES = {
    "start": Stage(2600, 8e-3, 0.4, start, fresh=True),
    "polish": Stage(600, 2e-3, 1.0, polish),
    "long": Stage(
        1200,
        6e-3,
        1.0,
        long,
        batch_tokens=1024,
        ops=long_context.LongOps,
        prepare=long_context.graft,
        trains=long_context.trains,
    ),
    "settle": Stage(350, 2e-3, 1.0, settle, batch_tokens=1024, ops=long_context.LongOps, trains=long_context.trains),
}
