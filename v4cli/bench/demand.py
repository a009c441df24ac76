"""Speed of a model within a memory budget, its experts read on demand, beside what SSD and memory allow.

A decoded token must read what is missing from the SSD and everything it uses from memory; both can be done at once, so
the slower of the two is its bound. A tighter one knows the order of work: which experts a token needs is known when the
token is, not before, so nothing is read while the head of the token before computes, and all layers after the hash
layers wait for the reads of these.

Bandwidths are measured in the same run; the SSD's is the best of reading whole experts at random, before and after, and
of what it gave while the engine had reads on. Tokens are random, so the hash layers use all experts equally often:
the worst case.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from v4cli.bench.speed import read_bandwidth, seconds
from v4cli.bench.traces import Recorder
from v4cli.engine.engine import Engine
from v4cli.engine.stats import peak_rss_bytes
from v4cli.errors import UsageError
from v4cli.experts.files import ExpertFiles
from v4cli.experts.reader import Rank, Reader
from v4cli.plan import cost
from v4cli.plan.memory import CHUNK
from v4cli.store.store import Store

PROBE_BYTES = 128 << 20  # of memory: it has to fit beside what is measured
PROBE_EXPERT_BYTES = 1 << 30  # read from the SSD, or every expert once


@dataclass
class DemandReport:
    """One measurement; times in seconds, rates in tokens/s and GB/s."""

    model: str
    ram: int  # the budget
    planned_bytes: int
    peak_rss_bytes: int
    slots: int
    resident_share: float  # of all experts
    prompt_tokens: int
    prefill_tokens_per_s: float
    prefill_bytes_read: int
    prefill_read_of_needed: float  # bytes read, of those of the experts that were used and not in memory
    decode_tokens: int
    decode_tokens_per_s: float
    hit_rate: float
    expected_of_misses: float  # named before the layer asked
    wasted_of_reads: float
    ssd_bytes_per_token: float
    ram_bytes_per_token: float
    ssd_busy_share: float  # of the time
    wait_share: float  # of the time: nothing to compute, waiting for a read
    ssd_bandwidth: float
    read_bandwidth: float
    bound_tokens_per_s: float  # the slower of SSD and memory
    decode_fraction: float  # of that bound
    order_bound_tokens_per_s: float  # SSD, then head; or hash layers from the SSD, then the other layers from memory
    order_fraction: float  # of the lower of both bounds

    def to_dict(self) -> dict:
        return asdict(self)


def measure(
    folder: Path,
    ram: int,
    prompt: int,
    tokens: int,
    trace: Path | None = None,
    begin: Callable[[float], None] = lambda seconds: None,
) -> DemandReport:
    """Prefill `prompt` random tokens, decode `tokens` more; note routing in `trace`. `begin` is told before that how
    many seconds it takes at least. UsageError if the model fits."""
    bandwidths = [(ssd_bandwidth(folder), read_bandwidth(n_bytes=PROBE_BYTES))]
    engine = Engine.open(folder, "cpu", ram=ram)
    if engine.stream is None:
        raise UsageError("all of the model fits in --ram", "drop --ram: v4 bench measures it in memory")
    begin(_least_s(engine, prompt, tokens, *bandwidths[0]))
    recorder = Recorder(engine.model) if trace else None
    ids = np.random.default_rng(0).integers(0, engine.config.vocab_size, prompt + tokens).tolist()
    session = engine.session()
    session.sync(ids[:prompt])
    hash_misses = _HashMisses(engine)
    before, start = engine.stream.counts, time.perf_counter()
    for token in ids[prompt:]:
        session.feed([token])
    decode_s, counts = time.perf_counter() - start, engine.stream.counts.since(before)
    peak = peak_rss_bytes()  # the probes that follow are not the engine's
    if recorder:
        recorder.stop().save(trace)
    bandwidths.append((ssd_bandwidth(folder), read_bandwidth(n_bytes=PROBE_BYTES)))
    ssd = max(counts.bytes_read / 1e9 / max(counts.busy_s, 1e-9), *(probe[0] for probe in bandwidths))
    memory = float(np.mean([probe[1] for probe in bandwidths]))
    weights = cost.read_bytes_per_token(engine.config, cost.stored_tensors(Store.open(folder).trunk))
    read = sum(weights.values()) + cost.kv_read_bytes(engine.config, prompt + tokens // 2)
    prefill, expert = session.stats.prefill_experts, max(engine.stream.reader.files.sizes)
    ssd_s, memory_s = counts.misses * expert / tokens / ssd / 1e9, read / memory / 1e9
    bound = 1 / max(ssd_s, memory_s)
    head_s = weights["head"] / memory / 1e9
    after_hash = 1 - hash_misses.n_layers / engine.config.num_hidden_layers
    then_s = head_s + after_hash * (weights["experts"] + weights["dense"]) / memory / 1e9
    in_order = 1 / max(ssd_s + head_s, hash_misses.count * expert / tokens / ssd / 1e9 + then_s)
    return DemandReport(
        model=str(folder), ram=ram, planned_bytes=engine.place.ledger.held, peak_rss_bytes=peak,
        slots=engine.place.ledger.slots, resident_share=engine.place.plan.resident,
        prompt_tokens=prompt, prefill_tokens_per_s=prompt / session.stats.prefill_s,
        prefill_bytes_read=prefill["bytes_read"],
        prefill_read_of_needed=prefill["bytes_read"] / max(1, prefill["misses"] * expert),
        decode_tokens=tokens, decode_tokens_per_s=tokens / decode_s, hit_rate=counts.to_dict()["hit_rate"],
        expected_of_misses=counts.expected / max(1, counts.misses),
        wasted_of_reads=counts.bytes_wasted / max(1, counts.bytes_read),
        ssd_bytes_per_token=counts.bytes_read / tokens, ram_bytes_per_token=read,
        ssd_busy_share=counts.busy_s / decode_s, wait_share=counts.wait_s / decode_s,
        ssd_bandwidth=ssd, read_bandwidth=memory,
        bound_tokens_per_s=bound, decode_fraction=tokens / decode_s / bound,
        order_bound_tokens_per_s=in_order, order_fraction=tokens / decode_s / min(bound, in_order),
    )  # fmt: skip


def _least_s(engine: Engine, prompt: int, tokens: int, ssd: float, memory: float) -> float:
    """Seconds of reading: what is not in memory once for each chunk of the prefill, and the same share of a token's
    experts. Bandwidths in GB/s."""
    files, place = engine.stream.reader.files, engine.place
    missing = len(files) * (1 - place.plan.resident)
    config, expert = engine.config, max(files.sizes)
    used = config.num_hidden_layers * config.num_experts_per_tok
    a_token = used * expert * ((1 - place.plan.resident) / ssd + 1 / memory)
    return (-(-prompt // CHUNK) * missing * expert / ssd + tokens * a_token) / 1e9


class _HashMisses:
    """Counts from now on the experts of hash layers that had to be read."""

    def __init__(self, engine: Engine):
        self.stream, self._serve = engine.stream, engine.stream.serve
        self.n_layers, self.count = engine.config.num_hash_layers, 0
        self._end = self.n_layers * engine.config.n_routed_experts
        engine.stream.serve = self._counting

    def _counting(self, experts: np.ndarray, uses: np.ndarray, n_tokens: int):
        before = self.stream.counts.misses
        served = self._serve(experts, uses, n_tokens)
        self.count += self.stream.counts.misses - before if experts[0] < self._end else 0
        return served


def ssd_bandwidth(folder: Path) -> float:
    """GB/s of reading experts at random. ModelError, UsageError if the folder is no store."""
    if not (folder / "manifest.json").exists():
        raise UsageError(f"{folder} is not a store: there is nothing to read on demand", "v4 quantize makes one")
    files = ExpertFiles(Store.open(folder))
    count = min(len(files), max(1, PROBE_EXPERT_BYTES // max(files.sizes)))
    reader = Reader(files, [4 * (room == max(files.rooms)) for room in files.rooms])  # they hold any expert
    chosen = np.random.default_rng(time.time_ns()).permutation(len(files))[:count].tolist()
    n_bytes = sum(files.sizes[expert] for expert in chosen)

    def work() -> None:
        free = list(range(reader.n_slots))
        for expert in chosen:
            if not free:
                free += reader.take(wait=True)
            reader.ask(expert, free.pop(), Rank.NOW)
        while reader.bytes_read < n_bytes:
            reader.take(wait=True)

    taken = seconds(work)
    reader.close()
    return n_bytes / 1e9 / taken
