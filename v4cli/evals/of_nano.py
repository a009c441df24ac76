"""nano's own world, held out from its training: its dialogues, its six tools, facts told long ago.

It knows no chains, and counts words instead of parcels.
"""

import json

from v4cli.chat.tokenizer import Tokenizer
from v4cli.evals import programs
from v4cli.evals.cases import Case, Wanted, history, user
from v4cli.evals.material import Text, drawn
from v4cli.evals.needles import DEPTHS, Needle
from v4cli.nano import skills
from v4cli.nano.dialogues import SYSTEM, generate
from v4cli.nano.skills import Scene
from v4cli.nano.timelines import FILLER, of_dialogues, turn_ids
from v4cli.nano.tools import BY_NAME
from v4cli.nano.words import Words

VERSION = 1  # counts up when anything here changes
OFFERED = 4  # tools
ONE_CALL = (skills.calculator, skills.read_file, skills.list_folder, skills.search_text, skills.run_shell, skills.clock)


class OfNano:
    name = f"nano's dialogues {VERSION}.{programs.VERSION}"
    n_questions = len(DEPTHS) + 2

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def text(self, seed: int, number: int, n_tokens: int) -> Text:
        """Held-out dialogues, one after the other. What nano says counts: it has never learned what people say."""
        rng = drawn(seed, "text", number)
        timelines = of_dialogues(self.tokenizer, n_tokens, lambda _: generate(rng, "heldout"))
        ids, targets, _ = next(timelines)
        return Text(ids, [target >= 0 for target in targets])

    def case(self, seed: int, kind: str, number: int, long: int) -> Case:
        rng = drawn(seed, f"tools {kind}", number)
        scene = Scene(rng, Words(rng, "heldout"), (), {})
        before = [{"role": "system", "content": rng.choice(SYSTEM)}]
        if kind == "long result":
            before += self._long_before(scene, long)
        skill = {"parallel": skills.two_calculations, "multi-turn": skills.list_then_read, "irrelevant": skills.repeat}
        turn = skill.get(kind, ONE_CALL[number % len(ONE_CALL)])(scene)
        rounds, results = _calls(turn)
        names = {call.name for calls in rounds for call in calls} | ({"read_file"} if kind == "long result" else set())
        others = rng.sample([name for name in BY_NAME if name not in names], OFFERED - len(names))
        offered = [BY_NAME[name] for name in BY_NAME if name in names or name in others]
        return Case(kind, offered, [*before, turn[0]], rounds, results)

    def _long_before(self, scene: Scene, n_tokens: int) -> list[dict]:
        """A turn whose tool result has about n_tokens."""
        path, words = scene.words.path(), []
        while len(self.tokenizer.encode(" ".join(words))) < n_tokens:
            words += scene.words.words(4, 8)
        text = " ".join(words)
        call = Wanted("read_file", {"path": path})
        return [
            user(f"read {path}"),
            *history([call], [text]),
            {"role": "assistant", "content": f"{path} says: {text}"},
        ]

    def haystack(self, seed: int, number: int, n_tokens: int) -> list[Needle]:
        rng = drawn(seed, f"needle {n_tokens}", number)
        scene = Scene(rng, Words(rng, "heldout"), (), {})
        kinds = rng.sample(list(skills.ALL_FACTS), len(DEPTHS))
        messages, length, told = [{"role": "system", "content": ""}], 0, 0
        while length < n_tokens or told < len(DEPTHS):
            if told < len(DEPTHS) and length >= DEPTHS[told] * n_tokens:
                turn = skills.tell(scene, kinds[told])
                told += 1
            else:
                turn = rng.choice(FILLER)(scene)
            length += len(turn_ids(self.tokenizer, turn))
            messages += turn
        asked = [("key", depth, skills.recall(scene, kind)) for depth, kind in zip(DEPTHS, kinds)]
        asked += [("count", None, skills.count(scene)), ("copy", None, skills.repeat(scene))]
        return [Told(kind, depth, [*messages, turn[0]], turn[1]["content"], 60) for kind, depth, turn in asked]


class Told(Needle):
    """A question to which nano learned one answer, in these words."""

    def right(self, said: str) -> bool:
        return said == self.answer


def _calls(turn: list[dict]) -> tuple[tuple[tuple[Wanted, ...], ...], dict[str, str]]:
    """The calls of a generated turn, round by round, and what each returns."""
    rounds, results = [], {}
    returned = iter([message["content"] for message in turn if message["role"] == "tool"])
    for message in turn:
        functions = [call["function"] for call in message.get("tool_calls", ())]
        if functions:
            rounds.append(tuple(Wanted(f["name"], json.loads(f["arguments"])) for f in functions))
            results |= {call.key: next(returned) for call in rounds[-1]}
    return tuple(rounds), results
