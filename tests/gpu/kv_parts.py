"""Queries, entries and index keys by kernels, and the same by the CPU library. Import behind
`pytest.importorskip("triton")`."""

import ctypes
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from gpu_kernels import Launch, blocks, fixed, same
from ptx import floats
from v4kernels import native
from v4kernels.cpu import PackedWeight
from v4kernels.cpu.bound import BoundCompressor, pointer
from v4kernels.tree import OVERLAPPED, Compressor
from v4kernels.triton import kv

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


def put_entries(launch: Launch, a: Heads, x: np.ndarray, turns: np.ndarray, places: list[int], ring: np.ndarray):
    """Into the rows `places` of the ring (rows, bytes)."""
    rows = fixed(np.array(places, np.int32))
    arguments = fixed(linear(x, a.wkv)), fixed(a.kv_norm), fixed(turns), rows, ring
    return launch(kv.pack_entries, (len(x),), *arguments, DIMS=a.dims, ROPE=a.rope, EPS=a.eps)


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

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Kept)
        return same(self.tails, other.tails) and all(map(np.array_equal, self.entries, other.entries))


def library_compress(c: Compressor, x: np.ndarray, start: int, to: Kept) -> None:
    bound, pointers = BoundCompressor(c), [pointer(e) for e in to.entries]
    described = native.Compressed(*(pointer(t) for t in to.tails), *pointers, *[None] * (2 - len(pointers)))
    described.slots = to.tails.shape[1]
    code = native.library().v4k_compress(bound.at, pointer(x), start, len(x), ctypes.addressof(described))
    native.checked(code)


def compress(launch: Launch, c: Compressor, x: np.ndarray, start: int, to: Kept, channels: int = 128) -> None:
    n, slots, dims = len(x), to.tails.shape[1], c.head_dim
    first, last = start // c.ratio, (start + n) // c.ratio
    new = fixed(linear(x, c.wkv)), fixed(linear(x, c.wgate)), fixed(c.ape)
    since = fixed(np.array([start], np.int32))
    places = fixed(np.array([*range(first, last), -1], np.int32))  # the last one has nothing to do
    sizes = {"RATIO": c.ratio, "DIMS": dims, "SLOTS": slots, "CHANNELS": channels}
    pooled, (tail_kv, tail_gate) = np.full((len(places), dims), 7, F), to.tails
    grid = (len(places), blocks(dims, channels))
    launch(kv.pool, grid, *new, fixed(tail_kv), fixed(tail_gate), since, places, pooled, **sizes)
    turns = rotations(c.freqs, first * c.ratio, c.ratio, len(places))
    pack = kv.pack_keys if c.is_index else kv.pack_entries
    arguments = fixed(pooled), fixed(c.norm), fixed(turns), places, *to.entries
    launch(pack, (len(places),), *arguments, DIMS=dims, ROPE=c.rope_dims, EPS=c.eps)
    grid = (min(n, slots), blocks(c.wkv.matrix.rows, channels))
    launch(kv.keep_tail, grid, *new, tail_kv, tail_gate, since, n, **sizes)


def plain_pool(values: np.ndarray, gates: np.ndarray) -> np.ndarray:
    """Of [slots, channels] fp32, as v4k.h says it; exp is the library's."""
    weights = np.ascontiguousarray(gates - gates.max(0))
    at = pointer(weights)
    native.checked(native.library().v4k_elementary(1, at, weights.size, at))
    total = mixed = np.zeros(values.shape[1], F)
    for weight, value in zip(weights, values):
        total, mixed = total + weight, floats.fma(weight, value, mixed)
    return mixed / total
