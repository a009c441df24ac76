"""The indexer for tests: kernels of index.py in the PTX machine, the same by the CPU library, and queries in numpy.

Import behind `pytest.importorskip("triton")`."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import timelines
from gpu_kernels import Launch, blocks, fixed
from v4kernels import native
from v4kernels.triton import index

F = np.float32
BLOCK = 4096  # scores of a choice


@dataclass
class Keys:
    """codes [keys, dims/2], scales [keys, dims/32] uint8."""

    codes: np.ndarray
    scales: np.ndarray


def random_keys(rng: np.random.Generator, n: int, dims: int, distinct: int = 0) -> Keys:
    """With scale bytes near the middle; so many different ones, in no order, or all."""
    codes = rng.integers(0, 256, (distinct or n, dims // 2), np.uint8)
    scales = rng.integers(124, 130, (distinct or n, dims // 32), np.uint8)
    which = rng.integers(0, distinct, n) if distinct else np.arange(n)
    return Keys(codes[which], scales[which])


@dataclass
class Tokens:
    """Queries of tokens from position `start` on: q [tokens, heads, dims] not rotated, products [tokens, heads] of the
    weights' projection, turns [tokens, rope/2, 2]."""

    start: int
    q: np.ndarray
    products: np.ndarray
    turns: np.ndarray


# -- kernels ----------------------------------------------------------------------------------------------------------


def padded(heads: int) -> int:
    """Rows of queries for so many heads."""
    return max(16, 1 << (heads - 1).bit_length())


def together(fed: Sequence[Tokens]) -> Tokens:
    """Rows of several timelines; `start` is of the first."""
    rows = (np.concatenate([getattr(each, name) for each in fed]) for name in ("q", "products", "turns"))
    return Tokens(fed[0].start, *rows)


def run_queries(launch: Launch, tokens: Tokens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [tokens, rows, dims], scales [tokens, dims/32, rows], weights [tokens, rows]."""
    n, heads, dims = tokens.q.shape
    rows = padded(heads)
    codes = np.full((n, rows, dims), 99, np.int8)
    scale, weight = np.full((n, dims // 32, rows), 99, F), np.full((n, rows), 99, F)
    inputs, nothing = [fixed(a) for a in (tokens.turns, tokens.q, tokens.products)], np.zeros(4, F)
    arguments = fixed(nothing), inputs[0], nothing, *inputs[1:], codes, scale, weight
    launch(index.queries, (rows // 4, n), *arguments, **query_sizes(heads, dims, 2 * tokens.turns.shape[1]))
    return codes, scale, weight


def query_sizes(heads: int, dims: int, rope: int) -> dict[str, float]:
    """Constants, where attention has no heads."""
    of_attention = {"ALL": 0, "DIM": 2 * rope, "EPS": 1e-6}
    return of_attention | {"HEADS": heads, "ROWS": padded(heads), "DIMS": dims, "ROPE": rope, "EACH": 4}


def run_scores(
    launch: Launch, *fed: tuple[Tokens, Keys], asm: str = "ptx", programs: int = 3, part: int = 0
) -> np.ndarray:
    """[tokens, most keys] fp32 of timelines, in launches of `part` rows or one; minus one where no key is seen."""
    queries = [fixed(a) for a in run_queries(launch, together([tokens for tokens, _ in fed]))]
    placed = [(launch.place(keys.codes), launch.place(keys.scales)) for _, keys in fed]
    tables = [timelines.table(launch, KEYS=codes, KEY_SCALES=scales) for codes, scales in placed]
    counts, (_, rows, dims) = [len(tokens.q) for tokens, _ in fed], queries[0].shape
    lines = fixed(timelines.lines_of([tokens.start for tokens, _ in fed], counts, tables))
    scores = np.full((len(lines), max(len(keys.codes) for _, keys in fed)), -1, F)
    constants = {"ROWS": rows, "DIMS": dims, "BLOCK": 64, "ASM": asm}
    for of in timelines.parts(len(lines), part):
        arguments = *(a[of] for a in queries), lines[of], timelines.PART, scores[of], scores.shape[1]
        launch(index.index_scores, (programs, len(lines[of])), *arguments, **constants)
    return scores


def levels(capacity: int, top: int, block: int) -> list[int]:
    """Blocks of each level of a choice among up to so many scores."""
    found = [blocks(max(capacity, 1), block)]
    while found[-1] > 1:
        found.append(blocks(found[-1] * top, block))
    return found


def run_choice(
    launch: Launch, scores: np.ndarray, starts: Sequence[int], top: int, block: int = BLOCK, warps: int = 8,
    counts: Sequence[int] = (),
) -> np.ndarray:  # fmt: skip
    """scores [tokens, capacity] of timelines at `starts`, so many tokens each -> ids int32 [tokens, top]."""
    n, ids = len(scores), np.zeros(1, np.int32)
    lines, found = timelines.lines_of(starts, counts or [n], [0] * len(starts)), levels(scores.shape[1], top, block)
    for level, count in enumerate(found):
        best, chosen = np.full((n, count, top), 99, F), np.full((n, count, top), 99, np.int32)
        last, given = level == len(found) - 1, (fixed(scores), fixed(ids), fixed(lines))
        arguments = *given, best, chosen, scores[0].size, level, int(last)
        launch(index.index_choice, (count, n), *arguments, warps=warps, TOP=top, BLOCK=block)
        scores, ids = best, chosen
    return ids[:, 0]


# -- the same by the library ------------------------------------------------------------------------------------------


def f32_matrix(values: np.ndarray) -> native.Matrix:
    return native.Matrix(values.ctypes.data, None, *values.shape, native.FORMATS["f32"].id)


def linear(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    y, described = np.empty((len(x), len(weight)), F), f32_matrix(weight)
    native.checked(native.library().v4k_linear(ctypes.addressof(described), 1, x.ctypes.data, len(x), y.ctypes.data))
    return y


def identity_turns(n: int, rope: int) -> np.ndarray:
    return np.tile(np.array([1, 0], F), (n, rope // 2, 1))


def library_scores(tokens: Tokens, keys: Keys) -> np.ndarray:
    """As run_scores; without rotation."""
    n, heads, dims = tokens.q.shape
    owners = np.zeros((heads * dims, 32), F), np.zeros((heads, 32), F)
    described = native.Indexer(*map(f32_matrix, owners), heads, dims, 32, 8)
    weights = tokens.products * (F(1) / np.sqrt(F(dims * heads)))
    out = np.full((n, len(keys.codes)), -1, F)
    for t in range(n):
        row, seen = np.empty(len(keys.codes), F), (tokens.start + t + 1) // 4
        pointers = [a.ctypes.data for a in (tokens.q[t], weights[t], keys.codes, keys.scales)]
        native.checked(native.library().v4k_index_scores(ctypes.addressof(described), *pointers, seen, row.ctypes.data))
        out[t, :seen] = row[:seen]
    return out


@dataclass
class Layer:
    """An indexer with weights, and its inputs for tokens from `start` on; `chosen` is what v4k_select gives."""

    tokens: Tokens
    chosen: np.ndarray


def layer(rng: np.random.Generator, start: int, n: int, heads: int, dims: int, top: int, keys: Keys) -> Layer:
    rope, rank = 32, 32
    wq, wp = (rng.standard_normal((rows, rank)).astype(F) for rows in (heads * dims, heads))
    x, qr = (rng.standard_normal((n, rank)).astype(F) for _ in range(2))
    freqs, turns = (10000.0 ** -np.arange(0, 1, 2 / rope)).astype(F), np.empty((n, rope // 2, 2), F)
    library = native.library()
    native.checked(library.v4k_rotations(freqs.ctypes.data, rope // 2, start, 1, n, turns.ctypes.data))
    tokens = Tokens(start, linear(wq, qr).reshape(n, heads, dims), linear(wp, x), turns)
    described, chosen = (
        native.Indexer(f32_matrix(wq), f32_matrix(wp), heads, dims, rope, top),
        np.empty((n, top), np.int32),
    )
    arrays = (a.ctypes.data for a in (x, qr, turns))
    of_keys = (a.ctypes.data for a in (keys.codes, keys.scales, chosen))
    native.checked(library.v4k_select(ctypes.addressof(described), *arrays, start, n, *of_keys))
    return Layer(tokens, chosen)


# -- queries in numpy -------------------------------------------------------------------------------------------------


def plain_queries(tokens: Tokens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As run_queries, one fp32 operation at a time (v4k.h)."""
    n, heads, dims = tokens.q.shape
    x, turns = tokens.q.copy(), tokens.turns
    rope, rows = 2 * turns.shape[1], padded(heads)
    a, b = x[..., dims - rope :: 2].copy(), x[..., dims - rope + 1 :: 2].copy()
    cosine, sine = turns[:, None, :, 0], turns[:, None, :, 1]
    x[..., dims - rope :: 2] = a * cosine - b * sine
    x[..., dims - rope + 1 :: 2] = a * sine + b * cosine
    width = 1
    while width < dims:
        pairs = x.reshape(n, heads, -1, 2, width)
        x = np.stack((pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]), 3).reshape(x.shape)
        width *= 2
    x = (x * (F(1) / np.sqrt(F(dims)))).reshape(n, heads, dims // 32, 32)
    top = np.maximum(np.fmax.reduce(np.abs(x), 3, initial=0), F(6 * 2.0**-126)) / F(6)
    fraction, exponent = np.frexp(top)
    exponent = np.where(np.isfinite(top), exponent - (fraction == 0.5), 128)  # 2^exponent >= top
    with np.errstate(over="ignore"):
        inverse = np.where(exponent == 128, F(np.inf), np.ldexp(F(1), -exponent)).astype(F)
        power = np.ldexp(F(1), exponent).astype(F)
    scaled = x * inverse[..., None]
    grid, codes = np.array([0, 1, 2, 3, 4, 6, 8, 12], F) / 2, np.arange(8)
    size = np.fmin(np.where(np.isnan(scaled), F(6), np.abs(scaled)), F(6))
    apart = np.abs(size[..., None] - grid)
    nearest = apart == apart.min(-1, keepdims=True)  # of two, the even code
    code = np.where(nearest, np.where(codes % 2, codes + 8, codes), 99).min(-1) % 8
    doubled = (np.where(scaled < 0, -2, 2) * grid[code]).astype(np.int8)
    doubled = np.concatenate((doubled[..., ::2], doubled[..., 1::2]), -1).reshape(n, heads, dims)
    out = np.zeros((n, rows, dims), np.int8), np.zeros((n, dims // 32, rows), F), np.zeros((n, rows), F)
    for t in range(n):
        up = tokens.products[t] > 0
        numbers = np.where(up, np.cumsum(up) - 1, rows - np.cumsum(~up))
        levels = rows.bit_length() - 1
        places = [int(f"{number:0{levels}b}"[::-1], 2) for number in numbers]
        out[0][t, places], out[1][t][:, places] = doubled[t], F(0.25) * power[t].T
        out[2][t, places] = tokens.products[t] * (F(1) / np.sqrt(F(dims * heads)))
    return out
