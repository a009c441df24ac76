"""Index queries, scores and choices as compiled for three GPUs, run in the PTX machine: the bits and ids of the CPU
library."""

import re

import numpy as np
import ptx
import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import gpu_kernels
import index_parts as parts
import timelines
from gpu_kernels import TARGETS, fixed, in_interpreter, on, over_gpus, same
from index_parts import F, Keys, Tokens
from v4kernels.triton import index

LIBRARY = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")


def queries(seed: int, n: int, heads: int, dims: int, start: int) -> Tokens:
    """Of very different sizes, not rotated, with weights of both signs."""
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((n, heads, dims)) * np.exp(2 * rng.standard_normal((n, heads, 1)))
    products = rng.standard_normal((n, heads)).astype(F)
    return Tokens(start, q.astype(F), products, parts.identity_turns(n, dims // 2))


@over_gpus("heads dims rope", [(64, 128, 64), (37, 32, 32)])
def test_queries_are_rotated_transformed_quantized_and_ordered_for_the_trees(gpu, heads, dims, rope):
    tokens = queries(heads, 3, heads, dims, 0)
    tokens.turns = np.random.default_rng(1).uniform(-1, 1, (3, rope // 2, 2)).astype(F)
    tokens.q[0, 1], tokens.q[0, 2], tokens.q[0, 3] = 0, 1e-41, 1e-37
    tokens.q[1] = np.round(tokens.q[1])  # with ties
    tokens.products[1], tokens.products[2] = np.abs(tokens.products[1]), -np.abs(tokens.products[2])
    tokens.products[0, 2:4] = 0, np.nan
    for got, want in zip(parts.run_queries(on(gpu), tokens), parts.plain_queries(tokens)):
        assert same(got, want)


@over_gpus("heads dims", [(1, 32), (37, 128), (64, 128)])
@LIBRARY
def test_scores_are_the_librarys(gpu, heads, dims):
    """Blocks that keys do not fill, weights of one sign, of none and NaN, queries and scales that are not finite."""
    tokens = queries(heads, 6, heads, dims, 4 * 143 - 2)
    rng = np.random.default_rng(heads)
    keys = Keys(rng.integers(0, 256, (144, dims // 2), np.uint8), rng.integers(0, 256, (144, dims // 32), np.uint8))
    keys.scales[:60] = rng.integers(124, 130, (60, dims // 32))
    tokens.products[1], tokens.products[2] = np.abs(tokens.products[1]), -np.abs(tokens.products[2])
    tokens.products[3], tokens.products[4, -1] = 0, np.nan
    tokens.q[5, 0, :3] = np.nan, np.inf, 0
    tokens.q[0, -1, 1] = np.inf
    launch = on(gpu)
    assert same(parts.run_scores(launch, (tokens, keys)), parts.library_scores(tokens, keys))
    assert any(opcode.startswith("mma.sync") for opcode in launch.counted.instructions)


@LIBRARY
def test_the_plain_form_of_scores_is_the_librarys_too():
    tokens, keys = queries(3, 2, 24, 64, 400), parts.random_keys(np.random.default_rng(3), 100, 64)
    got = parts.run_scores(on("sm_89"), (tokens, keys), asm="plain")
    assert same(got, parts.library_scores(tokens, keys))


def test_scores_are_not_written_beyond_what_a_token_sees():
    tokens, keys = queries(4, 9, 5, 32, 0), parts.random_keys(np.random.default_rng(4), 3, 32)
    got = parts.run_scores(on("sm_89"), (tokens, keys))
    assert (got != -1).sum(1).tolist() == [(t + 1) // 4 for t in range(9)]


def best(scores: np.ndarray, start: int, top: int) -> np.ndarray:
    """By a stable sort."""
    chosen = np.full((len(scores), top), -1, np.int32)
    for t, row in enumerate(scores):
        row = row[: (start + t + 1) // 4]
        order = np.argsort(-row, kind="stable")  # NaN last
        ids = np.arange(len(row)) if len(row) <= top else np.sort(order[row[order] > -np.inf][:top])
        chosen[t, : len(ids)] = ids
    return chosen


@over_gpus("warps capacity", [(4, 30), (1, 300), (4, 900)])
def test_choices_are_those_of_a_stable_sort(gpu, warps, capacity):
    """Of few values, so that many are equal; of all; of NaN and infinities. One, four and five levels."""
    rng, n = np.random.default_rng(capacity), 14
    scores = rng.standard_normal((n, capacity)).astype(F)
    scores[1:5] = rng.integers(-2, 3, (4, capacity))
    scores[5], scores[6], scores[7] = 1, -np.inf, np.nan
    scores[8:11] = rng.choice(np.array([np.nan, np.inf, -np.inf, 0, -1e-41, 1e-41], F), (3, capacity))
    scores[11], scores[11, -9:-6] = np.nan, 1
    scores[12] = np.sort(scores[12])
    for start in (4 * capacity - n, 0, 31, 4 * 33):
        if (start + n) // 4 <= capacity:
            got = parts.run_choice(on(gpu), scores, [start], 10, 32, warps)
            assert np.array_equal(got, best(scores, start, 10)), start


@LIBRARY
@pytest.mark.parametrize(
    "gpu, seen, distinct",
    [("sm_80", 0, 0), ("sm_80", 511, 0), ("sm_120", 513, 3), ("sm_120", 4096, 0), ("sm_89", 4096, 40)],
)
def test_the_chosen_are_those_of_the_library(gpu, seen, distinct):
    """Before and behind the first key more than are chosen, and with two levels; with equal keys, some of which are
    chosen."""
    rng = np.random.default_rng(seen)
    keys = parts.random_keys(rng, seen + 1, 64, distinct)
    layer = parts.layer(rng, max(4 * seen - 1, 0), 3, 5, 64, 512, keys)
    scores = parts.run_scores(on(gpu), (layer.tokens, keys), programs=16)
    assert np.array_equal(parts.run_choice(on(gpu), scores, [layer.tokens.start], 512), layer.chosen)


@LIBRARY
@pytest.mark.parametrize("distinct", [pytest.param(0, marks=pytest.mark.slow), 300])
def test_the_chosen_of_70000_keys_are_those_of_the_library(distinct):
    rng = np.random.default_rng(distinct)
    keys = parts.random_keys(rng, 70_001, 32, distinct)
    layer = parts.layer(rng, 4 * 70_000 - 1, 1, 2, 32, 512, keys)
    scores = parts.run_scores(on("sm_89"), (layer.tokens, keys), programs=128)
    assert np.array_equal(parts.run_choice(on("sm_89"), scores, [layer.tokens.start], 512), layer.chosen)


@pytest.mark.parametrize("gpu", TARGETS)
@LIBRARY
@pytest.mark.slow
@pytest.mark.parametrize("distinct", [0, 1000])
def test_the_chosen_of_262144_keys_are_those_of_the_library(gpu, distinct):
    """64 heads of 128 dims, as many keys as a context of a million tokens has."""
    rng = np.random.default_rng(distinct)
    keys = parts.random_keys(rng, 1 << 18, 128, distinct)
    layer = parts.layer(rng, (1 << 20) - 1, 1, 64, 128, 512, keys)
    scores = parts.run_scores(on(gpu), (layer.tokens, keys), programs=512)
    assert np.array_equal(parts.run_choice(on(gpu), scores, [layer.tokens.start], 512), layer.chosen)


@LIBRARY
@pytest.mark.slow
def test_the_chosen_of_random_sizes_are_those_of_the_library():
    rng = np.random.default_rng(7)
    for i in range(30):
        heads, dims, top = int(rng.integers(1, 65)), int(rng.choice([32, 64, 128])), int(rng.choice([8, 100, 512]))
        seen, n = int(rng.integers(0, 9000)), int(rng.integers(1, 6))
        keys = parts.random_keys(rng, seen + 2, dims, int(rng.choice([0, 30])))
        layer = parts.layer(rng, max(4 * seen - 1, 0), n, heads, dims, top, keys)
        gpu = TARGETS[i % 3]
        scores = parts.run_scores(on(gpu), (layer.tokens, keys), programs=16)
        got = parts.run_choice(on(gpu), scores, [layer.tokens.start], top)
        assert np.array_equal(got, layer.chosen), (heads, dims, top, seen, n)


@LIBRARY
@pytest.mark.parametrize("gpu, part", [("sm_120", 0), ("sm_120", 16)])
def test_keys_chosen_for_several_timelines_are_as_for_each_alone(gpu, part):
    """Tokens of their own beside a prompt, of contexts that take one, three and no blocks of a choice."""
    rng, fed, want = np.random.default_rng(6), [], []
    counts = 1, 18, 1, 2
    for start, n in zip((4 * 40, 4 * 150, 1, 4 * 12), counts):
        tokens = queries(start, n, 5, 32, start)
        fed.append((tokens, parts.random_keys(rng, (start + n) // 4 + 1, 32, 30)))
        want.append(best(parts.library_scores(*fed[-1]), start, 10))
    launch = on(gpu)
    scores = parts.run_scores(launch, *fed, part=part)
    got = parts.run_choice(launch, scores, [tokens.start for tokens, _ in fed], 10, 64, counts=counts)
    assert np.array_equal(got, np.concatenate(want))


@pytest.mark.parametrize("name, harmless", [("queries", 1), ("scores", 1), ("choice", 1)])
def test_without_any_one_barrier_a_kernel_of_the_indexer_has_a_race(name, harmless):
    """But for those in front of the very first exchange, which guard nothing."""
    tokens, keys = queries(3, 1, 24, 64, 1023), parts.random_keys(np.random.default_rng(3), 256, 64)
    launch = on("sm_80")
    inputs = [fixed(a) for a in parts.run_queries(launch, tokens)]
    table = timelines.table(launch, KEYS=launch.place(keys.codes), KEY_SCALES=launch.place(keys.scales))
    lines = fixed(timelines.lines_of([1023], [1], [table]))
    scores, none = np.random.default_rng(5).standard_normal(256).astype(F), np.zeros(4, F)
    kernel, constants, arguments = {
        "queries": (
            index.queries,
            parts.query_sizes(24, 64, 32),
            [
                *map(fixed, (none, tokens.turns)),
                none,
                *map(fixed, (tokens.q, tokens.products)),
                *map(np.zeros_like, inputs),
            ],
        ),
        "scores": (
            index.index_scores,
            {"ROWS": 32, "DIMS": 64, "BLOCK": 64, "ASM": "ptx"},
            [*inputs, lines, timelines.PART, np.zeros(256, F), 256],
        ),
        "choice": (
            index.index_choice,
            {"TOP": 10, "BLOCK": 256},
            [fixed(scores), fixed(np.zeros(1, np.int32)), lines, np.zeros(10, F), np.zeros(10, np.int32), 256, 0, 0],
        ),
    }[name]
    made = gpu_kernels.compiled(kernel, "sm_80", **constants)
    text = made.asm["ptx"]
    guards = list(re.finditer(r"bar\.sync\s+0;", text))
    missed = []
    for i, found in enumerate(guards):
        program = ptx.load(text[: found.start()] + text[found.end() :], made.metadata.shared)
        try:
            launch.run(program, (1, 1), *arguments)
            missed.append(i)
        except ptx.Race:
            pass
    assert len(guards) > harmless
    assert missed in ([], list(range(harmless)))


SCRIPT = """
import numpy as np
import index_parts as parts
import test_index as given
from gpu_kernels import interpreted as run, same

tokens, keys = given.queries(3, 2, 5, 64, 400), parts.random_keys(np.random.default_rng(3), 100, 64)
print("queries", all(map(same, parts.run_queries(run, tokens), parts.plain_queries(tokens))))
scores = parts.run_scores(run, (tokens, keys), asm="plain", programs=1)
print("scores", same(scores, parts.library_scores(tokens, keys)))
print("choice", np.array_equal(parts.run_choice(run, scores, [400], 10, 32), given.best(scores, 400, 10)))
"""


@LIBRARY
def test_the_interpreter_gives_the_librarys_bits_of_the_indexer():
    assert in_interpreter(SCRIPT) == ["queries", "True", "scores", "True", "choice", "True"]
