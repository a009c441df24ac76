"""Layers in fp32, hyper-connections, router and embedding by kernels, and the same by the CPU library. Import behind
`pytest.importorskip("triton")`."""

import ctypes

import numpy as np
import torch
from gpu_kernels import Launch, blocks, fixed, quantized, same
from v4kernels import native
from v4kernels.cpu import PackedWeight
from v4kernels.cpu.bound import BoundHyper, pointer
from v4kernels.formats import FORMATS
from v4kernels.tree import Hyper
from v4kernels.triton import embed, fp32, hyper, route

F = np.float32


def differing(a: np.ndarray, b: np.ndarray) -> int:
    """Numbers, fp32 or integers, whose bits differ; one NaN is as good as another."""
    assert a.shape == b.shape and a.dtype == b.dtype
    same = np.ascontiguousarray(a).view(f"u{a.itemsize}") == np.ascontiguousarray(b).view(f"u{b.itemsize}")
    return int((~(same | (np.isnan(a) & np.isnan(b)))).sum())


def uneven(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    """fp32 of very different sizes; of several rows the last ones are zero, tiny, huge and not finite."""
    x = (rng.standard_normal((n, width)) * np.exp(2 * rng.standard_normal((n, width)))).astype(F)
    for i, value in enumerate((-1e-44, 3e38, -np.inf, np.nan)):
        if n > i + 1:
            x[-1 - i] *= F(1e-30) if i == 0 else 1
            x[-1 - i, 5 + i] = value
    return x


# -- layers in fp32 ---------------------------------------------------------------------------------------------------


def plain_weight(rng: np.random.Generator, form: str, rows: int, cols: int) -> PackedWeight:
    """Of format f32 or bf16, a few numbers tiny or huge."""
    w = (rng.standard_normal((rows, cols)) * np.exp(rng.standard_normal((rows, cols)))).astype(F)
    w[rng.random((rows, cols)) < 0.02] *= F(1e-38)
    return PackedWeight.of(form, w if form == "f32" else (w.view(np.uint32) >> 16).astype(np.uint16))


def library_linear(x: np.ndarray, w: PackedWeight, groups: int = 1) -> np.ndarray:
    return native.linear(torch.from_numpy(x), w.matrix, groups).numpy()


def linear(launch: Launch, x: np.ndarray, w: PackedWeight, groups: int = 1, tile: tuple[int, int] = (1, 4)):
    """x (n, groups * cols) -> (n, rows)."""
    n, width, (tokens, tile_rows) = len(x), w.matrix.rows // groups, tile
    y = np.full((n, w.matrix.rows), 7, F)
    kernel = {"f32": fp32.linear_f32, "bf16": fp32.linear_bf16}[w.form]
    grid = blocks(width, tile_rows), groups, blocks(n, tokens)
    codes = fixed(w.owners[0])
    launch(kernel, grid, codes, fixed(x), y, width, n, K=w.matrix.cols, N=tokens, ROWS=tile_rows)
    return y


# -- hyper-connections ------------------------------------------------------------------------------------------------


def hyper_connection(rng: np.random.Generator, streams: int, dim: int, spread: float, final: bool = False) -> Hyper:
    rows = streams if final else streams * (streams + 2)
    fn = rng.standard_normal((rows, streams * dim)) * spread * (streams * dim) ** -0.5
    base, scale, norm = rng.standard_normal(rows), rng.standard_normal(1 if final else 3), rng.standard_normal(dim)
    arrays = (a.astype(F) for a in (fn, base, scale, norm))
    return Hyper(*arrays, streams=streams, iters=int(rng.integers(1, 21)), norm_eps=1e-6, eps=1e-6)


def library_pre(h: Hyper, streams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    bound = BoundHyper(h)
    x, mix = np.full((len(streams), bound.dim), 7, F), np.full((len(streams), bound.n_mix), 7, F)
    code = native.library().v4k_hyper_pre(bound.at, pointer(streams), len(streams), pointer(x), pointer(mix))
    native.checked(code)
    return x, mix


def library_head(h: Hyper, streams: np.ndarray) -> np.ndarray:
    bound = BoundHyper(h)
    x = np.full((len(streams), bound.dim), 7, F)
    native.checked(native.library().v4k_hyper_head(bound.at, pointer(streams), len(streams), pointer(x)))
    return x


def library_post(h: Hyper, out: np.ndarray, mix: np.ndarray, streams: np.ndarray) -> np.ndarray:
    streams, sizes = streams.copy(), (len(streams), h.streams, out.shape[1])
    native.checked(native.library().v4k_hyper_post(pointer(out), pointer(mix), *sizes, pointer(streams)))
    return streams


def pre(launch: Launch, h: Hyper, streams: np.ndarray, final: bool = False, tokens: int = 1):
    """x (n, D) and, but for the final collapse, mix (n, S + S*S), which is 7 there."""
    n, s, rows = len(streams), h.streams, len(h.fn)
    d = streams.shape[1] // s
    m, x, mix = np.full((n, rows + 1), 7, F), np.full((n, d), 7, F), np.full((n, s + s * s), 7, F)
    grid = rows + 1, blocks(n, tokens)
    launch(hyper.hyper_products, grid, fixed(h.fn), fixed(streams), m, rows, n, K=s * d, N=tokens, warps=1)
    sizes = {"S": s, "D": d, "ITERS": h.iters, "NORM_EPS": h.norm_eps, "EPS": h.eps, "BLOCK": 512}
    given, whole = (fixed(a) for a in (streams, m, h.base, h.scale, h.norm)), d % 32 == 0
    codes, scale = np.full((n, d), 7, np.int8), np.full((n, d // 32), 7, F)
    made = x, mix, codes, scale
    launch(hyper.hyper_pre, (n, 1 if final else 2), *given, *made, rows, **sizes, QUANTIZED=whole)
    if whole:
        assert all(same(*both) for both in zip((codes, scale), quantized(x)))
    return x, mix


def post(launch: Launch, h: Hyper, out: np.ndarray, mix: np.ndarray, streams: np.ndarray) -> np.ndarray:
    streams, (n, d) = streams.copy(), out.shape
    arguments = fixed(out), fixed(mix), streams
    launch(hyper.hyper_post, (blocks(d, 256), n), *arguments, S=h.streams, D=d, BLOCK=256)
    return streams


# -- router -----------------------------------------------------------------------------------------------------------


def library_route(gate: PackedWeight, bias, table, tokens, top_k: int, scale: float, x: np.ndarray):
    """ids, weights, scores; bias or table is None."""
    n, experts = len(x), gate.matrix.rows
    router = native.Router(gate.matrix, pointer(bias), pointer(table), top_k, scale)
    ids, weights, scores = np.empty((n, top_k), np.int64), np.empty((n, top_k), F), np.empty((n, experts), F)
    pointers = (pointer(a) for a in (ids, weights, scores))
    at = ctypes.addressof(router)
    native.checked(native.library().v4k_route(at, pointer(x), pointer(tokens), n, *pointers))
    return ids, weights, scores


def routed(launch: Launch, products: np.ndarray, bias, table, tokens, top_k: int, scale: float):
    """The same of products with the gate."""
    n, experts = products.shape
    none, nobody = fixed(np.zeros(1, F)), fixed(np.zeros(1, np.int64))
    given = (
        fixed(products),
        none if bias is None else fixed(bias),
        nobody if table is None else fixed(table),
        nobody if table is None else fixed(tokens),
    )
    ids, weights, scores = np.full((n, top_k), 7, np.int64), np.full((n, top_k), 7, F), np.full((n, experts), 7, F)
    sizes = {"EXPERTS": experts, "TOP_K": top_k, "BY_TABLE": table is not None}
    sizes["BLOCK"] = 1 << (max(experts, top_k) - 1).bit_length()
    launch(route.route, (n,), *given, ids, weights, scores, scale, **sizes, warps=1)
    return ids, weights, scores


# -- embedding --------------------------------------------------------------------------------------------------------


def embedding(rng: np.random.Generator, form: str, rows: int, cols: int) -> PackedWeight:
    """Any codes, any scales that are finite."""
    if form in ("f32", "bf16"):
        return plain_weight(rng, form, rows, cols)
    codes = rng.integers(0, 256, (rows, cols // 32 * FORMATS[form].code_bytes)).astype(np.uint8)
    if own := FORMATS[form].row_scale:
        scale = rng.integers(0, 256, (rows, own + cols // 32)).astype(np.uint8)
        scale[:, :own] = np.exp2(rng.uniform(-130, 110, (rows, 1))).astype(F).view(np.uint8)[:, 2:]
        return PackedWeight.of(form, codes, scale)
    if FORMATS[form].scale == "F8_E8M0":
        return PackedWeight.of(form, codes, rng.integers(0, 255, (rows, cols // 32)).astype(np.uint8))
    scale = np.exp2(rng.uniform(-130, 120, (rows, cols // 32))).astype(F)
    return PackedWeight.of(form, codes, (scale.view(np.uint32) >> 16).astype(np.uint16))


def library_embed(table: PackedWeight, ids: np.ndarray, streams: int) -> np.ndarray:
    out, at = np.full((len(ids), streams, table.matrix.cols), 7, F), ctypes.addressof(table.matrix)
    native.checked(native.library().v4k_embed(at, pointer(ids), len(ids), streams, pointer(out)))
    return out


def embedded(launch: Launch, table: PackedWeight, ids: np.ndarray, streams: int, block: int = 256) -> np.ndarray:
    d = table.matrix.cols
    out, (codes, scale) = np.full((len(ids), streams, d), 7, F), table.owners
    raw = fixed(codes.view(np.uint8)), fixed(np.zeros(1, np.uint8) if scale is None else scale.view(np.uint8))
    grid = blocks(d, block), len(ids)
    launch(embed.embed, grid, *raw, fixed(ids), out, streams, D=d, FORMAT=table.form, BLOCK=block)
    return out
