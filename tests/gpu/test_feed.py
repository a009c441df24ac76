"""What few rows launch together, as compiled for three GPUs, run in the PTX machine: the bits are those of the CPU
library, of each part alone."""

from dataclasses import replace

import numpy as np
import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import hyper_parts
import index_parts
import kv_parts as parts
import timelines
from emulated import Emulated
from gpu_kernels import TARGETS, fixed, on, quantized, same
from hyper_parts import embedding
from kv_parts import F, Fed, Heads, Kept
from test_gate import AMD, EACH_NVIDIA, Budget, complaints
from v4kernels.cpu import PackedWeight
from v4kernels.formats import FORMATS
from v4kernels.triton import fan, feed, index, kv, linear, lines
from v4kernels.triton.dense import Dense
from v4kernels.triton.memory import Back, Memory, made
from v4kernels.triton.weights import Uploads

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
WIDTH = 64  # of what is multiplied


# -- several layers of one x ------------------------------------------------------------------------------------------


def weight(rng: np.random.Generator, form: str, rows: int, cols: int) -> PackedWeight:
    w = embedding(rng, form, rows, cols)
    if own := FORMATS[form].row_scale:  # scales that leave sums finite
        w.owners[1][:, :own] = np.full((rows, 1), 0.01, F).view(np.uint8)[:, 2:]
    elif w.owners[1] is not None:
        w.owners[1][...] = 120 if form == "fp4" else (np.float32(0.01).view(np.uint32) >> 16)
    return w


def on_device(gpu: str, x: np.ndarray) -> tuple[Dense, Uploads, object]:
    memory = Memory(Emulated(gpu))
    dense = Dense(memory)
    held = dense.take("x", *x.shape)
    memory.device.write(held.at, x)
    return dense, Uploads(memory), held


@pytest.mark.parametrize("gpu, n, cols", [("sm_80", 1, 352), ("sm_89", 5, 288), ("sm_120", 8, 32)])
def test_layers_that_read_the_same_are_the_librarys(gpu, n, cols):
    """Of every format, in one launch; rows that fill no program, groups that are zero, tiny, huge, not finite."""
    rng = np.random.default_rng(cols)
    x = parts.activations(rng, n, cols)
    layers = [weight(rng, form, rows, cols) for form, rows in zip(fan.FORMS, (70, 33, 32, 9, 1, 40, 50))]
    dense, uploads, held = on_device(gpu, x)
    before = dense.device.launches
    found = dense.linears([(str(i), uploads.weight(w)) for i, w in enumerate(layers)], held)
    assert dense.device.launches - before == 2  # and x is quantized
    for y, w in zip(found, layers):
        assert same(dense.values(y), parts.linear(x, w))


@pytest.mark.parametrize("gpu, form", [("sm_120", "int8"), ("sm_80", "fp4"), ("sm_89", "int4"), ("sm_89", "q3")])
def test_a_result_goes_back_into_streams_as_if_it_were_stored_before(gpu, form):
    rng, (n, cols, dim) = np.random.default_rng(5), (3, 288, 70)
    x, w = parts.activations(rng, n, cols), weight(rng, form, dim, cols)
    streams, mix = (rng.standard_normal((n, size)).astype(F) for size in (4 * dim, 20))
    h = hyper_parts.hyper_connection(rng, 4, 72, 1.0)
    dense, uploads, held = on_device(gpu, x)
    at = [dense.take(name, *array.shape) for name, array in (("streams", streams), ("mix", mix))]
    for to, array in zip(at, (streams, mix)):
        dense.device.write(to.at, array)
    result = dense.product("out", uploads.weight(w), held)
    result.compute(Back(at[1].at, at[0].at, 4))
    want = parts.linear(x, w)
    assert same(dense.values(at[0]), hyper_parts.library_post(h, want, mix, streams))
    assert same(dense.values(made(result)), want)


# -- what is made of the products -------------------------------------------------------------------------------------


def check_feed(launch, seed, ratio, dims, rope, rank, starts, counts):
    """Of several timelines: queries, the rows' entries, their ring, compressed entries, keys and tails."""
    rng = np.random.default_rng(seed)
    a, window = Heads.random(rng, WIDTH, 2, dims, rope, rank), 9
    compressors = [parts.compressor(rng, WIDTH, ratio, dims, rope, False)] if ratio else []
    if ratio == 4:
        compressors.append(parts.compressor(rng, WIDTH, ratio, 64, rope, True))
    xs = [parts.activations(rng, start + count, WIDTH) for start, count in zip(starts, counts)]
    new = [x[start:] for x, start in zip(xs, starts)]
    rings = [launch.place(rng.integers(0, 256, (window + 16, native.entry_bytes(dims, rope)), np.uint8)) for _ in xs]
    before = [ring.copy() for ring in rings]
    kept, want = [[] for _ in xs], [[] for _ in xs]
    for i, (x, start) in enumerate(zip(xs, starts)):
        for c in compressors:
            one = Kept(c, len(x), 16)
            parts.library_compress(c, x[:start], 0, one)
            kept[i].append(Fed(x[start:], start, one.copy()))
            parts.library_compress(c, x[start:], start, one)
            want[i].append(one)
    tables, held = zip(*(table_of(launch, ring, fed, compressors) for ring, fed in zip(rings, kept)))
    rows, x = timelines.lines_of(starts, counts, tables), np.concatenate(new)
    position = rows[:, lines.POSITION.value]
    turns = np.concatenate([parts.rotations(parts.frequencies(rope), int(p), 1, 1) for p in position])
    got = run_feed(launch, a, compressors, x, turns, rows, len(rings[0]))
    _, qr = parts.library_queries(a, x, turns)
    fresh = parts.library_entries(a, x, turns)
    assert same(got[0], qr) and all(map(same, got[1:3], quantized(qr))) and same(got[3], fresh)
    for own, ring, old, start in zip(timelines.spans(counts), rings, before, starts):
        old[np.arange(start, start + own.stop - own.start) % len(old)] = fresh[own]
        assert same(ring, old)
    for fed, arrays, wanted in zip(kept, held, want):
        for f, some in zip(fed, arrays):
            f.take(some)
        assert [f.to for f in fed] == wanted


def table_of(launch, ring, fed, compressors) -> tuple[int, list]:
    """Of a timeline: the address of its table, and the arrays of each compressor."""
    kept, arrays = {"RING": ring}, []
    for f, c in zip(fed, compressors):
        arrays.append([launch.place(array) for array in (*f.to.tails, *f.to.entries)])
        kept |= dict(zip(f.names(c.is_index), arrays[-1]))
    return timelines.table(launch, **kept), arrays


def run_feed(launch, a, compressors, x, turns, rows, ring_rows) -> tuple[np.ndarray, ...]:
    """qr, its codes and scales, entries of the rows."""
    n, rank, none = len(x), a.wq_a.matrix.rows, fixed(np.zeros(4, F))
    qr, fresh = np.full((n, rank), 7, F), launch.place(np.full((n, native.entry_bytes(a.dims, a.rope)), 7, np.uint8))
    codes, scale = np.full((n, rank), 7, np.int8), np.full((n, rank // 32), 7, F)
    ratio = compressors[0].ratio if compressors else 0
    of_blocks = [fixed(parts.block_turns(parts.frequencies(a.rope), rows[:, 1], ratio)) if ratio else none]
    for i in range(2):
        if i < len(compressors):
            c = compressors[i]
            products = (fixed(parts.linear(x, w)) for w in (c.wkv, c.wgate))
            of_blocks += [*products, fixed(c.ape), fixed(c.norm), np.full((n, c.head_dim), np.nan, F)]
        else:
            of_blocks += [none] * 5
    given = fixed(parts.linear(x, a.wq_a)), fixed(a.q_norm), qr, codes, scale, fixed(parts.linear(x, a.wkv))
    arguments = *given, fixed(a.kv_norm), fixed(turns), fixed(rows), timelines.PART, fresh, ring_rows, *of_blocks
    sizes = {"RANK": rank, "QUANTIZED": True, "DIMS": a.dims, "ROPE": a.rope, "EPS": a.eps, "RATIO": ratio}
    sizes |= {"SLOTS": ratio * (2 if ratio == 4 else 1) + 16, "KEY_DIMS": 64 if len(compressors) > 1 else 0}
    launch(feed.feed, (2 + len(compressors), n), *arguments, **sizes)
    return qr, codes, scale, np.array(fresh)


@pytest.mark.parametrize(
    "gpu, ratio, dims, starts, counts",
    [
        ("sm_80", 4, 192, (0, 6, 41), (5, 1, 2)),
        ("sm_120", 4, 80, (3, 30), (1, 7)),
        ("sm_89", 128, 80, (127, 250, 1), (1, 6, 1)),
        ("sm_120", 0, 512, (0, 20), (1, 1)),
    ],
)
def test_what_few_rows_are_for_attention_is_the_librarys(gpu, ratio, dims, starts, counts):
    check_feed(on(gpu), dims, ratio, dims, 16 if dims == 80 else 64, 96, starts, counts)


@pytest.mark.parametrize("gpu", TARGETS[:1])
def test_queries_of_heads_and_of_the_indexer_are_those_of_two_launches(gpu):
    rng, (n, heads, dim, rope, index_heads, dims) = np.random.default_rng(6), (3, 3, 80, 16, 37, 32)
    raw, turns = (rng.standard_normal(shape).astype(F) for shape in ((n, heads, dim), (n, rope // 2, 2)))
    q, products = (rng.standard_normal(shape).astype(F) for shape in ((n, index_heads, dims), (n, index_heads)))
    launch, sizes = on(gpu), {"HEADS": index_heads, "ROWS": 64, "DIMS": dims, "ROPE": rope, "EACH": 4}

    def room() -> list[np.ndarray]:
        return [np.full((n, 64, dims), 9, np.int8), np.full((n, dims // 32, 64), 9, F), np.full((n, 64), 9, F)]

    want, made_alone = np.full_like(raw, 9), room()
    launch(kv.turn_queries, (heads, n), fixed(raw), fixed(turns), want, DIMS=dim, ROPE=rope, EPS=1e-6)
    alone = fixed(raw), fixed(turns), want, fixed(q), fixed(products), *made_alone
    launch(index.queries, (16, n), *alone, **index_parts.query_sizes(index_heads, dims, rope))
    got, made_too = np.full_like(raw, 9), room()
    arguments = fixed(raw), fixed(turns), got, fixed(q), fixed(products), *made_too
    launch(index.queries, (heads + 16, n), *arguments, ALL=heads, DIM=dim, EPS=1e-6, **sizes)
    assert same(got, want) and all(map(same, made_too, made_alone))
    assert same(made_too[2], index_parts.plain_queries(index_parts.Tokens(0, q, products, turns))[2])


# -- what they take of a GPU ------------------------------------------------------------------------------------------

NO = dict.fromkeys((form.upper() for form in fan.FORMS), False)
FED = {"RANK": 1024, "QUANTIZED": True, "DIMS": 512, "ROPE": 64, "EPS": 1e-6}
GROUPED = {"K": 4096, "N": 1024, "SLOT": 4_456_448, "SCALE": 4_194_304, "FORMAT": "int8", "ROWS": 32}
BUDGETS = {
    "fan int8": Budget(fan.fan, NO | {"PARTS": 2, "K": 4096, "INT8": True}, registers=56, shared=1024, wide_loads=5),
    "fan int8, bf16": Budget(fan.fan, NO | {"PARTS": 8, "K": 4096, "INT8": True, "BF16": True}, 56, 1024),
    "put back": Budget(
        linear.linear_put_back, {"K": 8192, "N": 4096, "S": 4, "ROWS": 32, "FORMAT": "int8"}, 56, 1024, wide_loads=5
    ),
    "grouped": Budget(linear.linear_grouped, GROUPED | {"QUANTIZED": True}, 56, 1024, wide_loads=5),
    "feed, csa": Budget(feed.feed, FED | {"RATIO": 4, "SLOTS": 24, "KEY_DIMS": 128}, 64, 1024),
    "feed, hca": Budget(feed.feed, FED | {"RATIO": 128, "SLOTS": 144, "KEY_DIMS": 0}, 64, 1024),
}


@EACH_NVIDIA
@pytest.mark.parametrize("name", BUDGETS)
def test_kernels_stay_within_their_budgets(name, gpu):
    assert complaints(BUDGETS[name], gpu) == []


@pytest.mark.slow
@pytest.mark.parametrize("gpu", AMD)
@pytest.mark.parametrize("name", BUDGETS)
def test_kernels_compile_for_amd(name, gpu):
    assert complaints(replace(BUDGETS[name], registers=128, wide_loads=0), gpu) == []
