"""Instructions of AMD's GPUs that Triton has no word for, named to the compiler instead of written as assembly: so it
knows what they do, and waits behind a dot product as long as the hardware asks for."""

import triton
import triton.language as tl
from triton.language import core

BIT, WORD = tl.int1, tl.int32


@core.extern
def perm(high, low, selector, _semantic=None):
    """v_perm_b32. Byte i is byte `selector[i]` of low (0 to 3) and high (4 to 7); 0 of selector 12, 0xff of 13."""
    return _intrinsic("llvm.amdgcn.perm", [high, low, selector], (WORD, WORD, WORD), _semantic)


@core.extern
def sdot4(a, b, c, clamp, _semantic=None):
    """v_dot4_i32_i8, of gfx9: c and the dot product of four int8."""
    return _intrinsic("llvm.amdgcn.sdot4", [a, b, c, clamp], (WORD, WORD, WORD, BIT), _semantic)


@core.extern
def sudot4(a_signed, a, b_signed, b, c, clamp, _semantic=None):
    """v_dot4_i32_iu8, of gfx11: the same of int8 or uint8."""
    kinds = (BIT, WORD, BIT, WORD, WORD, BIT)
    return _intrinsic("llvm.amdgcn.sudot4", [a_signed, a, b_signed, b, c, clamp], kinds, _semantic)


def _intrinsic(name, arguments, kinds, semantic):
    return core.extern_elementwise("", "", arguments, {kinds: (name, WORD)}, is_pure=True, _semantic=semantic)


@triton.jit
def dot4(a, b, c, ASM: tl.constexpr):
    """a, b int32: four int8 each -> c and their dot product, int32."""
    if ASM == "gfx9":
        dot = sdot4(a, b, c, False)
    else:
        dot = sudot4(True, a, True, b, c, False)
    return dot
