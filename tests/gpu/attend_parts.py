"""Attention for tests: kernels of attend.py in the PTX machine, and the same by the CPU library.

Import behind `pytest.importorskip("triton")`."""

import ctypes
from dataclasses import dataclass, replace

import numpy as np
import timelines
from gpu_kernels import Launch, blocks, fixed, quantized, same
from v4kernels import native
from v4kernels.cpu import PackedWeight
from v4kernels.triton import attend

F = np.float32
RUN = 256  # keys


@dataclass
class Case:
    """Tokens of one timeline from position `start` on. q [tokens, heads, dim], turns [tokens, rope], sink [heads]; ring
    [rows, bytes], fresh [tokens, bytes], entries [n, bytes] uint8; selected [tokens, top] int32, or None."""

    start: int
    window: int
    ratio: int
    rope: int
    q: np.ndarray
    turns: np.ndarray
    sink: np.ndarray
    ring: np.ndarray
    fresh: np.ndarray
    entries: np.ndarray
    selected: np.ndarray | None

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.q.shape

    @property
    def top(self) -> int:
        return 0 if self.selected is None else self.selected.shape[1]

    def keys(self, token: int) -> int:
        seen = self.start + token + 1
        others = 0
        if self.ratio:
            others = seen // self.ratio if self.selected is None else int((self.selected[token] >= 0).sum())
        return min(seen, self.window) + others


def random_entries(rng: np.random.Generator, n: int, dim: int, rope: int) -> np.ndarray:
    """Any codes at all, those of NaN too, which the library takes for 480, and scales that leave scores finite."""
    made = rng.integers(0, 256, (n, native.entry_bytes(dim, rope)), np.uint8)
    plain = dim - rope
    halves = rng.standard_normal((n, rope)).astype(F).view(np.uint32) >> 16
    made[:, plain : plain + 2 * rope] = halves.astype(np.uint16).view(np.uint8)
    made[:, plain + 2 * rope :] = rng.integers(116, 122, (n, made.shape[1] - plain - 2 * rope))
    return made


def random_case(
    seed: int, tokens: int, start: int, ratio: int, heads: int = 6, dim: int = 192, rope: int = 64, window: int = 16,
    top: int = 0, rows: int = 0,
) -> Case:  # fmt: skip
    """`rows` of the ring, beside the window. Heads are flat to sharp; keys of a selection end where they may."""
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((tokens, heads, dim)).astype(F) * np.linspace(0.01, 0.3, heads, dtype=F)[:, None]
    angles = rng.uniform(-4, 4, (tokens, rope // 2))
    turns = np.stack((np.cos(angles), np.sin(angles)), -1).astype(F).reshape(tokens, rope)
    n = (start + tokens) // ratio if ratio else 0
    ring, fresh, entries = (random_entries(rng, count, dim, rope) for count in (window + rows, tokens, max(n, 1)))
    selected = None
    if top:
        selected = np.full((tokens, top), -1, np.int32)
        for i in range(tokens):
            some = np.sort(rng.permutation((start + i + 1) // ratio)[:top])
            selected[i, : len(some)] = some
    sink = rng.standard_normal(heads).astype(F)
    return Case(start, window, ratio, rope, q, turns, sink, ring, fresh, entries, selected)


def timelines_of(seed: int, ratio: int, *spans: tuple[int, int], **sizes: int) -> list[Case]:
    """Of one model: from which position on, and how many tokens each."""
    cases = [random_case(seed + i, tokens, start, ratio, **sizes) for i, (start, tokens) in enumerate(spans)]
    return [replace(case, sink=cases[0].sink) for case in cases]


def with_extremes(case: Case, seed: int) -> Case:
    """Heads whose scores are tied, NaN, infinite, huge; far sinks, one key twice, and scale bytes of any value."""
    rng = np.random.default_rng(seed)
    q, sink, entries = case.q.copy(), case.sink.copy(), case.entries.copy()
    entries[len(entries) // 2 :] = entries[len(entries) // 2]
    entries[rng.integers(0, len(entries), 2), -8:] = rng.integers(0, 256, 8)
    for token in range(len(q)):
        q[token, rng.integers(0, q.shape[1])] = 0
        q[token, rng.integers(0, q.shape[1]), 3] = rng.choice([np.nan, np.inf, -np.inf, 3e38])
        q[token, rng.integers(0, q.shape[1]), 7:] *= 1e4
    sink[0], sink[-1] = 200, -200
    return replace(case, q=q, sink=sink, entries=entries)


# -- the library ------------------------------------------------------------------------------------------------------


def attention(
    heads: int, dim: int, rope: int, sink: np.ndarray, window: int = 1, groups: int = 1,
    wo_a: PackedWeight | None = None, wo_b: PackedWeight | None = None,
) -> tuple[native.Attention, np.ndarray]:  # fmt: skip
    """Described to the library, and the weights of what is not given, which nothing reads."""
    outputs = wo_b.matrix.rows if wo_b else 32
    anything = np.zeros(heads * dim * max(32, outputs), F)

    def matrix(rows: int, cols: int) -> native.Matrix:
        return PackedWeight.of("f32", anything[: rows * cols].reshape(rows, cols)).matrix

    described = native.Attention(
        matrix(32, outputs), matrix(heads * dim, 32), matrix(dim, outputs),
        wo_a.matrix if wo_a else matrix(32, heads * dim), wo_b.matrix if wo_b else matrix(outputs, 32),
        anything.ctypes.data, anything.ctypes.data, sink.ctypes.data, heads, dim, rope, groups, window, 1e-6,
    )  # fmt: skip
    return described, anything


def library(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """heads [tokens, heads, dim], and the ring afterwards."""
    _, n_heads, dim = case.sizes
    described, _kept = attention(n_heads, dim, case.rope, case.sink, case.window)
    heads, ring = np.empty_like(case.q), case.ring.copy()
    selected = None if case.selected is None else case.selected.ctypes.data
    code = native.library().v4k_attend(
        ctypes.addressof(described), case.q.ctypes.data, case.turns.ctypes.data, case.start, len(case.q),
        ring.ctypes.data, len(ring), case.fresh.ctypes.data, case.entries.ctypes.data, case.ratio, selected, case.top,
        heads.ctypes.data,
    )  # fmt: skip
    native.checked(code)
    return heads, ring


# -- kernels ----------------------------------------------------------------------------------------------------------


@dataclass
class Tiles:
    """Programs of the first axis; heads and columns of a program."""

    programs: int = 2
    heads: int = 4
    columns: int = 64
    warps: int = 4


def attend_rows(
    launch: Launch, case: Case, runs: int, q: np.ndarray, turns: np.ndarray, cached: tuple, tiles: Tiles
) -> np.ndarray:
    """Heads [tokens, heads, dim] of some rows by the four steps; cached: lines, part, fresh, selected. Every buffer
    between steps begins as NaN."""
    (tokens, heads, dim), rows, room, warps = q.shape, len(case.ring), runs * RUN, tiles.warps
    told, _, _, selected = cached
    grid = tiles.programs, blocks(heads, tiles.heads), tokens
    some = {"ALL": heads, "WINDOW": case.window, "RATIO": case.ratio, "TOP": case.top}
    sizes, tile = some | {"DIM": dim, "ROPE": case.rope}, {"HEADS": tiles.heads}
    layout = sizes | {"BYTES": case.ring.shape[1]} | tile

    def empty(*shape: int) -> np.ndarray:
        return np.full((tokens, *shape), np.nan, F)

    scores, weights, factors = empty(room, heads), empty(room, heads), empty(runs * 4, heads)
    peaks, totals, parts, out = empty(runs, heads), empty(runs, heads), empty(runs, heads, dim), empty(heads, dim)
    launch(attend.attend_scores, grid, fixed(q), *cached, scores, rows, room, **layout, warps=warps)
    between = weights, factors, peaks, totals
    launch(attend.attend_weights, grid, fixed(scores), told, selected, *between, room, **some, **tile, warps=warps)
    grid = tiles.programs, grid[1] * blocks(dim, tiles.columns), tokens
    launch(
        attend.attend_values, grid, fixed(weights), fixed(factors), *cached, rows, parts, room, **layout,
        COLUMNS=tiles.columns, UNROLL=2, warps=warps,
    )  # fmt: skip
    merged = *map(fixed, (parts, peaks, totals, case.sink, turns)), told, selected
    codes, scale, whole = np.full(out.shape, 7, np.int8), empty(heads, dim // 32), dim % 32 == 0
    made = out, codes, scale
    launch(attend.attend_merge, (heads, tokens), *merged, *made, room, **sizes, QUANTIZED=whole, warps=warps)
    if whole:
        want = quantized(out.reshape(-1, dim))
        assert all(same(got.reshape(other.shape), other) for got, other in zip((codes, scale), want))
    return out


def run(launch: Launch, *cases: Case, part: int = 0, **tiles: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Like `library` of each, all tokens at once or `part` of them at a time. Cases are timelines of one model."""
    case, counts = cases[0], [len(case.q) for case in cases]
    rings = [launch.place(case.ring) for case in cases]
    tables = [timelines.table(launch, RING=r, ENTRIES=launch.place(c.entries)) for r, c in zip(rings, cases)]
    lines = fixed(timelines.lines_of([case.start for case in cases], counts, tables))
    fresh = launch.place(np.concatenate([case.fresh for case in cases]))
    q, turns = (np.concatenate([getattr(case, name) for case in cases]) for name in ("q", "turns"))
    chosen = np.concatenate([case.selected for case in cases]) if case.top else np.zeros((len(q), 1), np.int32)
    runs = max(blocks(case.keys(i), RUN) for case in cases for i in range(len(case.q))) + 1
    out = np.concatenate([
        attend_rows(
            launch, case, runs, q[of], turns[of], (fixed(lines[of]), timelines.PART, fresh[of], fixed(chosen[of])),
            Tiles(**tiles),
        )
        for of in timelines.parts(len(q), part)
    ])  # fmt: skip
    words = fresh.view(np.int64)
    arguments = words, lines, timelines.PART, len(case.ring)
    launch(attend.keep_window, (len(q),), *arguments, BYTES=fresh.shape[1], warps=1)
    return [(out[of], ring) for of, ring in zip(timelines.spans(counts), rings)]


def equal(launch: Launch, *cases: Case, part: int = 0, **tiles: int) -> bool:
    pairs = zip(run(launch, *cases, part=part, **tiles), map(library, cases))
    return all(same(*both) for got, want in pairs for both in zip(got, want))
