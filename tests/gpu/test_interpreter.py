"""Kernels in their plain forms, by Triton's interpreter: the program as written, before any compiler."""

import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import gpu_kernels

SCRIPT = """
import torch
from v4kernels import native
from v4kernels.triton import gemm, linear, quantize
import test_kernels as given

def same(a, b):
    return given.differing(a.numpy(), b) == 0

x = given.activations(2, 352)
q, scale = torch.zeros(2, 352, dtype=torch.int8), torch.zeros(2, 11)
quantize.quantize[(3,)](x, q, scale, 22, BLOCK=8)
want_q, want_scale = native.quantize(x)
print("quantize", torch.equal(q, want_q) and same(scale, want_scale))

codes, steps = given.int8_weight(20, 352)
want = native.linear(x, native.matrix(codes, steps, "int8"))
y = torch.zeros(2, 20)
bits = steps.view(torch.uint16)
sizes = {"K": 352, "ROWS": 16, "ASM": "plain"}
linear.linear_int8[(2, 2)](codes.view(torch.int32), bits, q.view(torch.int32), scale, y, 20, **sizes)
print("linear_int8", same(y, want))
y = torch.zeros(2, 20)
tile = {"K": 352, "TOKENS": 16, "ROWS": 16, "ASM": "plain"}
gemm.gemm[(1, 2)](codes, bits, q, scale, y, 20, 2, FORMAT="int8", **tile)
print("gemm_int8", same(y, want))

codes, steps = given.fp4_weight(20, 352)
want = native.linear(x, native.matrix(codes, steps, "fp4"))
y, bits = torch.zeros(2, 20), steps.view(torch.uint8)
linear.linear_fp4[(2, 2)](codes.view(torch.int32), bits, q.view(torch.int64), scale, y, 20, **sizes)
print("linear_fp4", same(y, want))
y = torch.zeros(2, 20)
gemm.gemm[(1, 2)](codes, bits, q, scale, y, 20, 2, FORMAT="fp4", **tile)
print("gemm_fp4", same(y, want))

codes, steps = given.int4_weight(20, 352)
want = native.linear(x, native.matrix(codes, steps, "int4"))
y, bits = torch.zeros(2, 20), steps.view(torch.uint16)
linear.linear_int4[(2, 2)](codes.view(torch.int32), bits, q.view(torch.int64), scale, y, 20, **sizes)
print("linear_int4", same(y, want))
y = torch.zeros(2, 20)
gemm.gemm[(1, 2)](codes, bits, q, scale, y, 20, 2, FORMAT="int4", **tile)
print("gemm_int4", same(y, want))

for form in ("q3", "q2"):
    codes, steps = given.lowbit_weight(form, 10, 352)
    want = native.linear(x[:1], native.matrix(codes, steps, form))
    y = torch.zeros(1, 10)
    getattr(linear, "linear_" + form)[(1, 1)](codes, steps, q.view(torch.int64), scale, y, 10, **sizes)
    print("linear_" + form, same(y, want))
    y = torch.zeros(1, 10)
    gemm.gemm[(1, 1)](codes, steps, q, scale, y, 10, 1, FORMAT=form, **tile)
    print("gemm_" + form, same(y, want))
"""


NAMES = ("quantize", *(f"{how}_{form}" for form in ("int8", "fp4", "int4", "q3", "q2") for how in ("linear", "gemm")))
AMD = "import amd_words\namd_words.use()\n" + SCRIPT.replace('"plain"', '"gfx9"')


@pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
@pytest.mark.parametrize("script", [SCRIPT, AMD], ids=["plain", "AMD"])
def test_the_interpreter_gives_the_librarys_bits(script):
    assert gpu_kernels.in_interpreter(script) == [word for name in NAMES for word in (name, "True")]
