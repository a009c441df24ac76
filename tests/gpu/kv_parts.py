"""Queries, entries and index keys by kernels, and the same by the CPU library. Import behind
`pytest.importorskip("triton")`."""

import copy
import ctypes
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import timelines
import torch
from gpu_kernels import Launch, blocks, fixed, same
from ptx import floats
from v4kernels import native
from v4kernels.cpu import PackedWeight
from v4kernels.cpu.bound import BoundCompressor, pointer
from v4kernels.tree import OVERLAPPED, Compressor
from v4kernels.triton import kv, lines

F = np.float32


def activations(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    """fp32 of very different sizes; the last rows are zero, tiny, huge and not finite, as far as there are several."""
    x = (rng.standard_normal((n, width)) * np.exp(2 * rng.standard_normal((n, width)))).astype(F)
    for i, value in enumerate((0, 1e-41, 1e-20, 1e30, np.inf, np.nan)):
        if n > i + 2:
            x[n - 1 - i] = 0
            x[n - 1 - i, 3 + i] = value
    return x


def weight(rng: np.random.Generator, rows: int, cols: int) -> PackedWeight:
    return PackedWeight.of("f32", (rng.standard_normal((rows, cols)) * cols**-0.5).astype(F))


def frequencies(rope: int) -> np.ndarray:
    return (10000.0 ** -(np.arange(0, rope, 2) / rope)).astype(F)


def rotations(freqs: np.ndarray, start: int, step: int, n: int) -> np.ndarray:
    """(n, ROPE)."""
    out = np.empty((n, 2 * len(freqs)), F)
    native.checked(native.library().v4k_rotations(pointer(freqs), len(freqs), start, step, n, pointer(out)))
    return out


def linear(x: np.ndarray, w: PackedWeight) -> np.ndarray:
    return native.linear(torch.from_numpy(x), w.matrix).numpy()


# -- queries and entries of the window --------------------------------------------------------------------------------


@dataclass
class Heads:
    """What queries and window entries are made with."""

    heads: int
    dims: int
    rope: int
    wq_a: PackedWeight
    wq_b: PackedWeight
    wkv: PackedWeight
    q_norm: np.ndarray
    kv_norm: np.ndarray
    eps: float = 1e-6

    @classmethod
    def random(cls, rng: np.random.Generator, width: int, heads: int, dims: int, rope: int, rank: int) -> "Heads":
        norms = ((1 + 0.1 * rng.standard_normal(size)).astype(F) for size in (rank, dims))
        matrices = weight(rng, rank, width), weight(rng, heads * dims, rank), weight(rng, dims, width)
        return cls(heads, dims, rope, *matrices, *norms)

    @cached_property
    def native(self) -> ctypes.Structure:
        """The output projection is of zeros, and not used."""
        width, inner = self.wkv.matrix.cols, self.heads * self.dims
        self.others = PackedWeight.of("f32", np.zeros((32, inner), F)), PackedWeight.of("f32", np.zeros((width, 32), F))
        self.sink = np.zeros(self.heads, F)
        matrices = (w.matrix for w in (self.wq_a, self.wq_b, self.wkv, *self.others))
        pointers = pointer(self.q_norm), pointer(self.kv_norm), pointer(self.sink)
        return native.Attention(*matrices, *pointers, self.heads, self.dims, self.rope, 1, 8, self.eps)


def library_queries(a: Heads, x: np.ndarray, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    q, qr = np.empty((len(x), a.heads * a.dims), F), np.empty((len(x), a.wq_a.matrix.rows), F)
    pointers = pointer(x), len(x), pointer(turns), pointer(q), pointer(qr)
    native.checked(native.library().v4k_queries(ctypes.addressof(a.native), *pointers))
    return q, qr


def queries(launch: Launch, a: Heads, x: np.ndarray, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, n = linear(x, a.wq_a), len(x)
    qr, q = np.full_like(low, 7), np.full((n, a.heads * a.dims), 7, F)
    launch(kv.norm, (n,), fixed(low), fixed(a.q_norm), qr, COUNT=low.shape[1], EPS=a.eps)
    sizes = {"DIMS": a.dims, "ROPE": a.rope, "EPS": a.eps}
    launch(kv.turn_queries, (a.heads, n), fixed(linear(qr, a.wq_b)), fixed(turns), q, **sizes)
    return q, qr


def library_entries(a: Heads, x: np.ndarray, turns: np.ndarray) -> np.ndarray:
    out = np.empty((len(x), native.entry_bytes(a.dims, a.rope)), np.uint8)
    pointers = pointer(x), len(x), pointer(turns), pointer(out)
    native.checked(native.library().v4k_window_entries(ctypes.addressof(a.native), *pointers))
    return out


def entries(launch: Launch, a: Heads, x: np.ndarray, turns: np.ndarray) -> np.ndarray:
    n, out = len(x), np.full((len(x), native.entry_bytes(a.dims, a.rope)), 7, np.uint8)
    rows = fixed(np.zeros((n, lines.LINE.value), np.int64)), 0
    arguments = fixed(linear(x, a.wkv)), fixed(a.kv_norm), fixed(turns), *rows, out
    launch(kv.pack_entries, (n,), *arguments, DIMS=a.dims, ROPE=a.rope, EPS=a.eps, RATIO=0)
    return out


# -- compressors ------------------------------------------------------------------------------------------------------


def compressor(rng: np.random.Generator, width: int, ratio: int, dims: int, rope: int, is_index: bool) -> Compressor:
    """Whose gates are steep."""
    channels = 2 * dims if ratio == OVERLAPPED else dims
    return Compressor(
        ape=(3 * rng.standard_normal((ratio, channels))).astype(F), wkv=weight(rng, channels, width),
        wgate=weight(rng, channels, width), norm=(1 + 0.1 * rng.standard_normal(dims)).astype(F),
        freqs=frequencies(rope), is_index=is_index, ratio=ratio, head_dim=dims, rope_dims=rope, eps=1e-6,
    )  # fmt: skip


class Kept:
    """What a compressor keeps of a timeline: tails (2, slots, C), and room for entries, which is 7 where none is."""

    def __init__(self, c: Compressor, tokens: int, spare: int):
        blocks = 2 if c.ratio == OVERLAPPED else 1
        self.tails = np.zeros((2, blocks * c.ratio + spare, c.wkv.matrix.rows), F)
        sizes = native.key_bytes(c.head_dim) if c.is_index else (native.entry_bytes(c.head_dim, c.rope_dims),)
        self.entries = [np.full((tokens // c.ratio + 1, size), 7, np.uint8) for size in sizes]

    def copy(self) -> "Kept":
        return copy.deepcopy(self)

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Kept)
        return same(self.tails, other.tails) and all(map(np.array_equal, self.entries, other.entries))


def library_compress(c: Compressor, x: np.ndarray, start: int, to: Kept) -> None:
    bound, pointers = BoundCompressor(c), [pointer(e) for e in to.entries]
    described = native.Compressed(*(pointer(t) for t in to.tails), *pointers, *[None] * (2 - len(pointers)))
    described.slots = to.tails.shape[1]
    code = native.library().v4k_compress(bound.at, pointer(x), start, len(x), ctypes.addressof(described))
    native.checked(code)


@dataclass
class Fed:
    """Tokens x [n, width] of one timeline, from position `start` on."""

    x: np.ndarray
    start: int
    to: Kept

    def placed(self, launch: Launch, is_index: bool) -> tuple[int, list[np.ndarray]]:
        """A table, and what it leads to: both tails, then entries."""
        arrays = [launch.place(array) for array in (*self.to.tails, *self.to.entries)]
        return timelines.table(launch, **dict(zip(self.names(is_index), arrays))), arrays

    def names(self, is_index: bool) -> tuple[str, ...]:
        """Of these arrays, as tables have them."""
        return (
            ("KEY_TAIL_KV", "KEY_TAIL_GATE", "KEYS", "KEY_SCALES") if is_index else ("TAIL_KV", "TAIL_GATE", "ENTRIES")
        )

    def take(self, arrays: list[np.ndarray]) -> None:
        for array, other in zip((*self.to.tails, *self.to.entries), arrays):
            array[...] = other


def block_turns(freqs: np.ndarray, position: np.ndarray, ratio: int) -> np.ndarray:
    """(n, ROPE): of the first positions of blocks."""
    return np.concatenate([rotations(freqs, int(p) // ratio * ratio, 1, 1) for p in position])


def compress(launch: Launch, c: Compressor, fed: list[Fed], channels: int = 128, part: int = 0) -> None:
    """Of several timelines at once; `part` rows at a time, or all."""
    counts, placed = [len(f.x) for f in fed], [f.placed(launch, c.is_index) for f in fed]
    rows = timelines.lines_of([f.start for f in fed], counts, [table for table, _ in placed])
    x, slots, dims, width = np.concatenate([f.x for f in fed]), fed[0].to.tails.shape[1], c.head_dim, c.wkv.matrix.rows
    new, ape = [launch.place(linear(x, w)) for w in (c.wkv, c.wgate)], fixed(c.ape)
    tail = lines.KEY_TAIL_KV if c.is_index else lines.TAIL_KV
    sizes = {"RATIO": c.ratio, "DIMS": dims, "SLOTS": slots, "TAIL": tail.value, "CHANNELS": channels}
    turns = block_turns(c.freqs, rows[:, lines.POSITION.value], c.ratio)
    for of in timelines.parts(len(x), part):
        n, told = len(x[of]), (fixed(rows[of]), timelines.PART)
        pooled = np.full((n, dims), np.nan, F)
        launch(kv.pool, (n, blocks(dims, channels)), *(a[of] for a in new), ape, *told, pooled, **sizes)
        pack, fresh = (kv.pack_keys, ()) if c.is_index else (kv.pack_entries, (0,))
        arguments = fixed(pooled), fixed(c.norm), fixed(turns[of]), *told, *fresh
        launch(pack, (n,), *arguments, DIMS=dims, ROPE=c.rope_dims, EPS=c.eps, RATIO=c.ratio)
    for of in timelines.parts(len(x), part):
        told = fixed(rows[of]), timelines.PART
        launch(kv.keep_tail, (len(x[of]), blocks(width, channels)), *(a[of] for a in new), ape, *told, **sizes)
    for f, (_, arrays) in zip(fed, placed):
        f.take(arrays)


def plain_pool(values: np.ndarray, gates: np.ndarray) -> np.ndarray:
    """Of [slots, channels] fp32, as v4k.h says it; exp is the library's."""
    weights = np.ascontiguousarray(gates - gates.max(0))
    at = pointer(weights)
    native.checked(native.library().v4k_elementary(1, at, weights.size, at))
    total = mixed = np.zeros(values.shape[1], F)
    for weight, value in zip(weights, values):
        total, mixed = total + weight, floats.fma(weight, value, mixed)
    return mixed / total
