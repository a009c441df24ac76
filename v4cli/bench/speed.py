"""Speed of a model on this machine, beside the machine's own ceilings, all measured in one run.

Decoding must read every weight a token uses, so its ceiling is read bandwidth; a prefill chunk reads them once for all
its tokens, so its ceiling is the rate of int8 products. GB, GMAC are 10^9.
"""

import ctypes
import math
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import median

import numpy as np
from v4kernels import native
from v4kernels.formats import GROUP

from v4cli import hardware
from v4cli.bench.load import Others
from v4cli.engine.engine import Engine
from v4cli.model.v4 import V4
from v4cli.model.weights import build
from v4cli.plan import cost, flops
from v4cli.store.recipe import RECIPES

PRODUCT = (512, 4096, 2048)  # tokens, inputs, outputs of the products that stand for the machine's int8 rate


@dataclass
class Report:
    """One measurement; times in seconds, rates in tokens/s, GB/s and GMAC/s."""

    model: str
    synthetic: bool
    backend: str
    isa: str
    threads: int
    prompt_tokens: int
    prefill_tokens_per_s: float
    decode_tokens: int
    decode_tokens_per_s: float  # of the median token
    bytes_per_token: dict[str, int]  # read by one decoded token
    read_bandwidth: float
    decode_fraction: float  # of what reading bytes_per_token at read_bandwidth would allow
    macs_per_token: float  # matrix products of one prefilled token
    product_rates: dict[str, float]  # of 512 x 4096 x 2048
    prefill_fraction: dict[str, float]  # of those rates
    others: float  # share of the processors that other programs used while the ceilings were measured
    python_s_per_token: float  # decoding, outside the kernels
    op_s_per_token: dict[str, float] = field(default_factory=dict)  # decoding, by kernel

    def to_dict(self) -> dict:
        return asdict(self)


class Clock:
    """The kernel library with a clock around every call."""

    def __init__(self, library):
        self._library = library
        self.calls: list[tuple[str, float, float]] = []  # kernel, start and end by perf_counter, in order

    def __getattr__(self, name: str):
        function, kernel = getattr(self._library, name), name.removeprefix("v4k_")

        def timed(*args):
            start = time.perf_counter()
            result = function(*args)
            self.calls.append((kernel, start, time.perf_counter()))
            return result

        setattr(self, name, timed)
        return timed

    def v4k_self_attention(self, layer_at, x, turns, spans_at, n_spans, scratch, out) -> int:
        """Its steps one by one (v4k.h), so that index and attention have times of their own; for one timeline."""
        assert n_spans == 1
        layer, span = native.AttentionLayer.from_address(layer_at), native.Span.from_address(spans_at)
        start, n = span.start, span.rows
        memory = native.Memory.from_address(span.memory + layer.number * ctypes.sizeof(native.Memory))
        a = native.Attention.from_address(layer.attention)
        top_k = native.Indexer.from_address(layer.indexer).top_k if layer.indexer else 0
        ratio = native.Compressor.from_address(layer.compressor).ratio if layer.compressor else 0
        heads = 4 * a.heads * a.head_dim
        sizes = heads, heads, 4 * a.wq_a.rows, native.entry_bytes(a.head_dim, a.rope_dims), 4 * top_k
        at = [scratch]
        for size in sizes[:-1]:
            at.append(at[-1] + n * size + -n * size % 64)
        q, result, qr, fresh, selected = at
        entries, chosen = None, None
        codes = [
            self.v4k_queries(layer.attention, x, n, turns, q, qr),
            self.v4k_window_entries(layer.attention, x, n, turns, fresh),
        ]
        if ratio:
            codes.append(self.v4k_compress(layer.compressor, x, start, n, memory.main))
            entries = native.Compressed.from_address(memory.main).entries
        if top_k:
            keys = native.Compressed.from_address(memory.keys)
            codes.append(self.v4k_compress(layer.keys, x, start, n, memory.keys))
            if (start + n) // ratio > top_k:
                chosen = selected
                codes.append(
                    self.v4k_select(layer.indexer, x, qr, turns, start, n, keys.entries, keys.scales, selected)
                )
        k = top_k if chosen else 0
        codes.append(
            self.v4k_attend(
                layer.attention,
                q,
                turns,
                start,
                n,
                memory.ring,
                memory.ring_rows,
                fresh,
                entries,
                ratio,
                chosen,
                k,
                result,
            )
        )
        codes.append(self.v4k_attention_output(layer.attention, result, n, out))
        return min(codes)

    def seconds(self) -> dict[str, float]:
        """Time inside each kernel."""
        total: dict[str, float] = {}
        for kernel, start, end in self.calls:
            total[kernel] = total.get(kernel, 0.0) + end - start
        return total


@contextmanager
def clocked(ops):
    """Within: every kernel call of the op table goes through the Clock."""
    library, clock = ops.library, Clock(ops.library)
    ops.library = clock
    try:
        yield clock
    finally:
        ops.library = library


def random_engine(config, quant: str, name: str) -> Engine:
    """An engine over random packed weights of this shape, on the cpu backend."""
    from v4kernels.cpu import Cpu

    from v4cli.bench.random_weights import RandomSource

    start = time.monotonic()
    model = V4(config, Cpu().bind(build(config, RandomSource(config, quant))))
    return Engine(model, name, time.monotonic() - start)


def measure(engine: Engine, quant: str, synthetic: bool, prompt: int, tokens: int) -> Report:
    """Prefill `prompt` random tokens, decode `tokens` more. The cpu backend only."""
    config, ops = engine.config, engine.model.ops
    ids = np.random.default_rng(0).integers(0, config.vocab_size, prompt + 2 * tokens).tolist()
    warm = engine.session()
    warm.feed(ids[: min(prompt, 64)])
    with Others() as before:
        bandwidths = [read_bandwidth()]
    session, start = engine.session(), time.perf_counter()
    session.sync(ids[:prompt])
    prefill_s = time.perf_counter() - start
    times = [seconds(lambda i=i: session.feed([ids[i]])) for i in range(prompt, prompt + tokens)]
    with Others() as after:
        bandwidths.append(read_bandwidth())
    with clocked(ops) as clock:
        slower = [seconds(lambda i=i: session.feed([ids[i]])) for i in range(prompt + tokens, prompt + 2 * tokens)]
    kernels = {name: s / tokens for name, s in sorted(clock.seconds().items())}
    read = cost.read_by_part(cost.needs_of_release(config, RECIPES[quant].rules))
    read["kv"] = cost.kv_read_bytes(config, prompt + tokens // 2)
    macs = flops.token_macs(config, prompt // 2)
    with Others() as last:
        rates, bandwidth = product_rates(products()), median(bandwidths)
    return Report(
        model=str(engine.path), synthetic=synthetic, backend=ops.name, isa=native.isa(), threads=native.threads(),
        prompt_tokens=prompt, prefill_tokens_per_s=prompt / prefill_s, decode_tokens=tokens,
        decode_tokens_per_s=1 / median(times), bytes_per_token=read, read_bandwidth=bandwidth,
        decode_fraction=sum(read.values()) / 1e9 / bandwidth / median(times), macs_per_token=macs,
        product_rates=rates,
        prefill_fraction={name: prompt / prefill_s * macs / 1e9 / rate for name, rate in rates.items()},
        others=max(before.share, after.share, last.share),
        python_s_per_token=sum(slower) / tokens - sum(kernels.values()), op_s_per_token=kernels,
    )  # fmt: skip


def seconds(work) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read_bandwidth(rounds: int = 3, n_bytes: int | None = None) -> float:
    """GB/s of reading so many bytes with all threads, the median round; without a number, more than caches hold."""
    n_bytes = n_bytes or hardware.PROBE_RAM
    data = np.ones(n_bytes // 8, np.int64)
    return n_bytes / 1e9 / median(seconds(lambda: native.read_probe(data)) for _ in range(rounds))


def products() -> dict[str, Callable]:
    """One matrix product of sizes PRODUCT by torch._int_mm, torch in fp32 and our int8 kernel."""
    import torch

    tokens, inputs, outputs = PRODUCT
    torch.set_num_threads(native.threads())
    a = torch.randint(-127, 128, (tokens, inputs), dtype=torch.int8)
    b = torch.randint(-127, 128, (inputs, outputs), dtype=torch.int8)
    x, w, out = a.float(), b.float(), torch.empty(tokens, outputs)
    matrix = native.matrix(b.T.contiguous(), torch.full((outputs, inputs // GROUP), 0.01).bfloat16(), "int8")
    return {
        "torch._int_mm": lambda: torch._int_mm(a, b),
        "torch fp32": lambda: torch.mm(x, w, out=out),
        "v4k int8": lambda: native.linear(x, matrix),
    }


def product_rates(work: dict[str, Callable], rounds: int = 3) -> dict[str, float]:
    """GMAC/s of products that products() made."""
    macs = math.prod(PRODUCT) / 1e9
    return {name: macs / _typical(product, rounds) for name, product in work.items()}


def _typical(work, rounds: int) -> float:
    """Median time of some calls; of one where a call takes more than a second, as _int_mm does without VNNI."""
    first = seconds(work)
    return first if first > 1 else median([first, *(seconds(work) for _ in range(rounds - 1))])
