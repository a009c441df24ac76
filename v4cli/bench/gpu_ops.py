"""Kernels for GPUs one by one, at the shapes of a model: bytes of weights or cache, multiply-adds, time.

Weights rotate: a piece of work reads other ones than those before it, and all of them are more than a cache holds. So
do the entries and keys of a timeline, as far as they are more than it holds anyway.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from v4kernels.formats import FORMATS
from v4kernels.native import entry_bytes
from v4kernels.triton import attend, experts, gemm, hyper, index, launch, linear, lines

from v4cli.bench.gpu_clock import Piece
from v4cli.bench.gpu_memory import Memory
from v4cli.model.config import V4Config

PIECES = 16  # at least, in a graph
RUN = 256  # keys of a partial result of attention
PROGRAMS = 512  # that share the keys of a token
BLOCK = 4096  # scores of a choice
LINEAR = {"int8": linear.linear_int8, "int4": linear.linear_int4, "fp4": linear.linear_fp4}


@dataclass(frozen=True)
class Sizes:
    """What is measured of a model."""

    config: V4Config
    rotated: int = 1 << 29  # bytes, several times the largest cache
    keys: tuple[int, ...] = (640, 8320)  # of attention: a CSA layer's, an HCA layer's at 1M tokens
    scored: tuple[int, ...] = (1024, 32768, 262144)  # index keys
    tiles: tuple[int, ...] = (16, 32, 64)  # rows of a program of a GEMV, all of them tried
    prompt: tuple[int, ...] = (64, 512, 2048, 8192)  # rows of a product by matrix units

    def dense(self) -> dict[str, tuple[int, int]]:
        """Rows and inputs of the dense matrices of a layer."""
        c = self.config
        wide, narrow = c.num_attention_heads * c.head_dim, c.o_groups * c.o_lora_rank
        return {
            "wq_a": (c.q_lora_rank, c.hidden_size), "wq_b": (wide, c.q_lora_rank), "wkv": (c.head_dim, c.hidden_size),
            "wo_a": (narrow, wide // c.o_groups), "wo_b": (c.hidden_size, narrow),
            "shared w1": (c.moe_intermediate_size, c.hidden_size),
            "shared w2": (c.hidden_size, c.moe_intermediate_size),
        }  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One piece of work, `count` of them in a graph. n_bytes: read once, of weights or cache; macs: multiply-adds."""

    op: str
    shape: str
    n_bytes: int
    macs: int
    work: Piece
    count: int = PIECES
    of: str = ""  # a name that cases of which the fastest counts have in common


Makes = Callable[[Memory], Iterator[Case]]


def run(memory: Memory, kernel: Any, grid: tuple[int, ...], arguments: tuple, warps: int = 4, stages: int = 1, **more):
    """Launch it in the assembly of the device."""
    if any(p.name == "ASM" for p in kernel.params):
        more["ASM"] = launch.assembly(memory.device.gpu)
    memory.device.launch(kernel, grid, arguments, more, warps, stages)


def blocks(n: int, size: int) -> int:
    return -(-n // size)


def weights(memory: Memory, form: str, rows: int, cols: int, rotated: int) -> list[tuple[int, int]]:
    """Addresses of codes and scales of as many matrices as are `rotated` bytes, two at least."""
    codes, scale = FORMATS[form].n_bytes(rows, cols)
    count = max(2, blocks(rotated, codes + scale))
    return list(zip(memory.copies(codes, count), memory.copies(scale, count)))


def inputs(memory: Memory, tokens: int, cols: int) -> tuple[int, int]:
    """Quantized activations: addresses of codes and scales."""
    return memory.random(tokens * cols), memory.floats(tokens, cols // 32)


def gemv(sizes: Sizes, form: str, name: str) -> Makes:
    if name == "wo_a":
        return grouped(sizes, form)
    rows, cols = sizes.dense()[name]

    def cases(memory: Memory) -> Iterator[Case]:
        held = weights(memory, form, rows, cols, sizes.rotated)
        x, y = inputs(memory, 1, cols), memory.empty(4 * rows)
        for tile in sizes.tiles:

            def work(i: int, tile: int = tile) -> None:
                arguments = *held[i % len(held)], *x, y, rows
                run(memory, LINEAR[form], (blocks(rows, tile), 1), arguments, K=cols, ROWS=tile)

            shape = f"{name} {rows}x{cols}, {tile} rows"
            count = max(PIECES, min(len(held), 128))
            yield Case(f"{form} linear", shape, sum(FORMATS[form].n_bytes(rows, cols)), rows * cols, work, count, name)

    return cases


def grouped(sizes: Sizes, form: str) -> Makes:
    """wo_a, whose outputs fall into groups that see inputs of their own: they lie as experts do, each in a slot."""
    (rows, cols), groups = sizes.dense()["wo_a"], sizes.config.o_groups
    each = rows // groups
    codes, scale = (blocks(part, 256) * 256 for part in FORMATS[form].n_bytes(each, cols))
    places = {"SLOT": codes + scale, "W2": 0, "W2_SCALE": codes, "W2_FORMAT": form}

    def cases(memory: Memory) -> Iterator[Case]:
        held = memory.copies(groups * (codes + scale), max(2, blocks(sizes.rotated, groups * (codes + scale))))
        slots, pairs = memory.array(np.arange(groups, dtype=np.int16)), memory.array(np.arange(groups))
        x, y = inputs(memory, groups, cols), memory.empty(4 * rows)
        for tile in (tile for tile in sizes.tiles if each % tile == 0):

            def work(i: int, tile: int = tile) -> None:
                arguments = held[i % len(held)], slots, pairs, *x, y
                run(memory, experts.down, (groups, each // tile), arguments, K=cols, N=each, ROWS=tile, **places)

            shape, n_bytes = f"wo_a {rows}x{cols}, {tile} rows", sum(FORMATS[form].n_bytes(rows, cols))
            yield Case(f"{form} linear", shape, n_bytes, rows * cols, work, max(PIECES, min(len(held), 128)), "wo_a")

    return cases


def product(sizes: Sizes, form: str, tokens: int) -> Makes:
    rows, cols = sizes.dense()["shared w1"]

    def cases(memory: Memory) -> Iterator[Case]:
        held = weights(memory, form, rows, cols, 1)
        x, y = inputs(memory, tokens, cols), memory.empty(4 * rows * tokens)
        grid = blocks(tokens, 64), blocks(rows, 64)

        def work(i: int) -> None:
            arguments = (*held[i % len(held)], *x, y, rows, tokens)
            run(memory, gemm.gemm, grid, arguments, 8, 2, K=cols, TOKENS=64, ROWS=64, FORMAT=form)

        yield Case(
            f"{form} product",
            f"{tokens}x{cols}x{rows}",
            sum(FORMATS[form].n_bytes(rows, cols)),
            tokens * rows * cols,
            work,
        )

    return cases


def slot(form: str, inner: int, dim: int) -> dict[str, int]:
    """Where the parts of an expert lie, by the kernels' names."""
    at, end = {}, 0
    for part, shape in (("W1", (inner, dim)), ("W3", (inner, dim)), ("W2", (dim, inner))):
        for name, n_bytes in zip((part, f"{part}_SCALE"), FORMATS[form].n_bytes(*shape)):
            at[name], end = end, blocks(end + n_bytes, 256) * 256
    return at | {"SLOT": end}


def routed(sizes: Sizes, form: str) -> Makes:
    """The experts of a token, all of them in slots."""
    c = sizes.config
    inner, dim, top_k = c.moe_intermediate_size, c.hidden_size, c.num_experts_per_tok

    def cases(memory: Memory) -> Iterator[Case]:
        at = slot(form, inner, dim)
        sets = max(2, blocks(sizes.rotated, top_k * at["SLOT"]))
        slots = memory.random(sets * top_k * at["SLOT"])
        table = memory.array(np.arange(sets * top_k, dtype=np.int16))
        ids = [memory.array(np.arange(i * top_k, (i + 1) * top_k)) for i in range(sets)]
        shares, x = memory.floats(top_k), inputs(memory, 1, dim)
        z = memory.empty(top_k * inner), memory.empty(top_k * inner // 8)
        y = memory.empty(4 * top_k * dim)
        first = {name: at[name] for name in ("W1", "W1_SCALE", "W3", "W3_SCALE", "SLOT")}
        last = {name: at[name] for name in ("W2", "W2_SCALE", "SLOT")}

        def work(i: int) -> None:
            chosen = slots, table, ids[i % sets]
            run(
                memory, experts.gate_up, (top_k, inner // 32), (*chosen, shares, *x, *z, 10.0),
                K=dim, N=inner, TOP_K=top_k, W1_FORMAT=form, W3_FORMAT=form, **first,
            )  # fmt: skip
            run(
                memory, experts.down, (top_k, dim // 32), (*chosen, *z, y), K=inner, N=dim, ROWS=32, W2_FORMAT=form,
                **last,
            )  # fmt: skip

        about = FORMATS[form]
        n_bytes = top_k * (2 * sum(about.n_bytes(inner, dim)) + sum(about.n_bytes(dim, inner)))
        yield Case(f"{form} experts", f"{top_k} of {dim}x{inner}", n_bytes, 3 * top_k * inner * dim, work)

    return cases


def one_line(memory: Memory, position: int, **kept: int) -> int:
    """Address of the line of a row at a position, whose timeline keeps things at these addresses (lines.py)."""
    table = np.zeros(lines.PARTS.value, np.int64)
    for name, at in kept.items():
        table[getattr(lines, name).value] = at
    return memory.array(np.array([memory.array(table), position, 0, 0]))


def attention(sizes: Sizes, keys: int) -> Makes:
    """One token: the window, and the selected entries or, where there are more, all."""
    c = sizes.config
    heads, dim, window = c.num_attention_heads, c.head_dim, c.sliding_window
    others = keys - window
    top = others if others <= c.index_topk else 0
    ratio = 4 if top else 128

    def cases(memory: Memory) -> Iterator[Case]:
        width = entry_bytes(dim, c.qk_rope_head_dim)
        stored = np.full((max(others, window), width), 0x30, np.uint8)
        stored[:, dim - c.qk_rope_head_dim + 2 * c.qk_rope_head_dim :] = 119
        stored[:, : dim - c.qk_rope_head_dim] = memory.rng.integers(0, 0x40, (len(stored), dim - c.qk_rope_head_dim))
        ring, entries = memory.array(stored[:window]), memory.array(stored)
        told = one_line(memory, max(others, 1) * ratio - 1, RING=ring, ENTRIES=entries)
        selected = memory.array(np.arange(max(top, 1), dtype=np.int32))
        runs = blocks(keys, RUN) + 1
        room = runs * RUN
        q, sink, turns = memory.floats(heads, dim), memory.floats(heads), memory.floats(c.qk_rope_head_dim)
        fresh = memory.array(stored[:1])
        scores, shares = memory.empty(4 * room * heads), memory.empty(4 * room * heads)
        factors, peaks, totals = (memory.empty(16 * runs * heads) for _ in range(3))
        partial, out = memory.empty(4 * runs * heads * dim), memory.empty(4 * heads * dim)
        codes = memory.empty(heads * dim), memory.empty(heads * dim // 8)
        some = {"ALL": heads, "WINDOW": window, "RATIO": ratio if others else 0, "TOP": top}
        whole = some | {"DIM": dim, "ROPE": c.qk_rope_head_dim}
        tile, few, columns = min(16, heads), min(4, heads), min(128, dim)
        tiles, cached = blocks(heads, tile), (told, 0, fresh, selected)

        def work(i: int) -> None:
            run(
                memory, attend.attend_scores, (blocks(keys, 64), tiles, 1), (q, *cached, scores, window, room),
                BYTES=width, HEADS=tile, **whole,
            )  # fmt: skip
            run(
                memory, attend.attend_weights, (runs - 1, blocks(heads, few), 1),
                (scores, told, selected, shares, factors, peaks, totals, room), 1, HEADS=few, **some,
            )  # fmt: skip
            run(
                memory, attend.attend_values, (runs - 1, tiles * blocks(dim, columns), 1),
                (shares, factors, *cached, window, partial, room), 1,
                BYTES=width, HEADS=tile, COLUMNS=columns, UNROLL=2, **whole,
            )  # fmt: skip
            arguments = partial, peaks, totals, sink, turns, told, selected, out, *codes, room
            run(memory, attend.attend_merge, (heads, 1), arguments, QUANTIZED=True, **whole)

        yield Case("attention", f"{keys} keys", keys * width, 2 * keys * heads * dim, work)

    return cases


def levels(count: int, top: int, block: int) -> list[int]:
    """Blocks of each level of a choice among so many scores."""
    found = [blocks(count, block)]
    while found[-1] > 1:
        found.append(blocks(found[-1] * top, block))
    return found


def indexed(sizes: Sizes, keys: int) -> Makes:
    """Scores of all keys for one token, and the choice among them."""
    c = sizes.config
    rows, dims, top = max(16, 1 << (c.index_n_heads - 1).bit_length()), c.index_head_dim, c.index_topk

    def cases(memory: Memory) -> Iterator[Case]:
        held = memory.random(keys * dims // 2), memory.array(np.full(keys * dims // 32, 125, np.uint8))
        told = one_line(memory, 4 * keys - 1, KEYS=held[0], KEY_SCALES=held[1])
        queries = memory.random(rows * dims), memory.floats(dims // 32, rows), memory.floats(rows)
        scores = memory.floats(keys)

        def score(i: int) -> None:
            programs = min(blocks(keys, 64), PROGRAMS)
            constants = {"ROWS": rows, "DIMS": dims, "BLOCK": 64}
            run(memory, index.index_scores, (programs, 1), (*queries, told, 0, scores, keys), 8, **constants)

        yield Case("index scores", f"{keys} keys", keys * dims * 17 // 32, keys * rows * dims, score)
        wanted = levels(keys, top, BLOCK)
        found = [(memory.empty(4 * n * top), memory.empty(4 * n * top)) for n in wanted]

        def choose(i: int) -> None:
            values, ids = scores, scores
            for level, (count, into) in enumerate(zip(wanted, found)):
                stride, last = wanted[level - 1] * top if level else keys, int(level == len(wanted) - 1)
                arguments = values, ids, told, *into, stride, level, last
                run(memory, index.index_choice, (count, 1), arguments, 8, TOP=top, BLOCK=BLOCK)
                values, ids = into

        yield Case("index choice", f"{keys} keys", 4 * keys, 0, choose)

    return cases


def hyper_connection(sizes: Sizes) -> Makes:
    """The input of a sublayer from the streams, and its output back into them, for one token."""
    c = sizes.config
    s, d = c.hc_mult, c.hidden_size
    rows = s * (s + 2)

    def cases(memory: Memory) -> Iterator[Case]:
        count = max(2, blocks(sizes.rotated, 4 * rows * s * d))
        fn = memory.floats(rows, s * d)
        held = [fn, *(memory.floats(rows, s * d) for _ in range(min(count, 86) - 1))]
        streams, base, scale, norm = memory.floats(s, d), memory.floats(rows), memory.floats(3), memory.floats(d)
        m, x, mix = memory.empty(4 * (rows + 1)), memory.empty(4 * d), memory.empty(4 * (s + s * s))
        codes = memory.empty(d), memory.empty(d // 8)

        def work(i: int) -> None:
            given = held[i % len(held)], streams, m, rows, 1
            run(memory, hyper.hyper_products, (rows + 1, 1), given, 1, K=s * d, N=1)
            sizes_of = {"S": s, "D": d, "ITERS": c.hc_sinkhorn_iters, "NORM_EPS": 1e-6, "EPS": 1e-6, "BLOCK": 512}
            arguments = streams, m, base, scale, norm, x, mix, *codes, rows
            run(memory, hyper.hyper_pre, (1, 2), arguments, QUANTIZED=True, **sizes_of)
            run(memory, hyper.hyper_post, (blocks(d, 256), 1), (x, mix, streams), S=s, D=d, BLOCK=256)

        yield Case("hyper-connection", f"{s} streams of {d}", 4 * rows * s * d, rows * s * d, work, len(held))

    return cases


def cases(sizes: Sizes) -> Iterator[tuple[str, Makes]]:
    """All of them, by a name, those first that acceptance asks for."""
    dense = sizes.dense()
    yield from ((f"int8 linear {name}", gemv(sizes, "int8", name)) for name in dense)
    yield "fp4 experts", routed(sizes, "fp4")
    yield from ((f"attention, {keys} keys", attention(sizes, keys)) for keys in sizes.keys)
    yield from ((f"index, {keys} keys", indexed(sizes, keys)) for keys in sizes.scored)
    yield "hyper-connection", hyper_connection(sizes)
    for tokens in sizes.prompt:
        yield from ((f"{form} product, {tokens} rows", product(sizes, form, tokens)) for form in ("int8", "fp4"))
    yield from ((f"{form} experts", routed(sizes, form)) for form in ("q3", "q2"))
    for form in ("int4", "fp4"):
        yield from ((f"{form} linear {name}", gemv(sizes, form, name)) for name in dense)
