"""Rows of an embedding table, of any format, as fp32: v4k_embed."""

import triton
import triton.language as tl

from v4kernels.triton.dots import doubled_e2m1
from v4kernels.triton.sums import from_bf16, from_e8m0
from v4kernels.triton.types import f32p, i64p, u8p, u16p


@triton.jit
def decoded(codes, scale, row, i, some, D: tl.constexpr, FORMAT: tl.constexpr):
    """Numbers i of row `row`, fp32; of a format of v4k.h, by name."""
    if FORMAT == "f32":
        return tl.load(codes.to(f32p) + row * D + i, some, 0.0)
    if FORMAT == "bf16":
        return from_bf16(tl.load(codes.to(u16p) + row * D + i, some, 0))
    group = row * (D // 32) + i // 32
    if FORMAT == "fp4":
        step = from_e8m0(tl.load(scale + group, some, 0))
    else:
        step = from_bf16(tl.load(scale.to(u16p) + group, some, 0))
    if FORMAT == "int8":
        return tl.load(codes + row * D + i, some, 0).to(tl.int8, bitcast=True).to(tl.float32) * step
    nibble = (tl.load(codes + row * (D // 2) + i // 2, some, 0).to(tl.int32) >> (i % 2 * 4)) & 15
    if FORMAT == "int4":
        return (nibble - 8).to(tl.float32) * step
    value = doubled_e2m1(nibble & 7).to(tl.float32) * 0.5
    return (value.to(tl.int32, bitcast=True) | ((nibble & 8) << 28)).to(tl.float32, bitcast=True) * step


@triton.jit
def embed(
    codes: u8p,  # [vocabulary, D] in the format's bytes
    scale: u8p,  # [vocabulary, D/32], likewise; not read of a format without
    ids: i64p,  # [n]
    out: f32p,  # out [n, streams, D]: the row, copied to every stream
    streams: tl.int32,
    D: tl.constexpr,  # a multiple of 32
    FORMAT: tl.constexpr,  # fp4, int8, int4, bf16, f32
    BLOCK: tl.constexpr,
):
    """Grid: (ceil(D / BLOCK), n)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    t = tl.program_id(1).to(tl.int64)
    value = decoded(codes, scale, tl.load(ids + t), i, i < D, D, FORMAT)
    for j in range(streams):
        tl.store(out + (t * streams + j) * D + i, value, i < D)
