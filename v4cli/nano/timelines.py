"""What nano trains on: endless timelines of token ids and targets, made of generated dialogues."""

import random
from collections.abc import Callable, Iterator

from v4cli.chat import special
from v4cli.chat.encoding import encode_april
from v4cli.chat.tokenizer import Tokenizer
from v4cli.nano import skills
from v4cli.nano.dialogues import Dialogue
from v4cli.nano.skills import Scene
from v4cli.nano.words import Words

TELLING = 0.8  # share of tellings among turns about facts while there is something left to tell
FILLER_SHARES = 0.0, 0.2, 0.5
FILLER = (skills.smalltalk, skills.unknown, skills.repeat, skills.reverse, skills.sort, skills.extract, skills.ends)

# ids; next-token targets, -100 where nothing is to be learned; whether a token belongs to a turn between the facts
Timeline = tuple[list[int], list[int], list[bool]]


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


def turn_ids(tokenizer: Tokenizer, messages: list[dict]) -> list[int]:
    """Tokens of one turn without thinking, which do not depend on the turns before it."""
    return tokenizer.encode_prompt(encode_april(messages, add_default_bos_token=False))


def of_dialogues(tokenizer: Tokenizer, n_tokens: int, draw: Callable[[int], Dialogue]) -> Iterator[Timeline]:
    """Dialogue after dialogue, each begun by BOS; one that does not fit is cut off at the end. `draw` is given the
    number of the timeline."""
    n_before = 0
    while True:
        ids, targets = [], []
        while len(ids) < n_tokens:
            dialogue = draw(n_before)
            row = tokenizer.encode_prompt(encode_april(dialogue.messages, thinking_mode=dialogue.thinking_mode))
            ids += row
            targets += assistant_targets(row, tokenizer, dialogue.thinking_mode == "thinking")
        yield ids[:n_tokens], targets[:n_tokens], [False] * n_tokens
        n_before += 1


def told_and_asked(tokenizer: Tokenizer, n_tokens: int, rng: random.Random) -> Timeline:
    """One dialogue: each kind of fact is told once, then asked for in turn, with other turns between.

    There are so many kinds that a question comes more than a window after the last answer to it.
    """
    scene = Scene(rng, Words(rng, "train"), (), {})
    kinds = rng.sample(list(skills.ALL_FACTS), len(skills.ALL_FACTS))
    filler_share = rng.choice(FILLER_SHARES)
    ids, targets, filler, to_ask = [tokenizer.special_id(special.BOS)], [-100], [False], []
    while len(ids) < n_tokens:
        other = scene.facts and rng.random() < filler_share
        if other:
            turn = rng.choice(FILLER)(scene)
        elif kinds and (rng.random() < TELLING or not scene.facts):
            turn = skills.tell(scene, kinds.pop())
        else:
            to_ask = to_ask or rng.sample(list(scene.facts), len(scene.facts))
            turn = skills.recall(scene, to_ask.pop())
        row = turn_ids(tokenizer, turn)
        ids += row
        targets += assistant_targets(row, tokenizer, thinking=False)
        filler += [bool(other)] * len(row)
    return ids[:n_tokens], targets[:n_tokens], filler[:n_tokens]
