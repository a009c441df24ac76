"""Index queries, scores and choices as compiled for three GPUs, run in the PTX machine: the bits and ids of the CPU
library."""

import numpy as np
import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import index_parts as parts
from gpu_kernels import TARGETS
from index_parts import F, Keys, Tokens

GPUS = pytest.mark.parametrize("gpu", TARGETS)
LIBRARY = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")


def queries(seed: int, n: int, heads: int, dims: int, start: int) -> Tokens:
    """Of very different sizes, not rotated, with weights of both signs."""
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((n, heads, dims)) * np.exp(2 * rng.standard_normal((n, heads, 1)))
    products = rng.standard_normal((n, heads)).astype(F)
    return Tokens(start, q.astype(F), products, parts.identity_turns(n, dims // 2))


@GPUS
@pytest.mark.parametrize("heads, dims, rope", [(5, 64, 32), (64, 128, 64), (37, 32, 32)])
def test_queries_are_rotated_transformed_quantized_and_ordered_for_the_trees(gpu, heads, dims, rope):
    tokens = queries(heads, 3, heads, dims, 0)
    tokens.turns = np.random.default_rng(1).uniform(-1, 1, (3, rope // 2, 2)).astype(F)
    tokens.q[0, 1], tokens.q[0, 2], tokens.q[0, 3] = 0, 1e-41, 1e-37
    tokens.q[1] = np.round(tokens.q[1])  # with ties
    tokens.products[1], tokens.products[2] = np.abs(tokens.products[1]), -np.abs(tokens.products[2])
    tokens.products[0, 2:4] = 0, np.nan
    for got, want in zip(parts.run_queries(gpu, tokens), parts.plain_queries(tokens)):
        assert parts.same(got, want)


@GPUS
@LIBRARY
@pytest.mark.parametrize("heads, dims", [(1, 32), (5, 64), (37, 128), (64, 128)])
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
    got, counted = parts.run_scores(gpu, tokens, keys)
    assert parts.same(got, parts.library_scores(tokens, keys))
    assert any(opcode.startswith("mma.sync") for opcode in counted.instructions)


@GPUS
@LIBRARY
def test_the_plain_form_of_scores_is_the_librarys_too(gpu):
    tokens, keys = queries(3, 2, 24, 64, 400), parts.random_keys(np.random.default_rng(3), 100, 64)
    got, _ = parts.run_scores(gpu, tokens, keys, ptx_form=False)
    assert parts.same(got, parts.library_scores(tokens, keys))


def test_scores_are_not_written_beyond_what_a_token_sees():
    tokens, keys = queries(4, 9, 5, 32, 0), parts.random_keys(np.random.default_rng(4), 3, 32)
    got, _ = parts.run_scores("sm_89", tokens, keys)
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


@GPUS
@pytest.mark.parametrize("warps", [1, 4])
@pytest.mark.parametrize("capacity", [30, 300, 900])
def test_choices_are_those_of_a_stable_sort(gpu, warps, capacity):
    """Of few values, so that many are equal; of all; of NaN and infinities. One, two and four levels."""
    rng, n = np.random.default_rng(capacity), 14
    scores = rng.standard_normal((n, capacity)).astype(F)
    scores[1:5] = rng.integers(-2, 3, (4, capacity))
    scores[5], scores[6], scores[7] = 1, -np.inf, np.nan
    scores[8:11] = rng.choice(np.array([np.nan, np.inf, -np.inf, 0, -1e-41, 1e-41], F), (3, capacity))
    scores[11], scores[11, -9:-6] = np.nan, 1
    scores[12] = np.sort(scores[12])
    for start in (4 * capacity - n, 0, 8 * 4 - 6, 4 * 33):
        if (start + n) // 4 <= capacity:
            got = parts.run_choice(gpu, scores, start, 10, 32, warps)
            assert np.array_equal(got, best(scores, start, 10)), start


@GPUS
@LIBRARY
@pytest.mark.parametrize("seen", [0, 511, 513, 4096])
def test_the_chosen_are_those_of_the_library(gpu, seen):
    """Before and behind the first key more than are chosen, and with two levels; hundreds of keys are equal."""
    rng = np.random.default_rng(seen)
    keys = parts.random_keys(rng, seen + 1, 64, same=300)
    layer = parts.layer(rng, max(4 * seen - 1, 0), 3, 5, 64, 512, keys)
    scores, _ = parts.run_scores(gpu, layer.tokens, keys, programs=16)
    assert np.array_equal(parts.run_choice(gpu, scores, layer.tokens.start, 512), layer.chosen)


@LIBRARY
@pytest.mark.parametrize("same", [0, 60_000])
def test_the_chosen_of_70000_keys_are_those_of_the_library(same):
    rng = np.random.default_rng(same)
    keys = parts.random_keys(rng, 70_001, 32, same=same)
    layer = parts.layer(rng, 4 * 70_000 - 1, 1, 2, 32, 512, keys)
    scores, _ = parts.run_scores("sm_89", layer.tokens, keys, programs=128)
    assert np.array_equal(parts.run_choice("sm_89", scores, layer.tokens.start, 512), layer.chosen)


@GPUS
@LIBRARY
@pytest.mark.slow
@pytest.mark.parametrize("same", [0, 200_000])
def test_the_chosen_of_262144_keys_are_those_of_the_library(gpu, same):
    """64 heads of 128 dims, as many keys as a context of a million tokens has."""
    rng = np.random.default_rng(same)
    keys = parts.random_keys(rng, 1 << 18, 128, same=same)
    layer = parts.layer(rng, (1 << 20) - 1, 1, 64, 128, 512, keys)
    scores, _ = parts.run_scores(gpu, layer.tokens, keys, programs=512)
    assert np.array_equal(parts.run_choice(gpu, scores, layer.tokens.start, 512), layer.chosen)


@LIBRARY
@pytest.mark.slow
def test_the_chosen_of_random_sizes_are_those_of_the_library():
    rng = np.random.default_rng(7)
    for i in range(30):
        heads, dims, top = int(rng.integers(1, 65)), int(rng.choice([32, 64, 128])), int(rng.choice([8, 100, 512]))
        seen, n = int(rng.integers(0, 9000)), int(rng.integers(1, 6))
        keys = parts.random_keys(rng, seen + 2, dims, same=int(rng.choice([0, 600])) if seen > 600 else 0)
        layer = parts.layer(rng, max(4 * seen - 1, 0), n, heads, dims, top, keys)
        gpu = TARGETS[i % 3]
        scores, _ = parts.run_scores(gpu, layer.tokens, keys, programs=16)
        got = parts.run_choice(gpu, scores, layer.tokens.start, top)
        assert np.array_equal(got, layer.chosen), (heads, dims, top, seen, n)
