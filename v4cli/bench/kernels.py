"""Speed of the CPU kernels at Flash shapes, as CSV: `v4 bench kernels`.

Matrix-vector products stream a working set that no cache holds and are compared to a probe that only reads as many
bytes, those of q3 and q2 experts to FP4 ones of as many weights; matrix products to the faster of torch._int_mm and
torch's fp32 product on 512x4096x2048 (without VNNI the former is a plain loop); drawing a token to numpy's softmax of
its logits in fp32. Every round measures both, the fraction is the median of the rounds' ratios. GB and GMAC are 10^9.
"""

import csv
import sys
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from v4kernels import native
from v4kernels.cpu import default_threads
from v4kernels.formats import FORMATS

from v4cli import hardware
from v4cli.bench.attention_layer import AttentionLayer
from v4cli.bench.baselines import Make, baselines, reason, torch_linear
from v4cli.bench.speed import seconds
from v4cli.engine.sampler import Sampler, Sampling
from v4cli.errors import UsageError

HIDDEN, INTER, EXPERTS, TOP_K = 4096, 2048, 256, 6  # Flash
DENSE_SHAPES = ((32768, 1024), (1024, 4096), (4096, 8192), (2048, 4096))  # wq_b, wq_a, wo_b, shared w1
EXPERT_BYTES = round(3 * HIDDEN * INTER * FORMATS["fp4"].bits / 8)
SCALES = {"BF16": torch.bfloat16, "F8_E8M0": torch.float8_e8m0fnu}  # by dtype of the scales
PREFILL = 512
VOCAB, TOKENS = 129_280, 20  # drawn in a round
RANDOM = np.random.default_rng(0)


@dataclass(frozen=True)
class Row:
    """One line of the report; rate in GB/s or 10^9 weights/s (matrix-vector), GMAC/s or, of drawing a token, 10^6
    logits/s."""

    op: str
    tokens: int
    ms: float
    rate: float
    unit: str
    baseline: float
    fraction: float
    note: str = ""  # why there are no figures


def random_matrix(rows: int, cols: int, form: str) -> native.Matrix:
    """Random codes, in numpy's memory as the probe's, which has large pages; scales that keep products O(1)."""
    stored = FORMATS[form].tensors(rows, cols)
    codes = torch.from_numpy(RANDOM.integers(0, 256, stored["weight"][1], np.uint8))
    if FORMATS[form].row_scale:
        scale = torch.from_numpy(RANDOM.integers(0, 256, stored["scale"][1], np.uint8))
        scale[:, :2] = torch.tensor([0x80, 0x3A], dtype=torch.uint8)  # 2^-10
    else:
        scale = torch.full(stored["scale"][1], 2.0**-6).to(SCALES[stored["scale"][0]])
    return native.matrix(codes, scale, form)


def random_experts(count: int, form: str = "fp4"):
    """A table of experts of one format and the matrices that own its memory."""
    shapes = ((INTER, HIDDEN), (INTER, HIDDEN), (HIDDEN, INTER))
    owners = [[random_matrix(*shape, form) for shape in shapes] for _ in range(count)]
    return (native.Expert * count)(*(native.Expert(*parts) for parts in owners)), owners


def nbytes(m: native.Matrix) -> int:
    return sum(t.nbytes for t in m.tensors)


def against_reading(op: str, work, n_bytes: int, probe: np.ndarray, rounds: int) -> Row:
    """`work` streams n_bytes; the probe reads its tensor."""
    times, ratios, bandwidths = [], [], []
    for _ in range(rounds):
        bandwidth = probe.nbytes / seconds(lambda: native.read_probe(probe)) / 1e9
        times.append(seconds(work))
        bandwidths.append(bandwidth)
        ratios.append(n_bytes / times[-1] / 1e9 / bandwidth)
    rate = n_bytes / median(times) / 1e9
    return Row(op, 1, 1e3 * median(times), rate, "GB/s", median(bandwidths), median(ratios))


def matrix_vector(working_set: int, rounds: int):
    """Dense int8 and int4, and six FP4 experts at a time."""
    probe = np.ones(working_set // 8, np.int64)
    for form in ("int8", "int4"):
        matrices = []
        while sum(map(nbytes, matrices)) < working_set:
            matrices += [random_matrix(*shape, form) for shape in DENSE_SHAPES]
        inputs = {m.cols: torch.randn(1, m.cols) for m in matrices}

        def dense(matrices=matrices, inputs=inputs):
            for m in matrices:
                native.linear(inputs[m.cols], m)

        yield against_reading(f"{form} linear", dense, sum(map(nbytes, matrices)), probe, rounds)
    calls = -(-working_set // (TOP_K * EXPERT_BYTES))
    fp4, owners = each_expert("fp4", calls)
    yield against_reading("fp4 experts", fp4, len(owners) * EXPERT_BYTES, probe, rounds)
    for form in ("q3", "q2"):
        yield against_fp4(form, each_expert(form, calls)[0], fp4, calls * TOP_K * 3 * HIDDEN * INTER, rounds)


def each_expert(form: str, calls: int):
    """Work for one token: six experts of a format at a time, others in each of the calls; and what owns them."""
    table, owners = random_experts(calls * TOP_K, form)
    x, out, weights = torch.randn(1, HIDDEN), torch.zeros(1, HIDDEN), torch.full((1, TOP_K), 0.2)
    ids = torch.arange(calls * TOP_K).view(calls, 1, TOP_K)

    def work(owners=owners):
        for chosen in ids:
            native.experts(x, chosen, weights, table, None, 10.0, out)

    return work, owners


def against_fp4(form: str, work, fp4, n_weights: int, rounds: int) -> Row:
    """Experts of as many weights in a format and in FP4, in turn."""
    times, ratios, rates = [], [], []
    for _ in range(rounds):
        rates.append(n_weights / seconds(fp4) / 1e9)
        times.append(seconds(work))
        ratios.append(n_weights / times[-1] / 1e9 / rates[-1])
    rate = n_weights / median(times) / 1e9
    return Row(f"{form} experts", 1, 1e3 * median(times), rate, "Gweight/s", median(rates), median(ratios))


def torch_product():
    """The faster of torch's products on 512x4096x2048."""
    a = torch.randint(-127, 128, (PREFILL, HIDDEN), dtype=torch.int8)
    b = torch.randint(-127, 128, (HIDDEN, INTER), dtype=torch.int8)
    a32, b32 = a.float(), b.float()
    return min((lambda: torch._int_mm(a, b), lambda: torch.mm(a32, b32)), key=seconds)


def against_product(op: str, work, macs: int, product, rounds: int, tokens: int = PREFILL) -> Row:
    """`work` does macs multiply-adds; `product` is a 512x4096x2048 one, such as torch_product gives."""
    times, ratios, rates = [], [], []
    work()
    for _ in range(rounds):
        rates.append(PREFILL * HIDDEN * INTER / seconds(product) / 1e9)
        times.append(seconds(work))
        ratios.append(macs / times[-1] / 1e9 / rates[-1])
    rate = macs / median(times) / 1e9
    return Row(op, tokens, 1e3 * median(times), rate, "GMAC/s", median(rates), median(ratios))


def matrix_matrix(rounds: int):
    """A 2048x4096 linear in each format, and a layer's routed experts, for 512 tokens."""
    x, product = torch.randn(PREFILL, HIDDEN), torch_product()
    for form in ("int8", "int4", "fp4", "q3", "q2"):
        m = random_matrix(INTER, HIDDEN, form)
        macs = PREFILL * HIDDEN * INTER
        yield against_product(f"{form} linear", lambda m=m: native.linear(x, m), macs, product, rounds)
    table, owners = random_experts(EXPERTS // 4)
    ids = torch.rand(PREFILL, len(owners)).topk(TOP_K).indices
    weights, out = torch.full(ids.shape, 0.2), torch.zeros(PREFILL, HIDDEN)
    macs = 3 * PREFILL * TOP_K * HIDDEN * INTER
    name = f"fp4 experts, {PREFILL * TOP_K // len(owners)} tokens each"
    yield against_product(name, lambda: native.experts(x, ids, weights, table, None, 10.0, out), macs, product, rounds)


def other_libraries(rounds: int):
    """The same matrix-vector products by torch and bitsandbytes; a row without figures says why."""
    probe = np.ones(hardware.PROBE_RAM // 8, np.int64)
    made = {"torch fp32": torch_linear(torch.float32)} | baselines()
    for name, make in made.items():
        try:
            yield product_of(f"{name} linear", make, probe, rounds)
        except Exception as error:  # whatever others raise
            yield lacking(f"{name} linear", reason(error))


def product_of(op: str, make: Make | str, probe: np.ndarray, rounds: int) -> Row:
    if isinstance(make, str):
        return lacking(op, make)
    with torch.inference_mode():
        layers = [make(*shape, 1, "cpu") for shape in DENSE_SHAPES]

        def work():
            for layer, _ in layers:
                layer()

        work()
        return against_reading(op, work, sum(n for _, n in layers), probe, rounds)


def lacking(op: str, why: str) -> Row:
    """A row without figures."""
    return Row(op, 1, 0.0, 0.0, "GB/s", 0.0, 0.0, why)


def attention_layers(rounds: int):
    """One token through the attention of a CSA and of an HCA layer of Flash, at 4k and 1M tokens of context.

    Counted are the multiply-adds of projections, scores and attention; the baseline is our int8 product.
    """
    x, m = torch.randn(PREFILL, HIDDEN), random_matrix(INTER, HIDDEN, "int8")

    def product():
        native.linear(x, m)

    for ratio in (4, 128):
        for context in (4096, 1 << 20):
            layer = AttentionLayer(ratio, context)
            name = f"{'CSA' if ratio == 4 else 'HCA'} layer, 1 token at {context}"
            yield against_product(name, layer.step, layer.macs, product, rounds, tokens=1)
            if ratio == 4:
                yield against_product(
                    f"indexer scores, {context // 4} keys", layer.score, layer.score_macs, product, rounds, 1
                )


def sampling(rounds: int):
    """A token of Flash's vocabulary, drawn by each filter, with and without a mask; the baseline is numpy's softmax.

    Logits are normal with a standard deviation of 5."""
    logits = (RANDOM.normal(size=VOCAB) * 5).astype(np.float32)
    mask = RANDOM.random(VOCAB) < 0.5
    ways = {"greedy": {"temperature": 0.0}, "temperature 1": {}, "temperature 0.7": {"temperature": 0.7}}
    ways |= {"top-p 0.95": {"top_p": 0.95}, "top-k 50": {"top_k": 50}, "min-p 0.05": {"min_p": 0.05}}

    def softmax():
        e = np.exp(logits - logits.max())
        return e / e.sum()

    for name, options in ways.items():
        sampler = Sampler(Sampling(seed=0, **options))
        for suffix, allowed in (("", None), (", masked", mask)):
            times, ratios, rates = [], [], []
            for position in range(TOKENS * rounds):
                rates.append(VOCAB / seconds(softmax) / 1e6)
                times.append(seconds(lambda: sampler.pick(logits, position, allowed)))  # noqa: B023
                ratios.append(VOCAB / times[-1] / 1e6 / rates[-1])
            rate = VOCAB / median(times) / 1e6
            yield Row(f"{name}{suffix}", 1, 1e3 * median(times), rate, "Mlogit/s", median(rates), median(ratios))


def report(rounds: int, working_set: int, threads: int | None, isa: str | None) -> None:
    """Measure everything, a CSV line at a time."""
    if not native.available():
        raise UsageError(f"there are no kernels to measure: {native.reason()}")
    if isa and isa not in native.isa_tiers():
        raise UsageError(f"no tier {isa!r} here; choose from {', '.join(native.isa_tiers())}")
    native.set_threads(threads or default_threads())
    torch.set_num_threads(native.threads())
    if isa:
        native.set_isa(isa)
    out = csv.writer(sys.stdout)
    out.writerow(("op", "isa", "threads", "tokens", "ms", "rate", "unit", "baseline", "fraction", "note"))
    parts = matrix_vector(working_set, rounds), other_libraries(rounds), matrix_matrix(rounds), attention_layers(rounds)
    for rows in (*parts, sampling(rounds)):
        for r in rows:
            numbers = f"{r.ms:.3f}", f"{r.rate:.2f}", r.unit, f"{r.baseline:.2f}", f"{r.fraction:.3f}"
            figures = ("", "", r.unit, "", "") if r.note else numbers
            out.writerow((r.op, native.isa(), native.threads(), r.tokens, *figures, r.note))
            sys.stdout.flush()
