"""Answers that go round in circles are stopped where that is wanted, and only those."""

import random
import sys
from itertools import cycle, islice
from pathlib import Path

import pytest

from v4cli import paths
from v4cli.chat.loops import EVERY, LENGTH, MOST, is_loop
from v4cli.chat.turn import Chat
from v4cli.entries import table
from v4cli.options import Options, RolloutOptions, RunOptions

sys.path.append(str(Path(__file__).parent.parent / "agent"))
from scripted import Scripted

MANY = LENGTH + 2 * EVERY


def stopped_at(ids: list[int]) -> int | None:
    """After how many tokens an answer would be stopped."""
    return next((n for n in range(1, len(ids) + 1) if is_loop(ids[:n])), None)


@pytest.mark.parametrize("period", [1, 2, 7, MOST])
def test_a_passage_over_and_over_is_a_loop(period):
    rng = random.Random(period)
    said, passage = rng.choices(range(1000), k=37), rng.choices(range(1000), k=period)
    at = stopped_at([*said, *islice(cycle(passage), MANY)])
    assert at is not None and len(said) + LENGTH - MOST < at < len(said) + LENGTH + EVERY


def test_what_differs_now_and_then_is_none():
    table = [token for row in range(500) for token in (5, 6, 7, 1000 + row, 8)]  # rows that are numbered
    assert stopped_at(table) is None
    rng = random.Random(0)
    long = rng.choices(range(1000), k=MOST + 1)
    assert stopped_at(list(islice(cycle(long), 4 * LENGTH))) is None


@pytest.fixture(scope="module")
def nano() -> Chat:
    return Chat.open(paths.NANO)


@pytest.mark.parametrize("loops, finish", [("stop", "loop"), ("keep", "stop")])
def test_the_turn_ends_with_what_was_said_and_the_reason(nano, loops, finish):
    passage = nano.tokenizer.encode("drwxr-xr-x 2 root ")
    turn = list(islice(cycle(passage), MANY))
    chat = Chat(nano.engine, nano.tokenizer, nano.defaults, Scripted(nano.engine, nano.tokenizer, [turn]))
    for _ in chat.reply([{"role": "user", "content": "list"}], Options(thinking=False, loops=loops)):
        pass
    assert chat.finish == finish and chat.message["content"].startswith("drwxr-xr-x 2 root drwxr")
    assert (len(chat.ids) < MANY) == (loops == "stop")


def test_rollouts_and_the_library_keep_going_and_people_are_spared():
    default = {of: next(e.default for e in table(of) if e.name == "loops") for of in (RunOptions, RolloutOptions)}
    assert default == {RunOptions: "stop", RolloutOptions: "keep"} and Options().loops == "keep"
