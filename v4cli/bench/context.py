"""Speed of a model over its context: what a token costs at each of some frontiers, beside this machine's ceilings.

At a frontier of n tokens the last token decoded is token n. The clock of a shared machine wanders, so a second session
stays at the first frontier and decodes in turns with the one that grows: retention compares times of the same minute.
Ceilings are measured at every frontier. GB, GMAC are 10^9.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from v4cli.bench import speed
from v4cli.bench.fill import fill
from v4cli.bench.load import Others
from v4cli.bench.resident import disk_reads, resident
from v4cli.bench.steps import KINDS, Steps, decode
from v4cli.chat.tokenizer import Tokenizer
from v4cli.engine.engine import Engine
from v4cli.engine.session import Session
from v4cli.errors import UsageError
from v4cli.nano.recall import Question, ask, haystack
from v4cli.plan import cost, flops
from v4cli.plan.memory import CHUNK
from v4cli.store.recipe import RECIPES

INT8, FP32 = "v4k int8", "torch fp32"  # products whose rates bound index scores and attention
WEIGHTS = ("experts", "dense", "head", "embed")  # components of what is read that are not cache


@dataclass(frozen=True)
class Plan:
    """What is measured. `whole` is the model that a cut one is the beginning of, else its own config."""

    frontiers: tuple[int, ...]  # tokens, ascending
    synthetic_fill: bool  # random cache entries instead of a prefill
    tokens: int  # decoded per measurement, twice per frontier
    quant: str
    whole: object
    kv_dir: Path | None = None
    tokenizer: Tokenizer | None = None  # nano's: its context is text with facts in it, which it is asked for

    def check(self) -> None:
        """UsageError if the frontiers are too close to be measured or beyond the context."""
        limit = self.whole.max_position_embeddings
        if self.frontiers[-1] > limit:
            raise UsageError(f"{self.frontiers[-1]:,} tokens exceed the model's context of {limit:,}")
        for before, after in zip((0, *self.frontiers), self.frontiers):
            if after - before < self.tail + 1:
                raise UsageError(
                    f"frontiers {before:,} and {after:,} are too close: {self.tail + 1:,} tokens are measured at one"
                )

    @property
    def tail(self) -> int:
        """Tokens computed at a frontier after it has been filled."""
        return 2 * self.tokens + (CHUNK if self.synthetic_fill else 0)


@dataclass(frozen=True)
class Part:
    """A share of a decode step: seconds, and how much of the ceiling that bounds it was reached."""

    seconds: float
    ceiling: str
    reached: float  # 0 where there is no ceiling


@dataclass(frozen=True)
class Whole:
    """Estimate for all layers of the model, from the measured times of its first ones by kind."""

    layers: int
    decode_tokens_per_s: float
    retention: float
    layer_s: dict[str, float]  # by kind of attention
    rest_s: float  # embedding and head
    bytes_read: dict[str, int]
    read_fraction: float
    parts: dict[str, Part]
    bound: str


@dataclass(frozen=True)
class Recall:
    """Facts told before the first frontier: how many were asked for at this one, and answered right."""

    asked: int
    right: int


@dataclass(frozen=True)
class Frontier:
    """What a token costs at `n_tokens`; rates in tokens/s, GB/s and GMAC/s."""

    n_tokens: int
    decode_tokens_per_s: float  # of the median token
    first_tokens_per_s: float  # the same at the first frontier, measured in turns
    retention: float  # ratio of the two
    prefill_tokens: int  # since the last frontier, or one chunk
    prefill_tokens_per_s: float
    prefill_fraction: dict[str, float]  # of the product rates
    kv_bytes: int  # by the layout, of the layers measured
    kv_resident_bytes: int  # memory grown since the session was empty: tails, checkpoints and token ids included
    bytes_read: dict[str, int]  # by one decoded token, by component
    disk_read_bytes: int | None  # by one decoded token, as the system counted
    flops: dict[str, float]  # of one decoded token, by component
    read_bandwidth: float
    product_rates: dict[str, float]
    others: float  # share of the processors that other programs used while these ceilings were measured
    read_fraction: float  # of decoding as fast as bytes_read can be read
    parts: dict[str, Part]  # of a decode step
    bound: str  # the largest part and its ceiling
    v32_flops_ratio: float  # of the whole model, FP8 equivalents (flops.py)
    v32_kv_ratio: float  # of the whole model
    whole_kv_bytes: int
    recall: Recall | None
    whole: Whole | None

    def to_dict(self) -> dict:
        return asdict(self)


def measure(engine: Engine, plan: Plan, progress: Callable[[int], Callable[[int, int], None]]) -> Iterator[Frontier]:
    """One Frontier after the other. `progress(n_tokens)` gives what Session.sync calls in the prefill of one."""
    plan.check()
    run = _Run(engine, plan, progress)
    for n_tokens in plan.frontiers:
        yield run.at(n_tokens)


class _Run:
    """The sessions of one measurement."""

    def __init__(self, engine: Engine, plan: Plan, progress: Callable):
        self.engine, self.plan, self.progress = engine, plan, progress
        config, read = engine.config, {}
        for name, shape in (("own", config), ("whole", plan.whole)):
            read[name] = cost.read_by_part(cost.needs_of_release(shape, RECIPES[plan.quant].rules))
        self.weight_reads = read
        n_ids = plan.tail if plan.synthetic_fill else plan.frontiers[-1]
        self.questions: list[Question] = []
        if plan.tokenizer:
            text = haystack(random.Random(0), plan.tokenizer, n_ids, told_within=plan.frontiers[0])
            self.ids, self.questions = text[0][:n_ids], text[1]
        else:
            self.ids = np.random.default_rng(0).integers(0, config.vocab_size, n_ids).tolist()
        self.products = _products()
        engine.session().feed((self.ids * CHUNK)[:CHUNK])  # working memory is not growth
        self.empty = resident(plan.kv_dir)
        self.session = engine.session(plan.kv_dir)
        self.first: Session | None = None

    def at(self, n_tokens: int) -> Frontier:
        config, whole, ratios = self.engine.config, self.plan.whole, _ratios(self.engine.config)
        prefilled, prefill_s = self._advance(n_tokens)
        first, here, disk = self._decode(n_tokens)
        held = self._held()
        with Others() as others:
            machine = Machine(speed.product_rates(self.products), speed.read_bandwidth())
        middle = n_tokens - 2 * self.plan.tokens - prefilled // 2
        macs = prefilled / prefill_s * flops.token_macs(config, middle) / 1e9
        read = self.weight_reads["own"] | cost.kv_read_parts(config, n_tokens)
        parts = machine.parts(here.parts(ratios, ratios), config, n_tokens, read)
        whole_kv = cost.kv_bytes(whole, n_tokens).total
        v32_flops = flops.v32_flops(n_tokens).fp8_equivalent
        return Frontier(
            n_tokens=n_tokens, decode_tokens_per_s=1 / here.median, first_tokens_per_s=1 / first.median,
            retention=first.median / here.median, prefill_tokens=prefilled, prefill_tokens_per_s=prefilled / prefill_s,
            prefill_fraction={name: macs / rate for name, rate in machine.product_rates.items()},
            kv_bytes=cost.kv_bytes(config, n_tokens).total, kv_resident_bytes=held, bytes_read=read,
            disk_read_bytes=disk, flops=_flops(config, n_tokens), read_bandwidth=machine.read_bandwidth,
            product_rates=machine.product_rates, others=others.share,
            read_fraction=machine.reading_s(read) / here.median, parts=parts,
            bound=_bound(parts), v32_flops_ratio=flops.flops(whole, n_tokens).fp8_equivalent / v32_flops,
            v32_kv_ratio=whole_kv / (flops.V32_KV_BYTES_PER_TOKEN * n_tokens), whole_kv_bytes=whole_kv,
            recall=self._recall(n_tokens), whole=self._whole(first, here, n_tokens, machine),
        )  # fmt: skip

    def _advance(self, n_tokens: int) -> tuple[int, float]:
        """Fill up to where decoding starts: tokens prefilled last, and seconds."""
        plan, session = self.plan, self.session
        start = n_tokens - 2 * plan.tokens
        if plan.synthetic_fill:
            fill(session, n_tokens - plan.tail)
            chunk = self.ids[:CHUNK]
            return CHUNK, speed.seconds(lambda: session.feed(chunk))
        before = len(session.tokens)
        return start - before, speed.seconds(lambda: session.sync(self.ids[:start], self.progress(n_tokens)))

    def _decode(self, n_tokens: int) -> tuple[Steps, Steps, int | None]:
        """Steps of the session that stays at the first frontier and of the one that grows; bytes from disk per token
        of both."""
        count = 2 * self.plan.tokens
        ids = self.ids[-count:] if self.plan.synthetic_fill else self.ids[n_tokens - count : n_tokens]
        before = disk_reads()
        steps = decode([self.session] if self.first is None else [self.first, self.session], ids)
        return steps[0], steps[-1], None if before is None else (disk_reads() - before) // count

    def _recall(self, n_tokens: int) -> Recall | None:
        """Ask for every fact, each time after the same context: the last whole turn before the frontier."""
        if not self.questions:
            return None
        eos, session = self.plan.tokenizer.eos_id, self.session.fork()
        end = n_tokens - self.ids[:n_tokens][::-1].index(eos)
        answers = [ask(session, self.plan.tokenizer, self.ids[:end], question) for question in self.questions]
        return Recall(len(answers), sum(a == q.answer for a, q in zip(answers, self.questions)))

    def _held(self) -> int:
        """Memory that the growing session has taken so far. Then the first one is made, if it was not."""
        now = resident(self.plan.kv_dir)
        held = now - self.empty
        if self.first is None:
            self.first = self.session.fork()
            self.empty += resident(self.plan.kv_dir) - now  # that session is not the cache
        return held

    def _whole(self, first: Steps, here: Steps, n_tokens: int, machine: "Machine") -> Whole | None:
        """None if the model is not cut, or if a kind of layer was not measured."""
        whole, measured, ratios = self.plan.whole, _ratios(self.engine.config), _ratios(self.plan.whole)
        if len(ratios) == len(measured) or set(ratios) - set(measured):
            return None
        then, now = (sum(steps.parts(measured, ratios).values()) for steps in (first, here))
        read = self.weight_reads["whole"] | cost.kv_read_parts(whole, n_tokens)
        parts = machine.parts(here.parts(measured, ratios), whole, n_tokens, read)
        layers = {kind: sum(row.values()) for kind, row in here.kinds(measured).items()}
        return Whole(
            layers=len(ratios), decode_tokens_per_s=1 / now, retention=then / now, rest_s=layers.pop(None),
            layer_s={KINDS[ratio]: s for ratio, s in layers.items()}, bytes_read=read,
            read_fraction=machine.reading_s(read) / now, parts=parts, bound=_bound(parts),
        )  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """Ceilings: GMAC/s of products, GB/s of reading."""

    product_rates: dict[str, float]
    read_bandwidth: float

    def reading_s(self, read: dict[str, int]) -> float:
        """Least seconds for reading these components."""
        return sum(read.values()) / 1e9 / self.read_bandwidth

    def parts(self, seconds: dict[str, float], config, n_tokens: int, read: dict[str, int]) -> dict[str, Part]:
        """A step's seconds by part beside what bounds them: scores are int8 products, attention is fp32, all else
        waits for weights."""
        f = flops.flops(config, n_tokens)
        scores = f.indexer_scores if read["index_keys"] else 0.0
        least = {
            "weights": ("reading memory", self.reading_s({name: read[name] for name in WEIGHTS})),
            "index": ("int8 products", scores / 2e9 / self.product_rates[INT8]),
            "attention": ("fp32 products", f.attention / 2e9 / self.product_rates[FP32]),
            "python": ("calls", 0.0),
        }
        return {name: Part(s, least[name][0], least[name][1] / s if s else 0.0) for name, s in seconds.items()}


def _bound(parts: dict[str, Part]) -> str:
    largest = max(parts, key=lambda name: parts[name].seconds)
    return f"{largest}: {parts[largest].ceiling}"


def _ratios(config) -> tuple[int, ...]:
    """Compression ratios of the layers."""
    return config.compress_ratios[: config.num_hidden_layers]


def _products() -> dict[str, Callable]:
    products = speed.products()
    return {name: products[name] for name in (INT8, FP32)}


def _flops(config, n_tokens: int) -> dict[str, float]:
    parts = asdict(flops.flops(config, n_tokens))
    return {name: parts[name] for name in parts if name not in ("router", "index_weight")}  # router: in ffn
