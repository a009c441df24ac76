"""The stages of nano's training, in order: `start` from nothing, `polish`, `long` for long contexts, `settle`,
`meet`, in which it learns what newcomers say, `finish`, and `drill` for calls, `again` with what was still wrong."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from v4cli.chat.tokenizer import Tokenizer
from v4cli.nano import long_context
from v4cli.nano.dialogues import copying, drill, generate, practice
from v4cli.nano.strings import Strings
from v4cli.nano.timelines import Timeline, of_dialogues, told_and_asked
from v4cli.nano.training_ops import TrainingOps

COPYING_STEPS = 220  # first: copying only, which all else stands on and which does not emerge from a mixture for long
# of timelines in the last stages: told facts, old skills, copying of strings of all shapes, what needs no tools
SHARES_MEETING, SHARES_FINISHING = (0.15, 0.15, 0.1, 0.2), (0.18, 0.4, 0.04, 0.13)
SHARES_DRILLING, DRILLS_SHARE = (0.1, 0.15, 0.04, 0.16), 0.42
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
    decays: bool = True  # the learning rate, over the second half
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


def meet(
    tokenizer: Tokenizer,
    rng: random.Random,
    n_tokens: int,
    shares: tuple[float, float, float, float] = SHARES_MEETING,
) -> Iterator[Timeline]:
    """Dialogues as newcomers have them, mostly with tools; the other timelines keep what was learned before."""
    facts, *others = shares
    kinds = (
        of_dialogues(tokenizer, n_tokens, lambda i: generate(rng, "train", 0.5, drill_share=0.2)),
        of_dialogues(tokenizer, n_tokens, lambda i: copying(rng, Strings)),
        of_dialogues(tokenizer, n_tokens, lambda i: practice(rng, with_tools=False)),
        of_dialogues(tokenizer, n_tokens, lambda i: practice(rng, with_tools=True)),
    )
    weights = (*others, 1 - sum(shares))
    while True:
        if rng.random() < facts:
            yield told_and_asked(tokenizer, n_tokens, rng)
        else:
            yield next(rng.choices(kinds, weights)[0])


def finish(tokenizer: Tokenizer, rng: random.Random, n_tokens: int) -> Iterator[Timeline]:
    """More of the old skills: they come back beside the new ones."""
    return meet(tokenizer, rng, n_tokens, SHARES_FINISHING)


def drilling(tokenizer: Tokenizer, rng: random.Random, n_tokens: int) -> Iterator[Timeline]:
    """Calls in close succession, and what the stages before have learned from."""
    drills = of_dialogues(tokenizer, n_tokens, lambda i: drill(rng))
    others = meet(tokenizer, rng, n_tokens, tuple(share / (1 - DRILLS_SHARE) for share in SHARES_DRILLING))
    while True:
        yield next(drills if rng.random() < DRILLS_SHARE else others)


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
    "meet": Stage(800, 4e-3, 0.0, meet, ops=long_context.WholeLongOps, decays=False),
    "finish": Stage(800, 4e-3, 0.7, finish, ops=long_context.WholeLongOps),
    "drill": Stage(1300, 4e-3, 0.4, drilling, ops=long_context.WholeLongOps),
    "again": Stage(1100, 4e-3, 0.4, drilling, ops=long_context.WholeLongOps),
}
