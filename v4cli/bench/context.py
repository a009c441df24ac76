"""Speed of a model over its context: what a token costs at each of some frontiers, beside this machine's ceilings.

At a frontier of n tokens the last token decoded is token n. The clock of a shared machine wanders, so a second session
stays at the first frontier and decodes in turns with the one that grows: retention compares times of the same minute.
Ceilings are measured at every frontier. GB, GMAC are 10^9.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from v4cli.bench import speed
from v4cli.bench.fill import fill
from v4cli.bench.resident import disk_reads, resident
from v4cli.bench.steps import KINDS, Steps, decode
from v4cli.engine.engine import PREFILL_CHUNK, Engine, Session
from v4cli.errors import UsageError
from v4cli.model import cost
from v4cli.weights.store import layout

INT8, FP32 = "v4k int8", "torch fp32"  # products whose rates bound index scores and attention


@dataclass(frozen=True)
class Plan:
    """What is measured. `whole` is the model that a cut one is the beginning of, else its own config."""

    frontiers: tuple[int, ...]  # tokens, ascending
    synthetic_fill: bool  # random cache entries instead of a prefill
    tokens: int  # decoded per measurement, twice per frontier
    quant: str
    whole: object
    kv_dir: Path | None = None

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
        return 2 * self.tokens + (PREFILL_CHUNK if self.synthetic_fill else 0)


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
    read_fraction: float  # of decoding as fast as bytes_read can be read
    parts: dict[str, Part]  # of a decode step
    bound: str  # the largest part and its ceiling
    v32_flops_ratio: float  # of the whole model, FP8 equivalents (cost.py)
    v32_kv_ratio: float  # of the whole model
    whole_kv_bytes: int
    whole: Whole | None

    def to_dict(self) -> dict:
        return asdict(self)


def measure(engine: Engine, plan: Plan, job: Callable) -> Iterator[Frontier]:
    """One Frontier after the other. `job(what, total)` gives a context manager whose advance(n) counts tokens."""
    plan.check()
    run = _Run(engine, plan, job)
    for n_tokens in plan.frontiers:
        yield run.at(n_tokens)


class _Run:
    """The sessions of one measurement."""

    def __init__(self, engine: Engine, plan: Plan, job: Callable):
        self.engine, self.plan, self.job = engine, plan, job
        config, read = engine.config, {}
        for name, shape in (("own", config), ("whole", plan.whole)):
            tensors = cost.stored_tensors(layout(shape, plan.quant, with_mtp=False))
            read[name] = cost.read_bytes_per_token(shape, tensors)
        self.weight_reads = read
        n_ids = plan.tail if plan.synthetic_fill else plan.frontiers[-1]
        self.ids = np.random.default_rng(0).integers(0, config.vocab_size, n_ids).tolist()
        self.products = _products()
        engine.session().feed((self.ids * PREFILL_CHUNK)[:PREFILL_CHUNK])  # working memory is not growth
        self.empty = resident(plan.kv_dir)
        self.session = engine.session(kv_dir=plan.kv_dir) if plan.kv_dir else engine.session()
        self.first: Session | None = None

    def at(self, n_tokens: int) -> Frontier:
        plan, session = self.plan, self.session
        prefilled, prefill_s = self._advance(n_tokens)
        ids = self.ids[-2 * plan.tokens :] if plan.synthetic_fill else self.ids[n_tokens - 2 * plan.tokens : n_tokens]
        reads = disk_reads()
        first, here = self._decode(ids)
        reads = None if reads is None else (disk_reads() - reads) // (2 * plan.tokens)
        held = resident(plan.kv_dir) - self.empty
        if self.first is None:
            before = resident(plan.kv_dir)
            self.first = session.fork()
            self.empty += resident(plan.kv_dir) - before  # that session is not the cache
        rates, bandwidth = speed.product_rates(self.products), speed.read_bandwidth()
        macs = cost.token_macs(self.engine.config, n_tokens - (2 * plan.tokens + prefilled // 2))
        parts = self._parts(here, n_tokens, rates, bandwidth)
        largest = max(parts, key=lambda name: parts[name].seconds)
        read = self._reads("own", self.engine.config, n_tokens)
        whole_flops = cost.flops(plan.whole, n_tokens)
        whole_kv = cost.kv_bytes(plan.whole, n_tokens).total
        return Frontier(
            n_tokens=n_tokens, decode_tokens_per_s=1 / here.median, first_tokens_per_s=1 / first.median,
            retention=first.median / here.median, prefill_tokens=prefilled, prefill_tokens_per_s=prefilled / prefill_s,
            prefill_fraction={name: prefilled / prefill_s * macs / 1e9 / rate for name, rate in rates.items()},
            kv_bytes=cost.kv_bytes(self.engine.config, n_tokens).total, kv_resident_bytes=held, bytes_read=read,
            disk_read_bytes=reads, flops=_flops(self.engine.config, n_tokens), read_bandwidth=bandwidth,
            product_rates=rates, read_fraction=sum(read.values()) / 1e9 / bandwidth / here.median, parts=parts,
            bound=f"{largest}: {parts[largest].ceiling}",
            v32_flops_ratio=whole_flops.fp8_equivalent / cost.v32_flops(n_tokens).fp8_equivalent,
            v32_kv_ratio=whole_kv / (cost.V32_KV_BYTES_PER_TOKEN * n_tokens), whole_kv_bytes=whole_kv,
            whole=self._whole(first, here, n_tokens),
        )  # fmt: skip

    def _advance(self, n_tokens: int) -> tuple[int, float]:
        """Fill up to where decoding starts: tokens prefilled last, and seconds."""
        plan, session = self.plan, self.session
        start = n_tokens - 2 * plan.tokens
        if plan.synthetic_fill:
            fill(session, n_tokens - plan.tail)
            chunk = self.ids[:PREFILL_CHUNK]
            return PREFILL_CHUNK, speed.seconds(lambda: session.feed(chunk))
        before = len(session.tokens)
        with self.job(f"prefill to {n_tokens:,}", start - before) as bar:
            done = [before]

            def progress(at: int, _total: int) -> None:
                bar.advance(at - done[0])
                done[0] = at

            return start - before, speed.seconds(lambda: session.sync(self.ids[:start], progress))

    def _decode(self, ids: Sequence[int]) -> tuple[Steps, Steps]:
        """Steps of the session that stays at the first frontier and of the one that grows."""
        sessions = [self.session] if self.first is None else [self.first, self.session]
        steps = decode(sessions, ids)
        return steps[0], steps[-1]

    def _reads(self, which: str, config, n_tokens: int) -> dict[str, int]:
        return self.weight_reads[which] | cost.kv_read_parts(config, n_tokens)

    def _parts(self, steps: Steps, n_tokens: int, rates: dict[str, float], bandwidth: float) -> dict[str, Part]:
        """Step time by what bounds it. Scores are int8 products, attention is fp32, all else waits for weights."""
        config, part = self.engine.config, steps.part_seconds()
        f = cost.flops(config, n_tokens)
        read = sum(self.weight_reads["own"].values()) / 1e9
        scores = f.indexer_scores / 2e9 if cost.kv_read_parts(config, n_tokens)["index_keys"] else 0.0

        def of(name: str, ceiling: str, least_s: float) -> Part:
            return Part(part[name], ceiling, least_s / part[name] if part[name] else 0.0)

        return {
            "weights": of("weights", "reading memory", read / bandwidth),
            "index": of("index", "int8 products", scores / rates[INT8]),
            "attention": of("attention", "fp32 products", f.attention / 2e9 / rates[FP32]),
            "python": Part(part["python"], "calls", 0.0),
        }

    def _whole(self, first: Steps, here: Steps, n_tokens: int) -> Whole | None:
        """None if the model is not cut, or if a kind of layer was not measured."""
        config, whole = self.engine.config, self.plan.whole
        ratios = whole.compress_ratios[: whole.num_hidden_layers]
        measured = config.compress_ratios[: config.num_hidden_layers]
        if len(ratios) == len(measured) or set(ratios) - set(measured):
            return None
        then, now = (steps.estimate(measured, ratios) for steps in (first, here))
        by_kind, rest = here.layer_seconds(measured)
        return Whole(
            layers=len(ratios), decode_tokens_per_s=1 / now, retention=then / now,
            layer_s={KINDS[ratio]: s for ratio, s in by_kind.items()}, rest_s=rest,
            bytes_read=self._reads("whole", whole, n_tokens),
        )  # fmt: skip


def _products() -> dict[str, Callable]:
    products = speed.products()
    return {name: products[name] for name in (INT8, FP32)}


def _flops(config, n_tokens: int) -> dict[str, float]:
    parts = asdict(cost.flops(config, n_tokens))
    return {name: parts[name] for name in parts if name not in ("router", "index_weight")}  # router: in ffn
