"""Does nano answer facts told long ago? `python -m v4cli.nano.recall --tokens 1000 4000 16000`, CSV on stdout.

A dialogue in which ten facts are told at ten depths of N tokens, the rest filled with held-out turns of other skills,
is read once; then each fact is asked for, every time right after the same N tokens. Greedy; right is the exact answer.
"""

import argparse
import csv
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from v4cli.chat.encoding import encode_april
from v4cli.chat.tokenizer import Tokenizer
from v4cli.engine.engine import Engine, Session
from v4cli.engine.sampler import Sampling
from v4cli.nano import skills
from v4cli.nano.skills import Scene
from v4cli.nano.timelines import FILLER, turn_ids
from v4cli.nano.words import Words
from v4cli.paths import NANO

DEPTHS = tuple(i / 10 + 0.05 for i in range(10))


@dataclass(frozen=True)
class Question:
    """What is asked after the context: `depth` as a share of it, token ids of the turn, and the right answer."""

    kind: str
    depth: float
    ids: list[int]
    answer: str


def haystack(
    rng: random.Random, tokenizer: Tokenizer, n_tokens: int, told_within: int | None = None
) -> tuple[list[int], list[Question]]:
    """About `n_tokens` of context, and a question for each fact told in it, or in its first `told_within` tokens."""
    told_within = told_within or n_tokens
    scene = Scene(rng, Words(rng, "heldout"), (), {})
    kinds = rng.sample(list(skills.ALL_FACTS), len(DEPTHS))
    ids = tokenizer.encode_prompt(encode_april([{"role": "system", "content": ""}]))
    told = 0
    while len(ids) < n_tokens or told < len(DEPTHS):
        if told < len(DEPTHS) and len(ids) >= DEPTHS[told] * told_within:
            turn = skills.tell(scene, kinds[told])
            told += 1
        else:
            turn = rng.choice(FILLER)(scene)
        ids += turn_ids(tokenizer, turn)
    questions = []
    for kind, depth in zip(kinds, DEPTHS):
        depth *= told_within / n_tokens
        question, reply = skills.recall(scene, kind)
        questions.append(Question(kind, depth, turn_ids(tokenizer, [question]), reply["content"]))
    return ids, questions


def ask(session: Session, tokenizer: Tokenizer, ids: list[int], question: Question) -> str:
    """nano's answer to one question after the context."""
    session.sync(ids + question.ids)
    steps = session.generate(Sampling(temperature=0.0), 40, (tokenizer.eos_id,))
    return tokenizer.decode([step.token for step in steps if step.finish != "stop"])


def main() -> None:
    parser = argparse.ArgumentParser(description="nano on facts told long ago")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1000, 4000, 16_000, 64_000])
    parser.add_argument("-n", type=int, default=5, help="contexts of each length")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--model", type=Path, default=NANO, help="folder of a checkpoint")
    args = parser.parse_args()
    engine, tokenizer = Engine.open(args.model), Tokenizer.from_file(NANO / "tokenizer.json")
    out = csv.writer(sys.stdout)
    out.writerow(["tokens", "depth", "kind", "right", "answer"])
    for n_tokens in args.tokens:
        rng, hits = random.Random(args.seed), []
        for _ in range(args.n):
            session = engine.session()
            ids, questions = haystack(rng, tokenizer, n_tokens)
            session.sync(ids)
            rate = session.stats.prefill_tokens_per_s
            for q in questions:
                answer = ask(session, tokenizer, ids, q)
                hits.append((q, answer == q.answer))
                out.writerow([len(ids), f"{q.depth:.2f}", q.kind, int(answer == q.answer), answer])
            sys.stdout.flush()
        right = sum(hit for _, hit in hits)
        print(f"{n_tokens} tokens: {right}/{len(hits)} right, prefill {rate:.0f} tokens/s", file=sys.stderr)


if __name__ == "__main__":
    main()
