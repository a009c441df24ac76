"""What drafts give: of a model, by kind of answer; and of any weights, with guesses that are right as often as asked,
beside what the share of routed experts in a step's time lets expect.

A step of n rows takes 1 - s + s * u(n) of a step of one, u(n) being the experts that n rows use in those that one does;
of guesses that are right with chance a, g give 1 + a + ... + a^g tokens.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from time import perf_counter

import numpy as np

from v4cli.bench.trial import Trial
from v4cli.engine.draft import Draft
from v4cli.engine.drafting import Drafted, Drafting
from v4cli.engine.engine import Engine
from v4cli.engine.sampler import Sampling
from v4cli.engine.session import Session

RIGHT = (0.0, 0.4, 0.6, 0.8, 0.95)
ROUNDS = 5  # of each, in turn with plain decoding: the machine's speed may drift
TIMED = 5  # steps of each number of rows,
ROWS = 1, 2, 4, 8, 16
MOST_TOKENS = 160  # of an answer
WORDS = "river stone cloud seven lamp green under walk paper north quiet salt".split()


class Forced:
    """Guesses of which each is right with the same chance, whatever is said: it knows what will be."""

    name, effort = "forced", (0.0, 1)

    def __init__(self, truth: Sequence[int], right: float, vocab_size: int, seed: int):
        self.truth, self.right, self.vocab_size = list(truth), right, vocab_size
        self.rng = np.random.default_rng(seed)

    def draft(self, tokens: Sequence[int], last: int, most: int) -> Draft:
        known = self.truth[len(tokens) + 1 : len(tokens) + 1 + most]
        wrong = self.rng.random(len(known)) >= self.right
        said = [(token + 1) % self.vocab_size if w else token for token, w in zip(known, wrong)]
        return Draft(said, [self.right] * len(said))

    def seen(self, draft: Draft, i: int, right: bool) -> None:
        """It knows."""

    def back(self, n_tokens: int) -> None:
        """Nor does that change anything."""


@dataclass(frozen=True)
class Rate:
    """Of guesses that are right with chance `right`; speeds as multiples of plain decoding's, in the median round."""

    right: float
    tokens_per_s: float
    plain_tokens_per_s: float
    speed: float
    predicted: float  # with as many guesses as are best, by the measured times of steps
    formula: float  # the same by the share of routed experts
    accepted_per_step: float
    row_cost: float


@dataclass(frozen=True)
class ForcedReport:
    model: str
    threads: int
    tokens: int
    share: float  # of routed experts in the time of a step of one row, as steps of more rows show it
    share_of_bytes: float
    row_times: dict[int, float]  # of a step of so many rows, in those of one
    rates: list[Rate]

    def to_dict(self) -> dict:
        return asdict(self)


def forced(engine: Engine, prompt: int, tokens: int, rights: Sequence[float] = RIGHT) -> ForcedReport:
    """Decode `tokens` tokens after a random prompt, plain and with guesses."""
    from v4kernels import native

    engine.drafts = "off"
    session = engine.session()
    session.sync(np.random.default_rng(0).integers(0, engine.config.vocab_size, prompt).tolist())
    truth, _ = _decoded(session, prompt, tokens)
    most = engine.model.ops.most_drafts
    times = row_times(session, most)
    used = uses(engine.config.n_routed_experts, engine.config.num_experts_per_tok)
    share = float(np.mean([(time - 1) / (used(n) - 1) for n, time in times.items() if n > 2]))
    whole, rates = [*session.tokens, *truth], []
    for right in rights:
        by_times = best_speed(right, lambda n: timed(times, n), most)
        by_share = best_speed(right, lambda n: 1 + share * (used(n) - 1), most)
        rates.append(_rate(session, whole, right, (by_times, by_share)))
    of_bytes = engine.scheduler.costs.share
    return ForcedReport(str(engine.path), native.threads(), tokens, share, of_bytes, times, rates)


def forced_s(trial: Trial, prompt: int, tokens: int) -> float:
    """Seconds that `forced` takes, about: guesses that are never right cost what they save."""
    decoded = trial.decode_s(prompt, tokens * (1 + 2 * ROUNDS * len(RIGHT)))
    return trial.prefill_s(0, prompt) + decoded + TIMED * sum(trial.decode_s(prompt, 1, rows) for rows in ROWS)


def uses(experts: int, top_k: int) -> Callable[[int], float]:
    """u(n)."""
    return lambda n: experts * (1 - (1 - top_k / experts) ** n) / top_k


def best_speed(right: float, time: Callable[[int], float], most: int) -> float:
    """With as many guesses as are best, up to `most`, or none, where steps of n rows take `time(n)` of one."""
    return max(1.0, *(sum(right**i for i in range(g + 1)) / time(g + 1) for g in range(1, most + 1)))


def timed(times: dict[int, float], rows: int) -> float:
    """Between those numbers of rows that were measured."""
    return float(np.interp(rows, list(times), list(times.values())))


def row_times(session: Session, most: int) -> dict[int, float]:
    """Of steps of 1, 2, 4, ... rows of random tokens, with the logits of all, in the time of one just before: medians
    of several rounds, since the machine's speed may drift."""
    here, rng = list(session.tokens), np.random.default_rng(0)

    def seconds(rows: int) -> float:
        start = perf_counter()
        session.feed(rng.integers(0, session.engine.config.vocab_size, rows).tolist(), all_logits=True)
        taken = perf_counter() - start
        session.sync(here)
        return taken

    rounds = []
    for _ in range(TIMED):
        one = seconds(1)
        rounds.append({rows: seconds(rows) / one for rows in ROWS if 1 < rows <= most + 1})
    return {1: 1.0} | {rows: median(times[rows] for times in rounds) for rows in rounds[0]}


def _rate(session: Session, truth: list[int], right: float, expected: tuple[float, float]) -> Rate:
    """Of a session at its prompt, whose tokens will be `truth`."""
    engine, prompt = session.engine, len(session.tokens)
    n = len(truth) - prompt
    plain, with_drafts, rounds = [], [], []
    for round in range(ROUNDS):
        engine.drafts = "off"
        plain.append(_decoded(session, prompt, n)[1])
        guesser = Forced(truth, right, engine.config.vocab_size, round)
        session.drafting = Drafting(engine.scheduler.costs, [guesser])
        engine.drafts = "auto"
        said, seconds = _decoded(session, prompt, n)
        assert said == truth[prompt:], "drafts have changed what is said"
        with_drafts.append(seconds)
        rounds.append(session.drafting.done)
    done = Drafted.sum(rounds)
    speed = median(a / b for a, b in zip(plain, with_drafts))
    per_step = done.accepted / max(done.steps, 1)
    return Rate(right, n / median(with_drafts), n / median(plain), speed, *expected, per_step, done.row_cost)


def _decoded(session: Session, prompt: int, tokens: int) -> tuple[list[int], float]:
    """Tokens and seconds; the session is back at its prompt then."""
    start = perf_counter()
    said = [step.token for step in session.generate(Sampling(temperature=0.0), tokens)]
    seconds = perf_counter() - start
    session.sync(session.tokens[:prompt])
    return said, seconds


# -- by kind of answer ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    kind: str
    answers: int
    tokens: int
    accepted_per_step: float
    right: float  # of those that were verified
    row_cost: float
    speed: float  # measured, as a multiple of plain decoding's


def by_kind(chat, which: str, n: int, seed: int = 99) -> list[Kind]:
    """Answers of a model to n dialogues of nano's and to n tasks of copying, plain and with these drafts in turn."""
    from v4cli.engine.stats import total
    from v4cli.options import Options

    arms = {"off": chat, which: chat.twin()}
    turns: dict[str, list] = {}
    for count, (kind, messages, tools, thinking) in enumerate(_questions(n, seed)):
        answers = {}
        for arm in sorted(arms, reverse=count % 2 == 0):
            chat.engine.guess_by(arm)
            for _ in arms[arm].reply(
                messages, Options(thinking=thinking, temperature=0.0, max_tokens=MOST_TOKENS), tools
            ):
                pass
            answers[arm] = arms[arm].ids, replace(arms[arm].stats)
        assert answers["off"][0] == answers[which][0], "drafts have changed what is said"
        turns.setdefault(kind, []).append((answers["off"][1], answers[which][1]))
    kinds = []
    for kind, pairs in sorted(turns.items()):
        plain, drafted = (total(list(stats)) for stats in zip(*pairs))
        done = drafted.drafts or Drafted()
        right = done.accepted / done.verified if done.verified else 0.0
        a_step, speed = done.accepted / max(done.steps, 1), plain.decode_s / (drafted.decode_s or 1.0)
        kinds.append(Kind(kind, len(pairs), drafted.completion_tokens, a_step, right, done.row_cost, speed))
    return kinds


def by_kind_s(trial: Trial, n: int, seed: int = 99) -> float:
    """Seconds that `by_kind` takes at most, about: most answers end before their limit."""
    n_answers = 2 * sum(1 for _ in _questions(n, seed))
    return n_answers * (trial.prefill_s(0, MOST_TOKENS) + trial.decode_s(MOST_TOKENS, MOST_TOKENS))


def _questions(n: int, seed: int) -> Iterator[tuple[str, list[dict], list[dict] | None, bool]]:
    """Kind, messages, tools, whether to think."""
    from v4cli.nano.dialogues import generate

    rng = random.Random(seed)
    for _ in range(n):
        dialogue = generate(rng, "heldout")
        tools = next((m["tools"] for m in dialogue.messages if "tools" in m), None)
        plain = [{k: v for k, v in m.items() if k != "tools"} for m in dialogue.messages]
        for i, skill in dialogue.skills.items():
            yield skill, plain[:i], tools, dialogue.thinking_mode == "thinking"
        text = " ".join(rng.choice(WORDS) for _ in range(24))
        lines = "\n".join(f"{name} = {rng.randrange(100)}" for name in rng.sample(WORDS, 8))
        for kind, asked in (
            ("copy: repeat", f"repeat: {text}"),
            ("copy: quote", f"Quote this text word for word, in quotation marks:\n{text}"),
            ("copy: edit", f"Here is a file:\n{lines}\nWrite it again with the first value set to 7."),
        ):
            yield kind, [{"role": "user", "content": asked}], None, False
