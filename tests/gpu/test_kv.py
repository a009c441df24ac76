"""Queries, entries and index keys as compiled for three GPUs, run in the PTX machine: the bits of the CPU library."""

import re

import numpy as np
import ptx
import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import gpu_kernels
import kv_parts as parts
import timelines
from gpu_kernels import TARGETS, fixed, in_interpreter, on, same
from kv_parts import F, Fed, Heads, Kept
from test_gate import AMD, NVIDIA, Budget, complaints, first_or_slow
from v4kernels.cpu import PackedWeight
from v4kernels.triton import kv

ONE_GPU = pytest.mark.parametrize("gpu", first_or_slow("sm_89", TARGETS))
pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")


# Dims of V4, and such that are no power of two or no multiple of 64.
@pytest.mark.parametrize(
    "gpu, heads, dims, rope, rank",
    [("sm_89", 2, 512, 64, 1024), ("sm_80", 3, 192, 64, 224), ("sm_120", 2, 80, 16, 32)],
)
def test_queries_are_the_librarys(gpu, heads, dims, rope, rank):
    check_queries(on(gpu), dims, heads, dims, rope, rank, n=8)


def check_queries(launch, seed, heads, dims, rope, rank, n):
    rng = np.random.default_rng(seed)
    a, x = Heads.random(rng, 64, heads, dims, rope, rank), parts.activations(rng, n, 64)
    turns = parts.rotations(parts.frequencies(rope), int(rng.integers(1 << 20)), 1, n)
    for got, want in zip(parts.queries(launch, a, x, turns), parts.library_queries(a, x, turns)):
        assert same(got, want)


@pytest.mark.parametrize(
    "gpu, dims, rope",
    [("sm_89", 512, 64), ("sm_80", 192, 64), ("sm_120", 80, 16), ("sm_89", 1024, 512)],
)
def test_window_entries_are_the_librarys(gpu, dims, rope):
    check_entries(on(gpu), dims, dims, rope, n=9)


def check_entries(launch, seed, dims, rope, n):
    rng = np.random.default_rng(seed)
    a, x = Heads.random(rng, 64, 2, dims, rope, 32), parts.activations(rng, n, 64)
    turns = parts.rotations(parts.frequencies(rope), int(rng.integers(1 << 20)), 1, n)
    assert np.array_equal(parts.entries(launch, a, x, turns), parts.library_entries(a, x, turns))


def awkward(rng: np.random.Generator, n: int) -> np.ndarray:
    """fp32 numbers on the middle between two codes, beside it, at the borders of formats, and not finite."""
    mantissas = rng.integers(0, rng.choice([64, 512], n))  # e4m3 has 4 bits, bf16 has 8
    x = (mantissas * 2.0 ** rng.integers(-17, 8, n) * rng.choice([-1, 1], n)).astype(F)
    x = np.where(rng.random(n) < 0.3, np.nextafter(x, F(np.inf) * rng.choice([-1, 1], n).astype(F)), x)
    special = np.array([0, -0.0, 448, 464, 465, 1e-41, -1e-38, 3e38, 2**-6, 2**-9, 2**-10, np.nan, -np.inf], F)
    return np.where(rng.random(n) < 0.1, rng.choice(special, n), x).astype(F)


def check_any_entry(launch, seed, dims, rope):
    """Signs are normed by 1 exactly where nothing is added to their mean square, and their weights are any numbers."""
    rng, width = np.random.default_rng(seed), 32 * gpu_kernels.blocks(dims, 32)
    a = Heads.random(rng, width, 2, dims, rope, 32)
    a.wkv, a.kv_norm, a.eps = PackedWeight.of("f32", np.eye(dims, width, dtype=F)), awkward(rng, dims), 0.0
    a.kv_norm[:64] = np.clip(np.nan_to_num(a.kv_norm[:64]), -400, 400)
    a.kv_norm[5] = 448  # of scale 1
    x = rng.choice(np.array([-1, 1], F), (2, width))
    turns = np.tile(np.array([1, 0], F), (2, rope // 2))
    assert np.array_equal(parts.entries(launch, a, x, turns), parts.library_entries(a, x, turns))


@ONE_GPU
def test_entries_of_any_numbers_are_the_librarys(gpu):
    for seed in range(4):
        check_any_entry(on(gpu), seed, 512, 64)


def check_compressor(launch, seed, ratio, dims, rope, is_index, cuts, spare=16):
    """Entries, and tails after every call."""
    rng = np.random.default_rng(seed)
    c, x = parts.compressor(rng, 32, ratio, dims, rope, is_index), parts.activations(rng, cuts[-1], 32)
    got, want = Kept(c, len(x), spare), Kept(c, len(x), spare)
    for start, stop in zip([0, *cuts], cuts):
        parts.compress(launch, c, [Fed(x[start:stop], start, got)])
        parts.library_compress(c, x[start:stop], start, want)
        assert got == want, (start, stop)
    assert (want.entries[0][len(x) // ratio] == 7).all()


@pytest.mark.parametrize(
    "gpu, is_index, dims, rope",
    [("sm_80", False, 192, 64), ("sm_120", True, 128, 64), ("sm_89", True, 32, 32)],
)
def test_overlapping_blocks_are_the_librarys(gpu, is_index, dims, rope):
    """Single tokens, blocks at once, blocks that begin with what was kept, and calls that end none."""
    check_compressor(on(gpu), dims, 4, dims, rope, is_index, [1, 4, 5, 11, 36, 38])


@pytest.mark.parametrize("gpu, ratio, cuts", [("sm_89", 128, [127, 128, 129, 400]), ("sm_80", 3, [8, 9, 41])])
def test_blocks_beside_each_other_are_the_librarys(gpu, ratio, cuts):
    check_compressor(on(gpu), ratio, ratio, 80, 16, False, cuts)


def test_without_slots_to_spare_the_least_is_kept():
    check_compressor(on("sm_89"), 1, 4, 80, 16, False, [3, 8, 21, 22], spare=0)


def check_timelines(launch, seed, ratio, dims, rope, is_index, at, counts, part=0):
    """Of several timelines that are anywhere, in one launch: as each of them alone."""
    rng = np.random.default_rng(seed)
    c = parts.compressor(rng, 32, ratio, dims, rope, is_index)
    fed, want = [], []
    for start, n in zip(at, counts):
        x, kept = parts.activations(rng, start + n, 32), Kept(c, start + n, 16)
        parts.library_compress(c, x[:start], 0, kept)
        fed.append(Fed(x[start:], start, kept.copy()))
        parts.library_compress(c, x[start:], start, kept)
        want.append(kept)
    parts.compress(launch, c, fed, part=part)
    assert [f.to for f in fed] == want


# Tokens of their own beside a prompt, of which some end a block.
AT, COUNTS = (3, 0, 130, 7, 129), (1, 33, 1, 1, 2)


@pytest.mark.parametrize(
    "gpu, ratio, is_index",
    [("sm_80", 4, False), ("sm_120", 4, True), ("sm_89", 128, False), ("sm_80", 3, False)],
)
@pytest.mark.parametrize("part", [0, 16])
def test_rows_of_several_timelines_are_as_of_each_alone(gpu, ratio, is_index, part):
    at = [start + 127 for start in AT] if ratio == 128 else AT
    check_timelines(on(gpu), ratio, ratio, 64 if is_index else 80, 16, is_index, at, COUNTS, part)


@ONE_GPU
def test_pooled_numbers_are_those_of_v4k_h(gpu):
    """Before they are rounded to codes; weights down to the least, of values as large as their inverse."""
    rng = np.random.default_rng(9)
    kv_rows, gates = (rng.standard_normal((128, 72)).astype(F) for _ in range(2))
    kv_rows[:, 8:] *= 2.0 ** rng.integers(-100, 100, (128, 64))
    gates[:, 8:] *= 2.0 ** rng.integers(-3, 7, (128, 64))
    launch, got = on(gpu), np.full((128, 72), 7, F)
    tails = dict.fromkeys(("TAIL_KV", "TAIL_GATE"), launch.place(np.full((128, 72), np.nan, F)))
    lines = timelines.lines_of([0], [128], [timelines.table(launch, **tails)])
    given = [fixed(a.astype(F)) for a in (kv_rows, gates, np.zeros((128, 72)))]
    launch(kv.pool, (128, 3), *given, fixed(lines), timelines.PART, got, **POOL | {"DIMS": 72, "CHANNELS": 32})
    assert same(got[127], parts.plain_pool(kv_rows, gates)) and (got[:127] == 7).all()


@ONE_GPU
def test_keys_with_ties_are_the_librarys(gpu):
    """The transform of 64 small integers divides them by 8."""
    check_any_key(on(gpu), 3)


def check_any_key(launch, seed):
    rng = np.random.default_rng(seed)
    n, dims = 40, 64
    c = parts.compressor(rng, 64, 1, dims, 2, True)
    c.wkv.owners[0][...], c.wgate.owners[0][...], c.norm[...] = np.eye(64), 0, rng.integers(-6, 7, dims)
    c.freqs[...] = 0
    object.__setattr__(c, "eps", 0.0)
    x = rng.choice(np.array([-1, 1], F), (n, dims))
    got, want = Kept(c, n, 0), Kept(c, n, 0)
    parts.compress(launch, c, [Fed(x, 0, got)])
    parts.library_compress(c, x, 0, want)
    assert got == want


@pytest.mark.slow
def test_random_sizes_are_the_librarys():
    rng = np.random.default_rng(11)
    for i in range(60):
        launch, rope = on(TARGETS[i % 3]), 16 * int(rng.integers(1, 9))
        dims = rope + 64 * int(rng.integers(1, 9))
        check_queries(launch, i, 2 * int(rng.integers(1, 5)), dims, rope, 32 * int(rng.integers(1, 20)), 9)
        check_entries(launch, i, dims, rope, 9)
        check_any_entry(launch, i, dims, rope)
        check_any_key(launch, i)
        cuts = np.unique(rng.integers(1, 60, 9)).tolist()
        check_compressor(launch, i, int(rng.choice([1, 2, 4, 8, 128])), dims, rope, False, cuts, int(rng.integers(20)))
        dims = 2 ** int(rng.integers(5, 9))
        check_compressor(launch, i, 4, dims, 2 * int(rng.integers(1, dims // 2 + 1)), True, cuts)


# -- the same programs elsewhere --------------------------------------------------------------------------------------

SCRIPT = """
import gpu_kernels
import test_kv as of

run = gpu_kernels.interpreted
of.check_queries(run, 1, 2, 80, 16, 96, n=8)
of.check_any_entry(run, 1, 128, 64)
of.check_compressor(run, 1, 4, 32, 32, True, [3, 4, 13])
of.check_compressor(run, 1, 7, 80, 16, False, [8, 15])
of.check_timelines(run, 1, 4, 32, 32, True, [3, 0], [1, 18], part=16)
print("all")
"""


def test_the_interpreter_gives_the_librarys_bits():
    assert in_interpreter(SCRIPT) == ["all"]


V4 = {"DIMS": 512, "ROPE": 64, "EPS": 1e-6}
KEY = V4 | {"DIMS": 128}


@pytest.mark.parametrize("gpu", [pytest.param("sm_80", marks=pytest.mark.slow), "sm_120"])
@pytest.mark.parametrize("name", ["norm", "turn_queries", "pack_entries", "pack_keys"])
def test_without_any_one_barrier_a_kernel_has_a_race(gpu, name):
    rng = np.random.default_rng(1)
    d = 128 if name == "pack_keys" else 512
    x, norm, turns = (fixed(rng.standard_normal(s).astype(F)) for s in ((2, d), (d,), (2, 64)))
    launch, like = on(gpu), np.zeros((2, d), F)
    packed = [launch.place(np.zeros((2, size), np.uint8)) for size in native.key_bytes(128)]
    table = timelines.table(launch, **dict(zip(("KEYS", "KEY_SCALES"), packed)))
    told = fixed(timelines.lines_of([0], [2], [table])), timelines.PART
    fresh = np.zeros((2, native.entry_bytes(512, 64)), np.uint8)
    arguments, constants = {
        "norm": ((x, norm, like), {"COUNT": d, "EPS": 1e-6}),
        "turn_queries": ((x, turns, like), V4),
        "pack_entries": ((x, norm, turns, *told, fresh), V4 | {"RATIO": 0}),
        "pack_keys": ((x, norm, turns, *told), KEY | {"RATIO": 1}),
    }[name]
    made = gpu_kernels.compiled(getattr(kv, name), gpu, **constants)
    text, grid = made.asm["ptx"], (1, 2) if name == "turn_queries" else (2,)
    barriers = list(re.finditer(r"bar\.(warp\.)?sync[^;]*;", text))
    assert barriers
    for found in barriers:
        with pytest.raises(ptx.Race):
            program = ptx.load(text[: found.start()] + text[found.end() :], made.metadata.shared)
            launch.run(program, grid, *arguments)


POOL = {"RATIO": 128, "DIMS": 512, "SLOTS": 144, "TAIL": 2, "CHANNELS": 128}
BUDGETS = {
    "norm": Budget(kv.norm, {"COUNT": 1536, "EPS": 1e-6}, registers=48, shared=256),
    "turn_queries": Budget(kv.turn_queries, V4, registers=32, shared=2048),
    "pack_entries": Budget(kv.pack_entries, V4 | {"RATIO": 4}, registers=40, shared=1024),
    "pack_keys": Budget(kv.pack_keys, KEY | {"RATIO": 4}, registers=32, shared=512),
    "pool": Budget(kv.pool, POOL, registers=48, shared=0),
    "pool, overlapping": Budget(kv.pool, POOL | {"RATIO": 4, "SLOTS": 24}, registers=48, shared=0),
    "keep_tail": Budget(kv.keep_tail, POOL, registers=24, shared=0),
}
FIRST = ("sm_120", "gfx1100")


@pytest.mark.parametrize(
    "gpu", [gpu if gpu in FIRST else pytest.param(gpu, marks=pytest.mark.slow) for gpu in NVIDIA + AMD]
)
@pytest.mark.parametrize("name", BUDGETS)
def test_kernels_stay_within_their_budgets(name, gpu):
    assert complaints(BUDGETS[name], gpu) == []
