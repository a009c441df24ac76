"""From packed codes of four bits to bytes that matrix units multiply."""

import triton
import triton.language as tl

from v4kernels.triton.amd import perm
from v4kernels.triton.dots import doubled_e2m1, signed_e2m1


def by_tables(positive: tuple[int, int], negative: tuple[int, int]) -> str:
    """PTX that looks up the eight codes of a word in their order: words of codes 0 to 3 and 4 to 7, and 8 to 15.

    `prmt` takes four codes as they are but for their highest bits; its mode that replicates signs makes masks of those.
    """
    low, high = (f"0x{a:08x}, 0x{b:08x}" for a, b in (positive, negative))
    return f"""
        {{
        .reg .b32 even, codes, mask, one, other;
        shl.b32 even, $2, 4;
        and.b32 codes, $2, 0x77777777;
        prmt.b32 mask, $2, even, 0x9d8c;
        prmt.b32 one, {low}, codes;
        prmt.b32 other, {high}, codes;
        xor.b32 other, other, one;
        and.b32 other, other, mask;
        xor.b32 $0, one, other;
        shr.u32 codes, codes, 16;
        prmt.b32 mask, $2, even, 0xbfae;
        prmt.b32 one, {low}, codes;
        prmt.b32 other, {high}, codes;
        xor.b32 other, other, one;
        and.b32 other, other, mask;
        xor.b32 $1, one, other;
        }}
        """


FP4 = tl.constexpr(by_tables((0x03020100, 0x0C080604), (0xFDFEFF00, 0xF4F8FAFC)))
INT4 = tl.constexpr(by_tables((0xFBFAF9F8, 0xFFFEFDFC), (0x03020100, 0x07060504)))


@triton.jit
def in_words(FORMAT: tl.constexpr, ASM: tl.constexpr):
    """Whether `unpacked` takes words: AMD's GPUs look up bytes by bytes of one, and their compiler takes no assembly of
    anything smaller."""
    return FORMAT == "fp4" and (ASM == "gfx9" or ASM == "gfx11")


@triton.jit
def unpacked(codes, ROWS: tl.constexpr, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """Pairs of codes of a group, [ROWS, 16] uint8, or [ROWS, 4] int32 if `in_words` -> [ROWS, 32] int8: values of int4,
    twice those of fp4."""
    if ASM == "ptx":
        TABLES: tl.constexpr = FP4 if FORMAT == "fp4" else INT4
        low, high = tl.inline_asm_elementwise(
            TABLES, "=&r,=r,r", [codes], dtype=(tl.int8, tl.int8), is_pure=True, pack=4
        )
        fours = tl.join(tl.reshape(low, (ROWS, 4, 4)), tl.reshape(high, (ROWS, 4, 4)))
        values = tl.reshape(tl.permute(fours, (0, 1, 3, 2)), (ROWS, 32))
    elif in_words(FORMAT, ASM):
        even, odd = signed_e2m1(codes), signed_e2m1(codes >> 4)
        fours = tl.join(perm(odd, even, 0x05010400), perm(odd, even, 0x07030602))
        values = tl.reshape((fours[:, :, :, None] >> (8 * tl.arange(0, 4))).to(tl.int8), (ROWS, 32))
    else:
        nibble = tl.reshape(tl.join(codes & 15, codes >> 4), (ROWS, 32)).to(tl.int32)
        values = (doubled_e2m1(nibble) if FORMAT == "fp4" else nibble - 8).to(tl.int8)
    return values
