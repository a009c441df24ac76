"""What AMD's manuals say of the instructions in amd.py, for Triton's interpreter, which has none of them: `use()`."""

import triton
import triton.language as tl
from v4kernels.triton import dots, lowbit, unpack
from v4kernels.triton.dots import signed_byte


@triton.jit
def perm(high, low, selector):
    result = selector * 0
    for i in tl.static_range(4):
        s = (selector >> (8 * i)) & 0xFF
        byte = tl.where(s < 4, low >> (8 * s), high >> (8 * s - 32)) & 0xFF
        result |= tl.where(s < 8, byte, tl.where(s == 12, 0, 0xFF)) << (8 * i)
    return result


@triton.jit
def dot4(a, b, c, ASM: tl.constexpr):
    for i in tl.static_range(4):
        c += signed_byte(a, i) * signed_byte(b, i)
    return c


def use() -> None:
    for module in (dots, unpack, lowbit):
        module.perm = perm
    for module in (dots, lowbit):
        module.dot4 = dot4
