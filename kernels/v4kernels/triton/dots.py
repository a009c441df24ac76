"""Exact integer dot products of codes within one 32-bit word of weights.

Each has a form in PTX, which is what makes a product of four codes one instruction, and a plain twin for other GPUs and
for Triton's interpreter; ASM: tl.constexpr chooses. Codes of a word are in memory order, the lowest bits first.
"""

import triton
import triton.language as tl

from v4kernels.triton.amd import dot4, perm


@triton.jit
def signed_byte(word, i: tl.constexpr):
    """Byte i of int32 words, sign-extended."""
    return (word << (24 - 8 * i)) >> 24


@triton.jit
def dot_int8(w, x, ASM: tl.constexpr):
    """w, x int32: four int8 each -> int32."""
    if ASM == "ptx":
        dot = tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, 0;", "=r,r,r", [w, x], dtype=tl.int32, is_pure=True, pack=1
        )
    elif ASM != "plain":
        dot = dot4(w, x, 0, ASM)
    else:
        dot = signed_byte(w, 0) * signed_byte(x, 0)
        for i in tl.static_range(1, 4):
            dot += signed_byte(w, i) * signed_byte(x, i)
    return dot


@triton.jit
def doubled_e2m1(nibble):
    """e2m1 codes 0 to 15, int32 -> twice their values: 0, 1, 2, 3, 4, 6, 8, 12 and the negatives."""
    exponent = (nibble >> 1) & 3
    mantissa = nibble & 1
    magnitude = tl.where(exponent == 0, mantissa, (2 + mantissa) << tl.maximum(exponent - 1, 0))
    return tl.where((nibble & 8) != 0, -magnitude, magnitude)


@triton.jit
def signed_e2m1(codes):
    """Twice the values of the e2m1 codes in the low halves of four bytes, int32, by AMD's `perm`: magnitudes are looked
    up, and their negatives, and of every sign a mask is made."""
    magnitude = codes & 0x07070707
    mask = perm(0, 0, (codes >> 3) & 0x01010101 | 0x0C0C0C0C)
    positive = perm(0x0C080604, 0x03020100, magnitude)
    return (perm(-0x0B070504, -0x02010100, magnitude) & mask) | (positive & ~mask)


@triton.jit
def dot_fp4(w, x, ASM: tl.constexpr):
    """w int32: eight e2m1 codes; x int64: eight int8 -> int32, twice the dot product.

    In PTX, four codes at a time: `prmt` looks magnitudes up, and its mode that replicates signs makes of every code a
    mask k of 0xff or 0x80. magnitude ^ k is the doubled value plus k, as a signed byte; a second product takes k back.
    """
    low = x.to(tl.int32)
    high = (x >> 32).to(tl.int32)
    if ASM == "ptx":
        dot = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 codes, magnitude, k, sum, excess;
            prmt.b32 k, 0x80808080, 0x80808080, $1;
            and.b32 codes, $1, 0x77777777;
            prmt.b32 magnitude, 0x03020100, 0x0c080604, codes;
            xor.b32 magnitude, magnitude, k;
            dp4a.s32.s32 sum, magnitude, $2, 0;
            dp4a.s32.s32 excess, k, $2, 0;
            shr.u32 k, $1, 16;
            shr.u32 codes, codes, 16;
            prmt.b32 k, 0x80808080, 0x80808080, k;
            prmt.b32 magnitude, 0x03020100, 0x0c080604, codes;
            xor.b32 magnitude, magnitude, k;
            dp4a.s32.s32 sum, magnitude, $3, sum;
            dp4a.s32.s32 excess, k, $3, excess;
            sub.s32 $0, sum, excess;
            }
            """,
            "=r,r,r,r",
            [w, low, high],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    elif ASM != "plain":
        dot = dot4(signed_e2m1(w), perm(high, low, 0x06040200), 0, ASM)
        dot = dot4(signed_e2m1(w >> 4), perm(high, low, 0x07050301), dot, ASM)
    else:
        dot = doubled_e2m1(w & 15) * signed_byte(low, 0)
        for i in tl.static_range(1, 8):
            dot += doubled_e2m1((w >> (4 * i)) & 15) * signed_byte(low if i < 4 else high, i % 4)
    return dot


@triton.jit
def dot_int4(w, x, ASM: tl.constexpr):
    """w int32: eight codes c, of which c - 8 is the value; x int64: eight int8 -> int32, sixteen times the dot product.

    A code in the high half of a byte whose highest bit is flipped is sixteen times its value, as a signed byte.
    """
    low = x.to(tl.int32)
    high = (x >> 32).to(tl.int32)
    if ASM == "ptx":
        dot = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 codes, inputs, sum;
            shl.b32 codes, $1, 4;
            and.b32 codes, codes, 0xf0f0f0f0;
            xor.b32 codes, codes, 0x80808080;
            prmt.b32 inputs, $2, $3, 0x6420;
            dp4a.s32.s32 sum, codes, inputs, 0;
            and.b32 codes, $1, 0xf0f0f0f0;
            xor.b32 codes, codes, 0x80808080;
            prmt.b32 inputs, $2, $3, 0x7531;
            dp4a.s32.s32 $0, codes, inputs, sum;
            }
            """,
            "=r,r,r,r",
            [w, low, high],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    elif ASM != "plain":
        dot = dot4(((w << 4) & -0x0F0F0F10) ^ -0x7F7F7F80, perm(high, low, 0x06040200), 0, ASM)
        dot = dot4((w & -0x0F0F0F10) ^ -0x7F7F7F80, perm(high, low, 0x07050301), dot, ASM)
    else:
        dot = ((w & 15) - 8) * signed_byte(low, 0)
        for i in tl.static_range(1, 8):
            dot += (((w >> (4 * i)) & 15) - 8) * signed_byte(low if i < 4 else high, i % 4)
        dot = dot << 4
    return dot
